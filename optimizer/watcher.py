"""Who is told how far things are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from storage.records import Outcome

if TYPE_CHECKING:
    from optimizer.board import Board


@dataclass(frozen=True, slots=True)
class Watcher:
    """Three verbs: a stage with (done, total), every outcome as it comes, and a search's board when it begins."""

    stage: Callable[[str, int, int], None] = lambda _name, _done, _total: None
    outcome: Callable[[Outcome], None] = lambda _outcome: None
    board: Callable[[Board], None] = lambda _board: None


NOBODY = Watcher()
