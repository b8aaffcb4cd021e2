"""What one training run is."""

from collections.abc import Mapping
from dataclasses import dataclass

from optimizer.demo.language import DEMO, World


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run: what it trains on and how long.

    `tasks` holds how often each task is drawn, in any unit; `start` names the run whose checkpoint to go on from, None
    for random weights, in a model of so many attention `heads`. `data` is how many different examples there are, which
    are then seen again and again; None where each is drawn anew. With `beta` it trains on pairs of answers by direct
    preference optimisation (Rafailov et al. 2023, arXiv:2305.18290), held to its start; else on the answers.
    """

    name: str
    tasks: Mapping[str, float]
    steps: int
    batch: int
    learning_rate: float
    languages: tuple[str, ...] = DEMO.languages
    start: str | None = "base"
    heads: int = 4
    data: int | None = None
    beta: float | None = None
    world: World = DEMO

    @property
    def examples(self) -> int:
        """How many examples the run sees, those that come again included."""
        return self.steps * self.batch
