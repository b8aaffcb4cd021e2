"""Files appear whole or not at all."""

import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import xxhash

from search_spaces.errors import InputError

_CHUNK = 1 << 22
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of fcntl.h and linux/fs.h


class NoRoom(Exception):  # noqa: N818 (says what is the matter)
    """The disk ran full while something was written; what was written is gone again."""


@contextmanager
def whole_directory(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new directory beside ``target`` to fill; renamed to ``target`` when the block ends well, else removed.

    Args:
        replace: put it in place of the directory that is there, which goes only when the new one is complete on disk.
    Raises: FileExistsError where ``target`` is there and shall not be replaced; NoRoom where the disk runs full.
    """
    target = target.absolute()
    if target.exists() and not replace:
        raise FileExistsError(f"the directory to write must not exist, but {target} does.")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with no_room_named(target):
            yield staging
            staging.chmod(0o755)
            _sync(staging)
        if target.exists():
            _exchange(staging, target)
        else:
            staging.rename(target)
        sync_directory(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # after an exchange it is the old directory


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """A file beside ``target`` to write; in its place, lasting, when the block ends well, else removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        os.fchmod(handle, 0o644)  # a temporary file's mode is its maker's alone
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).rename(target)
        sync_directory(target.parent)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def whole_new_file(target: Path) -> Iterator[Path]:
    """A name beside ``target`` for a program that opens files itself; put in its place when the block ends well.

    Raises: FileExistsError where ``target`` is there, also when it appeared meanwhile; NoRoom where the disk runs full.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with no_room_named(target):
            yield staging / target.name
            _sync(staging)
        if target.exists():
            raise FileExistsError(f"the file to write must not exist, but {target} does.")
        (staging / target.name).rename(target)
        sync_directory(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def no_room_named(target: Path, left: str = "nothing is left of it") -> Iterator[None]:
    """Turns the ways in which a system says that nothing more can be written into NoRoom, which says what is left."""
    try:
        yield
    except OSError as e:
        if e.errno not in _FULL:
            raise
        raise NoRoom(
            f"the disk must have room for {target}, but it ran full while it was written ({e.strerror}); {left}."
        ) from e


def require_room(target: Path, needed: int) -> None:
    """Refuse what cannot fit. Raises: InputError with both numbers."""
    place = target.absolute()
    while not place.is_dir():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise InputError(
            f"the disk must have room for {target}, but it takes {needed:,} bytes and {free:,} are free on {place}."
        )


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
    sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Make renames in a directory last."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(new: Path, old: Path) -> None:
    """Swap two directories in one step, so that one or the other is there at any moment (renameat2(2), Linux).

    Where the system has no such call, the old one is moved away first.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        here = ctypes.c_int(_AT_FDCWD)
        if libc.renameat2(here, os.fsencode(new), here, os.fsencode(old), ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
            return
    aside = Path(tempfile.mkdtemp(prefix=f".{old.name}.", dir=old.parent))
    old.rename(aside / old.name)
    new.rename(old)
    aside.rename(new)
