"""Who is told how far things are."""

from collections.abc import Callable
from dataclasses import dataclass

from storage.records import Outcome


@dataclass(frozen=True, slots=True)
class Watcher:
    """Two verbs: a stage with (done, total), and every outcome as it comes."""

    stage: Callable[[str, int, int], None] = lambda _name, _done, _total: None
    outcome: Callable[[Outcome], None] = lambda _outcome: None


NOBODY = Watcher()
