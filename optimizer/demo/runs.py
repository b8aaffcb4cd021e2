"""What one training run is."""

from collections.abc import Mapping
from dataclasses import dataclass

from optimizer.demo.language import LANGUAGES


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run: what it trains on and how long.

    `tasks` holds how often each task is drawn, in any unit; `start` names the checkpoint to go on from, None for random
    weights, in a model of so many attention `heads`.
    """

    name: str
    tasks: Mapping[str, float]
    steps: int
    batch: int
    learning_rate: float
    languages: tuple[str, ...] = LANGUAGES
    start: str | None = "base"
    heads: int = 4

    @property
    def examples(self) -> int:
        """How many examples the run sees."""
        return self.steps * self.batch
