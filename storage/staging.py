"""Checkpoints that lie at a URL, brought to this machine once: a cache named by content, shared by all its processes.

Below the cache's directory:

- ``blobs/DIGEST``: contents; two checkpoints with one tokenizer hold it once.
- ``models/KEY/``: model directories of hard links to blobs. The key is a digest of the URL and of what lies there
  (names, sizes, and the stamps by which a server tells versions apart): what changes there is another directory here.
- ``incoming/KEY/``: the same while it is fetched. A fetch that was cut off goes on where it was.
- ``locks/KEY``: exclusive while one process fetches or clears, shared for as long as a process uses the directory. The
  kernel lets go of them when a process ends, however it does.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from time import sleep
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import fsspec
from fsspec.asyn import AsyncFileSystem

from search_spaces.errors import InputError
from storage.errors import CheckpointError
from storage.files import file_digest, no_room_named, require_room, sync_directory
from storage.model_directory import CODE, WANTED

_THEIRS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("google.api_core.exceptions", "GoogleAPIError"),
)
"""Errors of the packages behind ``s3://`` and ``gs://`` that are no OSError, by their modules."""

CHUNK = 64 << 20
SILENCE = 60.0
"""Seconds in which a server must deliver a chunk, or the next try begins."""

_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before the tries that follow a failed one; a try that brought something counts as none."""

_STAMPS = ("ETag", "etag", "VersionId", "md5Hash", "Content-MD5", "LastModified", "Last-Modified", "updated", "mtime")
"""What file systems call the things by which a server tells versions of a file apart."""
_HELD: dict[Path, int] = {}
"""Directories that this process uses, by the descriptors of their locks: open until it ends."""

_SAID = 300
"""Characters of another's error that are passed on."""

logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs what it raises, with tracebacks


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A file that lies elsewhere; ``stamp`` is another when its content is."""

    path: str
    size: int
    stamp: str


def is_url(model: str) -> bool:
    """Whether a checkpoint's place is a URL."""
    return "://" in model


def stage(url: str, *, code: bool = False) -> Path:
    """The local directory of the model at ``url`` (``s3://``, ``gs://``, ``https://`` or whatever fsspec knows).

    It is fetched where it is not here yet, by one process of this machine while the others wait, and stays as long as
    any process that asked for it runs. ``MERGEFRONT_CACHE`` names the cache's directory (default
    ``~/.cache/mergefront``), ``MERGEFRONT_CACHE_GIB`` how large it may grow (default: as large as the disk).

    Args:
        code: its Python files, too.
    Raises: CheckpointError naming the URL that cannot be listed or read; InputError where the cache has no room.
    """
    if urlsplit(url).password:
        raise CheckpointError("a checkpoint's URL must hold no password; credentials belong into the environment.")
    url = url.rstrip("/")
    files, read = _listing(url, code)
    if not files:
        raise CheckpointError(f"a checkpoint's URL must hold a model's files, but {url} holds none.")
    key = _digest(url, *(f"{name} {remote.size} {remote.stamp}" for name, remote in sorted(files.items())))
    directory = cache_directory() / "models" / key
    while not _held(directory):
        with _locked(key, fcntl.LOCK_EX):
            if not directory.is_dir():
                _fetch_all(url, files, read, directory, code=code)
    os.utime(directory)
    return directory


