"""Copies of a SQLite database while it is in use, and the way back. PostgreSQL has pg_dump and pg_restore for that."""

import sqlite3
from contextlib import closing
from pathlib import Path

from storage.database import VERSION_TABLE, parse_url, show
from storage.errors import StoreError
from storage.files import require_room, whole_new_file

_BUSY_SECONDS = 30.0
_PAGES = 1024


def backup(url: str, out: Path) -> None:
    """Copy the database at ``url`` to the file ``out``, as it stands at one moment, also while a driver writes to it.

    The file appears when it is complete and its integrity has been checked (SQLite's online backup).

    Raises: StoreError where the database is no SQLite, is not there, not ours or broken, or ``out`` exists; NoRoom.
    """
    source = _file(url, "pg_dump --format=custom --file=FILE")
    if not source.is_file():
        raise StoreError(f"the database must exist, but there is no file {source}.")
    _copy(source, out)


def restore(file: Path, url: str) -> None:
    """Make the database at ``url`` out of a backup; nothing that exists is overwritten.

    Raises: StoreError where ``file`` is no sound backup, the database exists or is no SQLite; NoRoom.
    """
    target = _file(url, "pg_restore --dbname=URL")
    if not file.is_file():
        raise StoreError(f"the backup must be a file, but there is no {file}.")
    leftover = [p for p in (Path(f"{target}-wal"), Path(f"{target}-journal")) if p.exists()]
    if leftover:  # SQLite would play it back into the restored database
        raise StoreError(f"a database is restored to where none is, but there is {leftover[0]}.")
    _copy(file, target)


def _file(url: str, instead: str) -> Path:
    parsed = parse_url(url)
    if parsed.get_backend_name() != "sqlite":
        raise StoreError(f"only SQLite is copied here, but got {show(parsed)}; PostgreSQL has `{instead}`.")
    if not parsed.database or parsed.database == ":memory:":
        raise StoreError(f"the database must be a file, but {show(parsed)} is none.")
    return Path(parsed.database)


def _copy(source: Path, target: Path) -> None:
    """A sound copy of ``source`` that is one file and needs no other beside it."""
    if target.exists() or target.is_symlink():
        raise StoreError(f"the file to write must not exist, but {target} does.")
    parts = [p for p in (source, Path(f"{source}-wal")) if p.exists()]
    require_room(target, sum(p.stat().st_size for p in parts))
    try:
        with (
            whole_new_file(target) as staging,
            closing(_open(source)) as reading,
            closing(sqlite3.connect(staging)) as writing,
        ):
            _require_ours(reading, source)
            reading.backup(writing, pages=_PAGES)
            writing.execute("PRAGMA journal_mode = DELETE")
            _require_sound(writing, source)
    except sqlite3.Error as e:
        raise StoreError(f"the database must be sound and open, but {source} is not: {e}.") from e
    except FileExistsError:
        raise StoreError(f"the file to write must not exist, but {target} does.") from None


def _open(path: Path) -> sqlite3.Connection:
    """For reading; ``mode=rw`` since a database in WAL mode needs its own lock file, and never makes a new one."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=_BUSY_SECONDS)


def _require_ours(connection: sqlite3.Connection, path: Path) -> None:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if VERSION_TABLE not in tables:
        found = ", ".join(sorted(tables)[:4]) or "no table"
        raise StoreError(f"the database must be one that mergefront wrote, but {path} holds {found}.")


def _require_sound(connection: sqlite3.Connection, source: Path) -> None:
    found = [text for (text,) in connection.execute("PRAGMA integrity_check(3)")]
    if found != ["ok"]:
        raise StoreError(f"the database must be sound, but SQLite finds in {source}: {'; '.join(found)}.")
