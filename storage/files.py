"""Files appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

_CHUNK = 1 << 22


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """A new directory beside ``target`` to fill; renamed to ``target`` when the block ends well, else removed.

    Raises: FileExistsError where ``target`` is there already.
    """
    target = target.absolute()
    if target.exists():
        raise FileExistsError(f"the directory to write must not exist, but {target} does.")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield staging
        staging.chmod(0o755)
        _sync(staging)
        staging.rename(target)
        _sync_directory(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def file_digest(path: Path) -> str:
    """XXH3-128 (hex) of a file's bytes: names content, is no protection against an attacker."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
