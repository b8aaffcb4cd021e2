"""Opening a database: which URL, is it ours, is its schema the one this version knows."""

import logging
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

from storage.errors import StoreError

VERSION_TABLE = "mergefront_alembic_version"
_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_SECONDS = 30


def parse_url(url: str) -> sa.URL:
    """The database URL; PostgreSQL without a driver gets psycopg (version 3). Raises :class:`StoreError`."""
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        raise StoreError("--storage must be a database URL such as sqlite:///mergefront.db.") from None
    backend = parsed.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise StoreError(f"--storage must be a sqlite or postgresql URL, but got {show(parsed)}.")
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    return parsed


def show(url: sa.URL) -> str:
    """The URL with its password hidden, for messages."""
    return url.render_as_string(hide_password=True)


def connect(url: sa.URL, *, create: bool) -> sa.Engine:
    """An engine on a database that is ours and up to date.

    Args:
        create: make the tables (and the SQLite file) where there are none; otherwise that is an error.
    Raises: StoreError for a database that is missing, not ours, newer than this version, or out of reach.
    """
    path = Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
    if path is not None and not create and not path.exists():
        raise StoreError(f"the database must exist, but there is no file {path}.")
    try:
        engine = make_engine(url)
        _prepare(engine, url, create)
    except ModuleNotFoundError as e:
        raise StoreError(f"{show(url)} needs the package {e.name}: pip install 'mergefront[postgresql]'.") from e
    except (DatabaseError, NoSuchModuleError) as e:
        cause = getattr(e, "orig", None) or e
        raise StoreError(f"the database must open, but {show(url)} did not: {_first_line(cause)}.") from e
    return engine


def engine_options(url: sa.URL) -> dict[str, object]:
    """What every engine on this URL is made with, Optuna's included."""
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": _BUSY_SECONDS}}
    return {"pool_pre_ping": True}


def clock(engine: sa.Engine) -> sa.ColumnElement[float]:
    """Seconds since 1970 by the database's own clock: drivers on two machines need not agree about the time."""
    if engine.dialect.name == "sqlite":
        return (sa.func.julianday("now", type_=sa.Double) - 2440587.5) * 86400.0
    return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)


def make_engine(url: sa.URL) -> sa.Engine:
    """An engine; SQLite with foreign keys, and in WAL mode so that readers never wait for the driver."""
    engine = sa.create_engine(url, **engine_options(url))
    if url.get_backend_name() == "sqlite":
        sa.event.listen(engine, "connect", _sqlite_pragmas)
    return engine


def _sqlite_pragmas(connection: object, _record: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]  # a DB-API connection has no common type
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.close()


def _prepare(engine: sa.Engine, url: sa.URL, create: bool) -> None:
    with engine.connect() as connection:
        tables = sa.inspect(connection).get_table_names()
        revision = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
    if revision is None and (tables or not create):
        found = f"holds {', '.join(sorted(tables)[:4])}" if tables else "is empty"
        raise StoreError(f"the database must be one that mergefront wrote, but {show(url)} {found}.")
    scripts = ScriptDirectory(str(_MIGRATIONS))
    if revision == scripts.get_current_head():
        return
    if revision is not None and revision not in {s.revision for s in scripts.walk_revisions()}:
        raise StoreError(
            "the database must not be newer than this version of mergefront, "
            f"but {show(url)} is at schema {revision} and this version knows {scripts.get_current_head()}."
        )
    _upgrade(engine)


def _upgrade(engine: sa.Engine) -> None:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            # Else each table would be there at once, and a kill would leave a database that nobody wrote whole.
            connection.exec_driver_sql("BEGIN")
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as e:
            raise StoreError(f"the database's schema must be upgradable, but {e}.") from e


def _first_line(error: BaseException | str) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
