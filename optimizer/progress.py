"""Progress on stderr: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from time import monotonic
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from optimizer.watcher import Watcher
from storage.records import Failed, Outcome

if TYPE_CHECKING:
    from optimizer.board import Board

_LINE_SECONDS = 5.0
_PLOT_LINES = 16
_WORKERS = 6
"""Workers that are listed one by one."""


class LiveView:
    """Bars by stage; while a search runs, below them its figures, the front so far and what each worker does.

    It is drawn twice a second in a thread of its own, which reads the board and nothing else.
    """

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._console = console
        self._progress = Progress(*columns, console=console)
        self._tasks: dict[str, TaskID] = {}
        self._board: Board | None = None

    def stage(self, name: str, done: int, total: int) -> None:
        """A bar a stage; one that is done stays as a line with its time."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)

    def outcome(self, outcome: Outcome) -> None:
        """Failures stay on the screen, above the view."""
        if isinstance(outcome, Failed):
            self._console.print(f"trial {outcome.number} failed: {outcome.reason}", markup=False)

    def board(self, board: Board) -> None:
        """A search begins."""
        self._board = board

    def __rich__(self) -> RenderableType:
        if self._board is None:
            return self._progress
        return Group(self._progress, _figures(self._board), *self._front(self._board), _workers(self._board))

    def _front(self, board: Board) -> list[Text]:
        """The plot, where the terminal is high enough to hold it with everything else."""
        from optimizer.report.figures import with_close_up
        from optimizer.terminal_plot import plot

        figure = board.figure()
        height = min(self._console.height - len(self._tasks) - _WORKERS - 5, _PLOT_LINES)
        if figure is None or height < _PLOT_LINES // 2:
            return []
        width = min(self._console.width, 100)
        return [plot(with_close_up(figure)[-1], width=width, height=height)]


class _Lines:
    """A line when a stage begins and ends, and every few seconds between."""

    def __init__(self) -> None:
        self._begun: dict[str, float] = {}
        self._last = 0.0
        self._board: Board | None = None

    def stage(self, name: str, done: int, total: int) -> None:
        now = monotonic()
        begins = name not in self._begun
        begun = self._begun.setdefault(name, now)
        if not begins and done < total and now - self._last < _LINE_SECONDS:
            return
        self._last = now
        left = f", {(now - begun) / done * (total - done):.0f} s left" if 0 < done < total and now > begun else ""
        more = f", {_figures(self._board)}" if self._board is not None and name == "trials" and done else ""
        print(f"{name}: {done} of {total}{left}{more}", file=sys.stderr, flush=True)

    def outcome(self, outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            print(f"trial {outcome.number} failed: {outcome.reason}", file=sys.stderr, flush=True)

    def board(self, board: Board) -> None:
        self._board = board


def _figures(board: Board) -> str:
    busy = sum(worker.doing != "idle" for worker in board.workers())
    return f"{board.failed} failed, {busy} running, hypervolume {board.hypervolume():.4g} as measured"


def _workers(board: Board) -> Table:
    table = Table(box=None, show_header=False)
    workers = board.workers()
    for worker in workers[:_WORKERS]:
        table.add_row(Text(worker.worker), Text(worker.doing), f"{worker.seconds:.0f} s" if worker.seconds else "")
    if len(workers) > _WORKERS:
        table.add_row(f"and {len(workers) - _WORKERS} more", "", "")
    return table


@contextmanager
def watching() -> Iterator[Watcher]:
    """A watcher that shows on stderr how far things are. Whatever libraries print meanwhile goes there, too."""
    with redirect_stdout(sys.stderr):  # Ray tells of dead workers on stdout, where machines read
        yield from _watching()


def _watching() -> Iterator[Watcher]:
    console = Console(stderr=True)
    if not console.is_terminal:
        lines = _Lines()
        yield Watcher(stage=lines.stage, outcome=lines.outcome, board=lines.board)
        return
    view = LiveView(console)
    with Live(view, console=console, refresh_per_second=2, vertical_overflow="crop"):
        yield Watcher(stage=view.stage, outcome=view.outcome, board=view.board)
