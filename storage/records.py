"""Frozen records that travel between driver, workers and store. They hold no handles."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from search_spaces.recipe import Recipe

__all__ = ["SPLITS", "Assignment", "Failed", "Marks", "Measured", "Outcome", "Recipe", "Score"]

SPLITS = ("search", "validation", "report")
"""Disjoint sets of items: the search sees the first, validation picks, report reports."""

Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A mean that never travels without its standard error and its n.

    ``n`` counts the items that were marked, ``unscored`` those that could not be.
    """

    mean: float
    stderr: float
    n: int
    unscored: int = 0

    def interval(self, bounds: tuple[float, float] | None = None) -> tuple[float, float]:
        """The normal 95 % interval, cut off at ``bounds`` where values cannot lie outside them."""
        low, high = self.mean - Z95 * self.stderr, self.mean + Z95 * self.stderr
        return (low, high) if bounds is None else (max(low, bounds[0]), min(high, bounds[1]))

    def to_json(self) -> dict[str, float | int]:
        """``{"mean", "stderr", "n", "unscored"}``."""
        return {"mean": self.mean, "stderr": self.stderr, "n": self.n, "unscored": self.unscored}

    @classmethod
    def from_json(cls, document: Mapping[str, float]) -> "Score":
        """Read what :meth:`to_json` wrote."""
        return cls(
            mean=document["mean"],
            stderr=document["stderr"],
            n=int(document["n"]),
            unscored=int(document["unscored"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What came of every item of one suite; the four columns run in the suite's fixed order.

    A value of None is *unscored*. ``verdicts`` holds the scorer's word for it (refused, correct ...), ``outputs``
    what the model wrote, where it wrote something.
    """

    ids: tuple[str, ...]
    values: tuple[float | None, ...]
    verdicts: tuple[str | None, ...]
    outputs: tuple[str | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What goes out to a worker: which trial, which recipe, which items."""

    number: int
    recipe: Recipe
    split: str = "search"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """An assignment that ran to the end.

    Attributes:
        scores: objective to score. breakdown: objective to named parts of it (a language, a rate of refusal).
        marks: suite key to its items' outcomes. digest: of every tensor of the merge, in its order.
        seconds: wall seconds by stage (merge, forward, total). worker: who measured.
        stopped: why it ended before its last item; empty where every item was asked.
        verdicts: what judges said that was not known before, by the digest of what they were asked.
    """

    number: int
    recipe: Recipe
    split: str
    scores: Mapping[str, Score]
    breakdown: Mapping[str, Mapping[str, Score]]
    marks: Mapping[str, Marks]
    digest: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    worker: str = ""
    stopped: str = ""
    verdicts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """An assignment that did not: the reason in one line, and the traceback where the fault is ours."""

    number: int
    recipe: Recipe
    split: str
    reason: str
    traceback: str = ""
    worker: str = ""


Outcome = Measured | Failed
