"""What a file's content is known by: its digest, and the stamps by which a file system tells that it has changed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.files import file_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """Digest (hex) of a file's content, its bytes, and the time of its last change in nanoseconds since 1970."""

    digest: str
    size: int
    mtime: int

    @classmethod
    def of(cls, path: Path, known: "FileRecord | None" = None) -> "FileRecord":
        """A file's record. One whose size and time are those of ``known`` is taken to be the same and is not read."""
        found = os.stat(path)
        if known is not None and (known.size, known.mtime) == (found.st_size, found.st_mtime_ns):
            return known
        return cls(digest=file_digest(path), size=found.st_size, mtime=found.st_mtime_ns)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a study's notes."""
        return {"digest": self.digest, "size": self.size, "mtime": self.mtime}


FileRecords = Mapping[str, FileRecord]
"""By the file's name."""


class Stamps:
    """Which version of some files was there at a time, as far as a file system tells."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._found = {name: _stamp(path) for name, path in paths.items()}

    def changed(self, known: FileRecords) -> Path | None:
        """The first file that is another one now; None where there is none. What was only touched, so that its content
        is still the one that is ``known``, is not another one.
        """
        for name, path in self._paths.items():
            now = _stamp(path)
            if now == self._found[name]:
                continue
            if now is None or name not in known or file_digest(path) != known[name].digest:
                return path
            self._found[name] = now
        return None


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """None where the file is not there."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
