"""How large a replay is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """All that tells a full replay from a short one.

    Attributes:
        seeds: training seeds. base_steps: of the base that all families share. steps: of all other runs, as a share
            of what the papers' runs say. trials: of every study, as a share of what it asks for.
        items: of each skill and language, by split; "report" holds the fresh ones.
    """

    seeds: tuple[int, ...]
    base_steps: int
    steps: float
    trials: float
    items: dict[str, int]

    def run_steps(self, full: int) -> int:
        """How many steps a run of ``full`` steps has."""
        return max(2, round(self.steps * full))

    def study_trials(self, full: int, *, least: int) -> int:
        """How many trials a study of ``full`` trials has; ``least`` is what its baselines need."""
        return max(least, round(self.trials * full))


FULL = Size(
    seeds=(0, 1, 2),
    base_steps=1000,
    steps=1.0,
    trials=1.0,
    items={"search": 20, "validation": 20, "report": 50},
)
SHORT = Size(seeds=(0,), base_steps=120, steps=0.05, trials=0.1, items={"search": 2, "validation": 2, "report": 4})