def cache_directory() -> Path:
    """Where staged checkpoints lie."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MERGEFRONT_CACHE") or Path(home) / "mergefront").absolute()


class _Reader:
    """A file system with a limit on its silence."""

    def __init__(self, system: Any) -> None:
        self._system = system
        self._limit = {"timeout": SILENCE} if isinstance(system, AsyncFileSystem) else {}

    def __call__(self, remote: Remote, start: int) -> bytes:
        """The next chunk from ``start`` on; all that follows where the server knows no ranges."""
        end = min(start + CHUNK, remote.size)
        data: bytes = self._system.cat_file(remote.path, start=start, end=end, **self._limit)
        return data[start:] if len(data) == remote.size else data

    def find(self, root: str) -> list[Mapping[str, Any]]:
        """The files in a directory."""
        found = self._system.ls(root, detail=True, **self._limit)
        return [entry for entry in found if entry["type"] == "file"]

    def about(self, path: str) -> Mapping[str, Any]:
        """What the server says of one file."""
        known: Mapping[str, Any] = self._system.info(path, **self._limit)
        return known


def _listing(url: str, code: bool) -> tuple[dict[str, Remote], _Reader]:
    wanted = [*WANTED, *([CODE] if code else [])]
    try:
        system, root = fsspec.core.url_to_fs(url, skip_instance_cache=True)  # its listings would be old
        read = _Reader(system)
        named = {entry["name"].rpartition("/")[2]: entry["name"] for entry in read.find(root)}
        chosen = {n: path for n, path in named.items() if n.isprintable() and any(fnmatchcase(n, p) for p in wanted)}
        return {name: _remote(path, read.about(path)) for name, path in chosen.items()}, read
    except _faults() as e:
        raise CheckpointError(f"a checkpoint's URL must be one that can be listed, but {url} cannot: {_said(e)}") from e


def _remote(path: str, about: Mapping[str, Any]) -> Remote:
    if about.get("size") is None:
        raise ValueError(f"the server does not say how long {path} is.")
    stamp = " ".join(str(about[key]) for key in _STAMPS if about.get(key))
    return Remote(path=path, size=int(about["size"]), stamp=stamp)


def _fetch_all(url: str, files: Mapping[str, Remote], read: _Reader, directory: Path, *, code: bool) -> None:
    incoming = cache_directory() / "incoming" / directory.name
    incoming.mkdir(parents=True, exist_ok=True)
    lacking = {name: remote for name, remote in files.items() if not (incoming / name).exists()}
    with _locked("cache", fcntl.LOCK_EX):
        _make_room(sum(r.size - _length(_part(incoming, name)) for name, r in lacking.items()))
    for name, remote in lacking.items():
        with no_room_named(incoming / name, left="what has come is kept, and the next try goes on from there"):
            _fetch(url, remote, read, _part(incoming, name))
        _keep(_part(incoming, name), incoming / name)
    sync_directory(incoming)
    if _listing(url, code)[0] != files:  # parts of two versions make a file that never was
        with _locked("cache", fcntl.LOCK_EX):
            _discard(incoming)
        raise CheckpointError(f"a checkpoint must stay as it is while it is fetched, but {url} has changed; try again.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    incoming.rename(directory)
    sync_directory(directory.parent)


def _fetch(url: str, remote: Remote, read: _Reader, part: Path) -> None:
    """Fill ``part`` from where it ends to the end, with patience."""
    waits = iter(_WAITS)
    with part.open("ab") as file:
        while (start := file.tell()) < remote.size:
            try:
                data = read(remote, start)
            except _faults() as e:
                _wait(url, remote, waits, _said(e))
                continue
            if not data or start + len(data) > remote.size:
                _wait(url, remote, waits, f"{len(data):,} bytes came from {start:,} on of {remote.size:,}")
                continue
            file.write(data)
            waits = iter(_WAITS)
        file.flush()
        os.fsync(file.fileno())


def _wait(url: str, remote: Remote, waits: Iterator[float], reason: str) -> None:
    seconds = next(waits, None)
    if seconds is None:
        raise CheckpointError(
            f"a checkpoint's files must be readable, but {remote.path.rpartition('/')[2]} of {url} was not in "
            f"{len(_WAITS) + 1} tries: {reason} What has come is kept; the next try goes on from there."
        )
    sleep(seconds)


def _keep(part: Path, target: Path) -> None:
    """Name the content by its digest; ``target`` is one more name of it."""
    blob = cache_directory() / "blobs" / file_digest(part)
    with _locked("cache", fcntl.LOCK_EX):
        blob.parent.mkdir(parents=True, exist_ok=True)
        if blob.exists():
            part.unlink()
        else:
            part.rename(blob)
        blob.chmod(0o444)
        target.hardlink_to(blob)


def _make_room(needed: int) -> None:
    """Clear directories that no process uses, those first that were not used for longest, until ``needed`` fits."""
    cache, limit = cache_directory(), _limit()
    unused = sorted([*cache.glob("models/*"), *cache.glob("incoming/*")], key=lambda path: path.stat().st_mtime)
    while limit is not None and _size(cache) + needed > limit:
        if not unused:
            raise InputError(
                f"the cache must have room for the checkpoints in use, but {needed:,} bytes come to {_size(cache):,} "
                f"in {cache}, and MERGEFRONT_CACHE_GIB allows {limit:,}."
            )
        _clear(unused.pop(0))
    require_room(cache, needed)


def _clear(directory: Path) -> None:
    """Remove a model, unless a process uses it."""
    try:
        with _locked(directory.name, fcntl.LOCK_EX | fcntl.LOCK_NB):
            _discard(directory)
    except BlockingIOError:
        return


def _discard(directory: Path) -> None:
    """Remove a model and the contents that no other has."""
    shutil.rmtree(directory)
    for blob in cache_directory().glob("blobs/*"):
        if blob.stat().st_nlink == 1:
            blob.unlink()


def _held(directory: Path) -> bool:
    """Use a directory from now until this process ends; whether it is there."""
    if directory not in _HELD:
        lock = _lock_file(directory.name)
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not directory.is_dir():
            os.close(lock)
            return False
        _HELD[directory] = lock
    return True


@contextmanager
def _locked(name: str, kind: int) -> Iterator[None]:
    lock = _lock_file(name)
    try:
        fcntl.flock(lock, kind)
        yield
    finally:
        os.close(lock)


def _lock_file(name: str) -> int:
    path = cache_directory() / "locks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _limit() -> int | None:
    text = os.environ.get("MERGEFRONT_CACHE_GIB")
    if not text:
        return None
    try:
        return int(float(text) * (1 << 30))
    except ValueError:
        raise InputError(f"MERGEFRONT_CACHE_GIB must be a number of GiB, but is {text!r}.") from None


def _size(cache: Path) -> int:
    parts = [*cache.glob("blobs/*"), *cache.glob("incoming/*/.*")]
    return sum(path.stat().st_size for path in parts)


def _part(incoming: Path, name: str) -> Path:
    return incoming / f".{name}.part"


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


def _faults() -> tuple[type[Exception], ...]:
    """What file systems of fsspec raise; ImportError where the package for a kind of URL is missing."""
    theirs = [vars(sys.modules[module])[name] for module, name in _THEIRS if module in sys.modules]
    return (OSError, aiohttp.ClientError, ImportError, ValueError, *theirs)


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())[:_SAID].rstrip(".") or type(error).__name__
    if isinstance(error, ImportError):
        return f"{text} (`pip install mergefront[cloud]` for S3 and Google's storage)."
    return f"not found: {text}." if isinstance(error, FileNotFoundError) else f"{text}."
