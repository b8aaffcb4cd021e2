"""Frozen records that travel between driver, workers and store. They hold no handles."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

from search_spaces.recipe import Recipe

__all__ = ["FURTHER", "SPLITS", "Assignment", "Failed", "Marks", "Measured", "Outcome", "Recipe", "Rival", "Score"]

SPLITS = ("search", "validation", "report")
"""Disjoint sets of items: the search sees the first, validation picks, report reports."""

FURTHER = "further"
"""Items of the search's set beyond those that every trial answers: a finalist's second look."""

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
        """The 95 % interval: Wilson's (1927) where values have ``bounds``, else the normal one.

        Wilson's n is the effective one, as many independent yes-or-no items as would have this standard error. So
        clusters and weights count, and near a bound the interval leans inwards instead of ending there.
        """
        low, high = bounds or (0.0, 0.0)
        if bounds is None or self.stderr <= 0.0 or not low <= self.mean <= high:
            return self.mean - Z95 * self.stderr, self.mean + Z95 * self.stderr
        width = high - low
        share, error = (self.mean - low) / width, self.stderr / width
        spread = share * (1 - share)
        # At a bound the standard error is the floor for values that do not vary, 1 / (n + 2).
        effective = max(spread / error**2 if spread > 1e-12 else 1 / error - 2, 1.0)
        shrink = 1 + Z95**2 / effective
        centre = (share + Z95**2 / (2 * effective)) / shrink
        margin = Z95 / shrink * sqrt(spread / effective + (Z95 / (2 * effective)) ** 2)
        # Rounding must neither leave the mean out nor the bounds.
        lower, upper = low + width * (centre - margin), low + width * (centre + margin)
        return max(min(lower, self.mean), low), min(max(upper, self.mean), high)

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
class Rival:
    """A member of the front: the values of all its items, by suite key, in the suites' order."""

    number: int
    values: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What goes out to a worker: which trial, which recipe, which items.

    ``rivals`` are the members of the front that it races against; None where it is not raced but asked everything.
    """

    number: int
    recipe: Recipe
    split: str = "search"
    rivals: tuple[Rival, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """An assignment that ran to the end.

    Attributes:
        scores: objective to score. breakdown: objective to named parts of it (a language, a rate of refusal).
        marks: suite key to its items' outcomes. digest: of every tensor of the merge, in its order.
        seconds: wall seconds by stage (prepare, merge, forward, total), and ``gpu``: total times the worker's GPUs.
            worker: who measured.
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
