"""Synthetic families of checkpoints, whose truth is a formula.

Every checkpoint is a random task vector; every objective has its own optimum among their mixes and falls off with the
squared distance from it, through a sigmoid that is steep for the first objective (a refusal cliff) and gentle for the
others. What a sampler sees is a rate over 200 items (binomial noise) and its standard error. The reference point is the
lower quartile of random mixes in each objective.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from optuna.study import StudyDirection

from optimizer.front import hypervolume, non_dominated

Array = npt.NDArray[np.float64]

ITEMS = 200
DIMENSIONS = 24
CLASSES = tuple(
    f"{k}-{m}-{shape}{suffix}"
    for k in (4, 8, 16)
    for m in (2, 3)
    for shape in ("sparse", "dense")
    for suffix in ("", "-constrained")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A family of ``k`` checkpoints and ``m`` objectives with known truth."""

    tasks: Array  # (k, D)
    peaks: Array  # (m, k), the best mix for each objective alone
    optima: Array  # (m, D)
    curvature: Array  # (m, D)
    offset: Array  # (m,)
    slope: Array  # (m,)
    top: Array  # (m,)
    reference: Array  # (m,)
    at_least: float | None
    best: float

    def truth(self, weights: Array) -> Array:
        """True rates ``(n, m)`` of merges ``(n, k)``."""
        moved = weights @ self.tasks
        return _rates(_losses(moved, self.optima, self.curvature), self.offset, self.slope, self.top)

    @property
    def names(self) -> list[str]:
        """The checkpoints."""
        return [str(i) for i in range(len(self.tasks))]

    def measure(self, params: Mapping[str, float], rng: np.random.Generator) -> tuple[list[float], list[float]]:
        """Rates over so many items, and their standard errors."""
        rates = rng.binomial(ITEMS, self.true([params])[0]) / ITEMS
        return rates.tolist(), np.sqrt(rates * (1 - rates) / (ITEMS - 1)).tolist()

    def true(self, params: Sequence[Mapping[str, float]]) -> Array:
        """True rates ``(n, m)`` of the merges that these parameters build."""
        return self.truth(_weights(params)) if params else np.zeros((0, len(self.top)))

    def volume(self, values: Array) -> float:
        """Hypervolume of true or reported values, those that break the constraint left out."""
        allowed = values if self.at_least is None else values[values[:, 0] >= self.at_least]
        return hypervolume(allowed, self.reference.tolist(), [StudyDirection.MAXIMIZE] * len(self.reference))


def _losses(moved: Array, optima: Array, curvature: Array) -> Array:
    squared = (((moved[:, None, :] - optima) ** 2) * curvature).sum(axis=2)
    return np.asarray(np.sqrt(squared + 0.1))


def _rates(losses: Array, offset: Array, slope: Array, top: Array) -> Array:
    return np.asarray(top / (1.0 + np.exp(slope * (losses - offset))))


@lru_cache(maxsize=1)
def make_problem(name: str, seed: int) -> Problem:
    """The problem of a class, such as ``8-2-sparse-constrained``, that belongs to a seed."""
    parts = name.split("-")
    k, m, sparse = int(parts[0]), int(parts[1]), parts[2] == "sparse"
    rng = np.random.default_rng([k, m, int(sparse), seed])
    problem, best = _worthwhile(k, m, sparse, rng)
    if parts[-1] == "constrained":
        inside = best[(best > problem.reference).all(axis=1)]
        problem = replace(problem, at_least=float(np.median(inside[:, 0])))
    return replace(problem, best=problem.volume(best))


def _worthwhile(k: int, m: int, sparse: bool, rng: np.random.Generator) -> tuple[Problem, Array]:
    """A problem with something to find: the optima do not exclude each other, nor do the starting points reach them."""
    while True:
        problem = _draft(k, m, sparse, rng)
        best = _best_front(problem, k, rng)
        starts = problem.truth(np.concatenate([np.eye(k), np.full((1, k), 1 / k)]))
        if problem.volume(best) > 0.05 and problem.volume(starts) < 0.7 * problem.volume(best):
            return problem, best


def _draft(k: int, m: int, sparse: bool, rng: np.random.Generator) -> Problem:
    tasks = rng.normal(size=(k, DIMENSIONS))
    peaks = np.stack([_optimum(k, sparse, rng) for _ in range(m)])
    optima = peaks @ tasks
    curvature = np.exp(rng.normal(scale=0.7, size=(m, DIMENSIONS)))
    sample = _losses(_mixes(k, 4000, rng) @ tasks, optima, curvature)
    # A tenth to a third of random mixes lie above half of the best rate: on the right side of a cliff.
    offset = np.array([np.quantile(losses, rng.uniform(0.1, 0.33)) for losses in sample.T])
    slope = np.array([rng.uniform(6, 12), *rng.uniform(2.0, 4.0, size=m - 1)]) / offset
    top = rng.uniform(0.9, 0.99, size=m)
    return Problem(
        tasks=tasks,
        peaks=peaks,
        optima=optima,
        curvature=curvature,
        offset=offset,
        slope=slope,
        top=top,
        reference=np.quantile(_rates(sample, offset, slope, top), 0.25, axis=0),
        at_least=None,
        best=1.0,
    )


def _optimum(k: int, sparse: bool, rng: np.random.Generator) -> Array:
    if not sparse:
        return rng.dirichlet(np.full(k, 1.0))
    weights = np.zeros(k)
    members = rng.choice(k, size=min(k, int(rng.integers(1, 4))), replace=False)
    weights[members] = rng.dirichlet(np.full(len(members), 2.0))
    return weights


def _mixes(k: int, count: int, rng: np.random.Generator) -> Array:
    concentration = np.exp(rng.uniform(np.log(0.2), np.log(2.0), size=(count, 1)))
    raw = rng.gamma(np.broadcast_to(concentration, (count, k))) + 1e-12
    return np.asarray(raw / raw.sum(axis=1, keepdims=True))


def _best_front(problem: Problem, k: int, rng: np.random.Generator) -> Array:
    """True values of the best front that a long search without noise finds."""
    directions = [StudyDirection.MAXIMIZE] * len(problem.top)
    between = rng.dirichlet(np.ones(len(problem.peaks)), size=2000) @ problem.peaks
    pool = np.concatenate([np.eye(k), problem.peaks, between, _mixes(k, 10_000, rng)])
    for step in np.geomspace(0.5, 0.005, 50):
        front = pool[non_dominated(problem.truth(pool), directions)]
        # Thinned on a grid of values, so that sparse stretches of the front survive.
        cells = (problem.truth(front) * (200 if len(directions) == 2 else 15)).astype(int)
        front = front[np.unique(cells, axis=0, return_index=True)[1]]
        parents = front[rng.integers(len(front), size=600)]
        others = np.concatenate([_mixes(k, 100, rng), np.eye(k), front])
        moved = parents + step * rng.random((600, 1)) * (others[rng.integers(len(others), size=600)] - parents)
        away = np.maximum(2 * parents - moved, 0.0)
        pool = np.concatenate([front, moved, away / away.sum(axis=1, keepdims=True)])
    return problem.truth(front)


def _weights(params: Sequence[Mapping[str, float]]) -> Array:
    x = np.array([[p[f"w.{i}"] for i in range(len(p))] for p in params])
    positive = np.maximum(x, 0.0)
    alone = np.eye(x.shape[1])[x.argmax(axis=1)]
    total = positive.sum(axis=1, keepdims=True)
    return np.where(total > 0, positive / np.maximum(total, 1e-300), alone)
