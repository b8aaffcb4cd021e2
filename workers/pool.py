"""A pool is two verbs: submit an assignment, wait for outcomes. The loop does not know who does the work."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from storage.records import Assignment, Outcome
from workers.worker import Worker


class PoolError(Exception):
    """No worker is left that could go on; the study is kept and can be resumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """A worker and what it does. ``seconds`` is how long it has done so."""

    worker: str
    doing: str
    seconds: float = 0.0


class Pool(Protocol):
    """Workers, wherever they are."""

    @property
    def room(self) -> int:
        """How many assignments can be submitted now without any of them waiting for a worker."""
        ...

    def submit(self, assignment: Assignment) -> None:
        """Hand out an assignment."""
        ...

    def finished(self) -> list[Outcome]:
        """Wait until a submitted assignment has an outcome, or there is more room; return the outcomes there are.

        Raises: PoolError where no worker is left.
        """
        ...

    def workers(self) -> list[Busy]:
        """Every worker and what it does; may be asked from another thread."""
        ...

    def close(self) -> None:
        """End every worker."""
        ...


class LocalPool:
    """One worker in this process: for exports, checks and tests."""

    def __init__(self, make: Callable[[], Worker]) -> None:
        self._worker = make()
        self._waiting: list[Assignment] = []

    @property
    def room(self) -> int:
        """One at a time."""
        return 1 - len(self._waiting)

    def submit(self, assignment: Assignment) -> None:
        """Keep it until somebody waits for it."""
        self._waiting.append(assignment)

    def finished(self) -> list[Outcome]:
        """Do what was submitted."""
        done = [self._worker.run(assignment) for assignment in self._waiting]
        self._waiting.clear()
        return done

    def workers(self) -> list[Busy]:
        """The one worker: whoever asks finds it waiting, or asks from another thread."""
        doing = described(self._waiting[0]) if self._waiting else "idle"
        return [Busy(worker="this process", doing=doing)]

    def close(self) -> None:
        """Nothing to end."""


def described(assignment: Assignment) -> str:
    """``trial 41``, and the split where it is not the search's."""
    split = "" if assignment.split == "search" else f", {assignment.split} split"
    return f"trial {assignment.number}{split}"
