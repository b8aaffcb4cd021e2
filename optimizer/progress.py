"""Progress on stderr: a bar with time left on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from optimizer.watcher import Watcher
from storage.records import Failed, Outcome

_LINE_SECONDS = 5.0


class _Bars:
    """One bar a stage; a stage that is done stays as a line with its time."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def stage(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)

    def outcome(self, outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            self._progress.console.print(f"trial {outcome.number} failed: {outcome.reason}", markup=False)


class _Lines:
    """A line when a stage begins and ends, and every few seconds between."""

    def __init__(self) -> None:
        self._begun: dict[str, float] = {}
        self._last = 0.0

    def stage(self, name: str, done: int, total: int) -> None:
        now = monotonic()
        begins = name not in self._begun
        begun = self._begun.setdefault(name, now)
        if not begins and done < total and now - self._last < _LINE_SECONDS:
            return
        self._last = now
        left = f", {(now - begun) / done * (total - done):.0f} s left" if 0 < done < total and now > begun else ""
        print(f"{name}: {done} of {total}{left}", file=sys.stderr, flush=True)

    def outcome(self, outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            print(f"trial {outcome.number} failed: {outcome.reason}", file=sys.stderr, flush=True)


@contextmanager
def watching() -> Iterator[Watcher]:
    """A watcher that shows on stderr how far things are. Whatever libraries print meanwhile goes there, too."""
    with redirect_stdout(sys.stderr):  # Ray tells of dead workers on stdout, where machines read
        yield from _watching()


def _watching() -> Iterator[Watcher]:
    console = Console(stderr=True)
    if not console.is_terminal:
        lines = _Lines()
        yield Watcher(stage=lines.stage, outcome=lines.outcome)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bars = _Bars(progress)
        yield Watcher(stage=bars.stage, outcome=bars.outcome)
