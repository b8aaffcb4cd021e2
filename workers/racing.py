"""Racing: which items come first, and when what was seen of them says that a candidate need not answer the rest.

Pure functions of numbers. A candidate is compared with every member of the current front on the same items, cluster by
cluster (translations of one prompt are one cluster). It stops where one member is ahead in every objective, or a
constraint is not met, at the confidence that the study asks for.

The chance that a candidate which belongs on the front is stopped by mistake is at most 1 - confidence, over all looks,
rivals and objectives together:

- "Behind in every objective" is an intersection-union test: each objective at the full level (Berger 1982).
- "Behind one of the rivals" is Simes's test of the hypothesis that it is behind none (Simes 1986). It holds for tests
  that go up and down together (Sarkar 1998), as comparisons of one candidate with many do; many rivals of a kind then
  cost little, where Bonferroni would divide the level by their number.
- Looks share the level equally, and so do domination and constraints where a study has both (the union bound: what
  is spent never exceeds the level, however the looks depend on one another).
- Differences of 0/1 values count with half an observation more in each of the four cells of their table (Agresti & Min
  2005), means with one success and one failure more (Agresti & Coull 1998): five equal answers are not certainty.

That is said of the front as it was measured. Members that were lucky on these items are harder to beat than they should
be; nothing that is paired on the same items can see that.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr

from workers.suites import Item

Array = npt.NDArray[np.float64]

RUNGS = (0.1, 0.25, 0.5)
"""Shares of the items after which a candidate is looked at; the last rung is everything, and is no look."""

_LEAST = 2
"""Clusters of a kind that the first rung holds, where there are so many: one has no spread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a study races.

    Attributes:
        confidence: at least this share of the candidates that belong on the front are never stopped.
        seed: of the order of items. rungs: see `RUNGS`.
    """

    confidence: float
    seed: int = 0
    rungs: tuple[float, ...] = RUNGS


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """By how much a candidate is better: than rivals in one objective, or than a constraint asks; below 0 it is worse.

    Attributes:
        mean: ``(...)``. parts: ``(..., clusters)``, each cluster's part in it (for plain means their sum is the mean).
        kinds: ``(clusters,)``, equal numbers for clusters that differ by chance alone.
        pseudo: sum, and sum of squares, of the two observations that are added; None where values have no bounds.
            With bounds, gaps are shares of their width.
    """

    mean: Array
    parts: Array
    kinds: npt.NDArray[np.intp]
    pseudo: tuple[float, float] | None


def lay_rungs(suites: Mapping[str, Sequence[Item]], rules: Rules) -> list[dict[str, list[int]]]:
    """Places of the items, by suite, that have been asked when each rung ends: nested, the last is everything.

    The order is one permutation of the groups, drawn by the seed, so translations stay together. Every rung holds the
    same share of each suite and of each kind of group (its languages and labels), the first at least two groups of
    each; so each has every language and label that there is.
    """
    found: list[dict[str, list[int]]] = []
    ordered = {key: _by_kind(items, rules.seed) for key, items in suites.items()}
    for share in (*rules.rungs, 1.0):
        rung = {key: sorted(p for kind in kinds for p in _first(kind, share)) for key, kinds in ordered.items()}
        if not found or rung != found[-1]:
            found.append(rung)
    return found


def behind(gap: Gap) -> Array:
    """P-values ``(...)`` of the hypothesis that the candidate is at least as good: small where it is surely worse.

    Student's t on clusters within their kinds, degrees of freedom the clusters less the kinds.
    """
    clusters, count = gap.parts.shape[-1], np.bincount(gap.kinds)
    spread = _within(gap.parts, gap.kinds, count)
    pseudo, n = (gap.pseudo, clusters + 2) if gap.pseudo else ((0.0, 0.0), clusters)
    mean = (clusters * gap.mean + pseudo[0]) / n
    squares = clusters**2 * spread + clusters * gap.mean**2 + pseudo[1]
    stderr = np.sqrt(np.maximum(squares / n - mean**2, 0.0) / n)
    free = max(clusters - np.count_nonzero(count), 1)
    certain = np.where(mean < 0.0, 0.0, 1.0)
    return np.where(stderr > 0.0, stdtr(free, mean / np.where(stderr > 0.0, stderr, 1.0)), certain)


def dominated(p_values: Array, level: float) -> npt.NDArray[np.bool_]:
    """Whether one rival is ahead in every objective, for p-values ``(..., rivals, objectives)`` of `behind`.

    Simes's test over rivals of the intersection-union test over objectives.
    """
    rivals = p_values.shape[-2]
    ordered = np.sort(p_values.max(axis=-1), axis=-1)
    return np.asarray((ordered <= level * np.arange(1, rivals + 1) / rivals).any(axis=-1))


def verdict(
    gaps: Sequence[Gap], numbers: Sequence[int], constraints: Mapping[str, Gap], *, rules: Rules, looks: int
) -> str:
    """Why the candidate stops, in words; empty where it goes on.

    Args:
        gaps: one an objective, each ``(rivals,)``. numbers: the rivals' trials. constraints: by name, each ``()``.
        looks: how many there are in the whole race.
    """
    level = (1.0 - rules.confidence) / looks / (2 if constraints and numbers else 1)
    for name, gap in constraints.items():
        if behind(gap) <= level / len(constraints):
            return f"{name} not met"
    if numbers and gaps:
        p_values = np.stack([behind(gap) for gap in gaps], axis=-1)
        if dominated(p_values, level):
            return f"dominated by trial {numbers[int(p_values.max(axis=-1).argmin())]}"
    return ""


def _within(parts: Array, kinds: npt.NDArray[np.intp], count: npt.NDArray[np.intp]) -> Array:
    """Sum of squares ``(...)`` about the mean of each kind, made whole for the degree of freedom that this costs."""
    member = np.eye(len(count))[kinds]
    centre = parts @ member / np.maximum(count, 1)
    bessel = count / np.maximum(count - 1, 1)
    return np.asarray((((parts - centre[..., kinds]) ** 2) * bessel[kinds]).sum(axis=-1))


def _by_kind(items: Sequence[Item], seed: int) -> list[list[list[int]]]:
    """Kinds of groups, each its groups in drawn order, each its items' places."""
    groups: dict[str, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        groups[item.group or item.id].append(place)
    kinds: dict[frozenset[tuple[str, str | None]], list[str]] = defaultdict(list)
    for name, places in groups.items():
        kinds[frozenset((items[p].lang, items[p].label) for p in places)].append(name)
    return [[groups[name] for name in sorted(names, key=lambda n: _drawn(seed, n))] for names in kinds.values()]


def _first(groups: Sequence[Sequence[int]], share: float) -> list[int]:
    return [p for group in groups[: max(ceil(share * len(groups)), _LEAST)] for p in group]


def _drawn(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode()).digest()
