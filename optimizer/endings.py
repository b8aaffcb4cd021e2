"""How a command ends: an exit code, and a sentence where it did not end well."""

from collections.abc import Callable
from dataclasses import dataclass

from search_spaces.errors import InputError

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The exit code of a command, and what is to be said."""

    code: int
    message: str = ""


def ending_of(command: Callable[[], int]) -> Ending:
    """Run a command. What is neither the user's nor the run's fault is ours, and is raised."""
    try:
        return Ending(code=command())
    except InputError as e:
        return Ending(code=WRONG_INPUT, message=_said(e))
    except KeyboardInterrupt:
        return Ending(code=INTERRUPTED, message="interrupted; the study is kept, `mergefront resume` goes on with it.")
    except _run_errors() as e:
        return Ending(code=FAILED, message=_said(e))


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _run_errors() -> tuple[type[Exception], ...]:
    # Imported when something was raised: listing studies must not pay for torch, Ray and BoTorch.
    from sqlalchemy.exc import SQLAlchemyError

    from optimizer.api import StudyFailed
    from optimizer.export import ExportError
    from optimizer.hub import PushError
    from optimizer.patience import DatabaseGone
    from optimizer.tracking.tracker import TrackerError
    from storage.errors import LeaseError
    from storage.files import NoRoom
    from workers.errors import EngineDied
    from workers.pool import PoolError

    ours = (StudyFailed, ExportError, PoolError, EngineDied, DatabaseGone, LeaseError, NoRoom, TrackerError, PushError)
    return (*ours, SQLAlchemyError, OSError)
