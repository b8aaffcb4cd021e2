"""Which database: the one named, the environment's, or the working directory's. Imports nothing heavy."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.database import parse_url
from storage.store import Store, Summary

DEFAULT_STORAGE = "sqlite:///mergefront.db"


def storage_url(storage: str | None = None) -> str:
    """The URL of the database that a command works on."""
    return storage or os.environ.get("MERGEFRONT_STORAGE") or DEFAULT_STORAGE


def absolute_url(url: str) -> str:
    """The same database, named so that a process with another working directory finds it."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database and parsed.database != ":memory:":
        parsed = parsed.set(database=str(Path(parsed.database).absolute()))
    return parsed.render_as_string(hide_password=False)


@contextmanager
def open_store(storage: str | None = None, *, create: bool = False) -> Iterator[Store]:
    """The database at ``storage``, closed at the end."""
    store = Store.open(storage_url(storage), create=create)
    try:
        yield store
    finally:
        store.close()


def studies(*, storage: str | None = None) -> list[Summary]:
    """Every study in the database, oldest first."""
    with open_store(storage) as store:
        return store.studies()
