"""A database that goes away for a while: tried again for two minutes, then what was measured is kept on disk."""

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Final, TypeVar

from optuna.exceptions import StorageInternalError
from pydantic import TypeAdapter
from sqlalchemy.exc import InterfaceError, OperationalError

from storage.files import whole_file
from storage.records import Failed, Measured, Outcome

UNREACHABLE: Final = (OperationalError, InterfaceError, StorageInternalError)
"""What a database that is gone, locked or full raises, through SQLAlchemy and through Optuna."""

PATIENCE_SECONDS = 120.0

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
_OUTCOMES: TypeAdapter[Outcome] = TypeAdapter(Outcome)


class DatabaseGone(Exception):  # noqa: N818 (it is the database that is gone)
    """The database stayed out of reach; outcomes wait on disk and the study can be resumed."""


def patiently(action: Callable[[], _Result], *, before_again: Callable[[], None] = lambda: None) -> _Result:
    """The action's result, tried again with growing pauses while the database is out of reach.

    Args:
        before_again: puts right what an attempt may have left half done.
    Raises: the last of UNREACHABLE after PATIENCE_SECONDS.
    """
    begun, pause, again = monotonic(), 0.25, False
    while True:
        try:
            if again:
                before_again()
            return action()
        except UNREACHABLE as e:
            if monotonic() - begun + pause > PATIENCE_SECONDS:
                raise
            _log.warning("the database is out of reach, trying again in %.2g s: %s", pause, first_line(e))
            sleep(pause)
            pause, again = min(2 * pause, 16.0), True


class Spool:
    """Outcomes that wait for their database, a file each: ``$XDG_STATE_HOME/mergefront/spool/<study>-<database>``."""

    def __init__(self, study: str, database: str) -> None:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        name = f"{study}-{hashlib.sha256(database.encode()).hexdigest()[:12]}"
        self.directory = state / "mergefront" / "spool" / name

    def put(self, outcome: Outcome) -> None:
        """Keep an outcome."""
        kind = "measured" if isinstance(outcome, Measured) else "failed"
        with whole_file(self.directory / f"{outcome.number}-{outcome.split}-{kind}.json") as file:
            file.write(_OUTCOMES.dump_json(outcome))

    def waiting(self) -> list[tuple[Path, Outcome]]:
        """What waits, by file; a file goes when its outcome is in the database."""
        found = sorted(self.directory.glob("*.json"))
        return [(path, _read(path)) for path in found]


def first_line(error: BaseException) -> str:
    """What a driver says first; SQLAlchemy adds the statement below it."""
    return str(getattr(error, "orig", None) or error.__cause__ or error).strip().split("\n")[0]


def _read(path: Path) -> Outcome:
    text = path.read_bytes()
    if path.stem.endswith("measured"):
        return TypeAdapter(Measured).validate_json(text)
    return TypeAdapter(Failed).validate_json(text)
