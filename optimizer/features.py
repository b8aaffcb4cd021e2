"""The model's view of a search space: the merge weights themselves, in place of the raw parameters.

A simplex coordinate becomes the weight that it stands for, so that two parameter vectors that build the same merge are
one point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

Array = npt.NDArray[np.float64]

LATER = ("w.", "scale.")
"""Parameters that an older trial may lack: a checkpoint that it did not have took no part in it."""

_ABSENT = -0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The model's view of a search space: ``d`` features, one a parameter, all in [0, 1].

    Parameters ``w.<checkpoint>[@<group>]`` of one group become the weights of a simplex; any other number becomes its
    place within its range. The set of valid features is convex.
    """

    distributions: Mapping[str, FloatDistribution | IntDistribution]
    simplexes: tuple[tuple[int, ...], ...]
    scalars: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        """Parameter names in feature order."""
        return list(self.distributions)

    def columns(self, checkpoint: str) -> list[int]:
        """Where a checkpoint's weights or scales stand, one a layer group."""
        return [i for i, name in enumerate(self.names) if _checkpoint(name) == checkpoint]

    def group(self, column: int) -> list[int]:
        """The simplex that a column belongs to; empty for a number of another kind."""
        return next((list(group) for group in self.simplexes if column in group), [])

    def width(self, column: int) -> float:
        """How wide a number's range is, in its own unit."""
        distribution = self.distributions[self.names[column]]
        return float(distribution.high - distribution.low)

    def nothing(self, column: int) -> float:
        """The feature of a weight or scale of 0; of a range without 0, the end nearest to it."""
        if self.group(column):
            return 0.0
        low = self.distributions[self.names[column]].low
        return min(max(-low / self.width(column), 0.0), 1.0)

    def encode(self, params: Sequence[Mapping[str, float]]) -> Array:
        """Features ``(n, d)`` of ``n`` trials' parameters. A checkpoint that a trial does not name has weight 0."""
        columns = [_column(name, d, params, name.startswith("w.")) for name, d in self.distributions.items()]
        features = np.stack(columns, axis=1) if columns else np.zeros((len(params), 0))
        for group in self.simplexes:
            features[:, group] = dead_zone(features[:, group])
        return features

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Whether parameters say where in the space a trial lies."""
        lacking = self.distributions.keys() - params.keys()
        return len(lacking) < len(self.distributions) and all(name.startswith(LATER) for name in lacking)

    def decode(self, features: Array) -> dict[str, float | int]:
        """Parameters that give the features ``(d,)``: a group's largest weight at its upper bound, zeros below 0."""
        values = np.array(features, dtype=float)
        for group in self.simplexes:
            values[list(group)] = values[list(group)] / values[list(group)].max()
        in_simplex = {i for group in self.simplexes for i in group}
        return {
            name: _undo_weight(values[i], d) if i in in_simplex else _undo_scalar(values[i], d)
            for i, (name, d) in enumerate(self.distributions.items())
        }

    def project(self, features: Array) -> Array:
        """Nearest valid features ``(n, d)``: onto each simplex (exact zeros appear), and into [0, 1] elsewhere."""
        projected = np.clip(features, 0.0, 1.0)
        for group in self.simplexes:
            projected[:, group] = _onto_simplex(features[:, group])
        return projected


def _checkpoint(parameter: str) -> str | None:
    """The checkpoint that a parameter is about; None for a method's own."""
    kind, dot, rest = parameter.partition(".")
    return rest.partition("@")[0] if dot and f"{kind}." in LATER else None


def space_of(distributions: Mapping[str, BaseDistribution]) -> Space | None:
    """The space of these parameters, or None where one of them is no number (a categorical, say)."""
    numbers = {n: d for n, d in sorted(distributions.items()) if isinstance(d, (FloatDistribution, IntDistribution))}
    if len(numbers) < len(distributions):
        return None
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(numbers):
        if name.startswith("w."):
            groups.setdefault(name.partition("@")[2], []).append(i)
    return Space(
        distributions=numbers,
        simplexes=tuple(tuple(group) for group in groups.values()),
        scalars=tuple(i for i, name in enumerate(numbers) if not name.startswith("w.")),
    )


def shared_distributions(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution] | None:
    """The parameters of these trials, or None where they differ in more than a checkpoint that came later.

    Before a trial is COMPLETE it is the one with the most parameters that counts.
    """
    complete = [t.distributions for t in trials if t.state == TrialState.COMPLETE and t.distributions]
    if not complete:
        return max((t.distributions for t in trials), key=len, default={})
    union = {name: d for distributions in complete for name, d in distributions.items()}
    for distributions in complete:
        changed = any(union[name] != d for name, d in distributions.items())
        if changed or any(not name.startswith(LATER) for name in union.keys() - distributions.keys()):
            return None
    return union


def dead_zone(x: Array) -> Array:
    """Merge weights ``(n, k)`` of dead-zone coordinates ``(n, k)``: relu(x) / sum relu(x), the largest if all are 0."""
    positive = np.maximum(x, 0.0)
    total = positive.sum(axis=1, keepdims=True)
    one_hot = np.eye(x.shape[1])[np.argmax(x, axis=1)]
    return np.where(total > 0.0, positive / np.where(total > 0.0, total, 1.0), one_hot)


def _column(
    name: str, d: FloatDistribution | IntDistribution, params: Sequence[Mapping[str, float]], raw: bool
) -> Array:
    values = np.array([float(p.get(name, d.low)) for p in params])
    if raw:
        return values
    low, high = (math.log(d.low), math.log(d.high)) if d.log else (d.low, d.high)
    values = np.log(values) if d.log else values
    return np.clip((values - low) / (high - low), 0.0, 1.0) if high > low else np.zeros(len(params))


def _undo_weight(value: float, d: FloatDistribution | IntDistribution) -> float:
    return float(value * d.high) if value > 0.0 else float(max(_ABSENT, d.low))


def _undo_scalar(value: float, d: FloatDistribution | IntDistribution) -> float | int:
    if d.log:
        number = math.exp(math.log(d.low) + value * (math.log(d.high) - math.log(d.low)))
    else:
        number = d.low + value * (d.high - d.low)
    if d.step:
        number = d.low + round((number - d.low) / d.step) * d.step
    number = min(max(number, d.low), d.high)
    return round(number) if isinstance(d, IntDistribution) else float(number)


def _onto_simplex(v: Array) -> Array:
    """Euclidean projection of each row onto the simplex (Duchi et al. 2008)."""
    ordered = -np.sort(-v, axis=1)
    excess = np.cumsum(ordered, axis=1) - 1.0
    ranks = np.arange(1, v.shape[1] + 1)
    last = np.sum(ordered - excess / ranks > 0.0, axis=1) - 1
    shift = excess[np.arange(len(v)), last] / (last + 1)
    weights = np.maximum(v - shift[:, None], 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def random_features(space: Space, count: int, rng: np.random.Generator) -> Array:
    """Features ``(count, d)``: sparse and dense mixes in equal parts, other numbers uniform."""
    features = rng.random((count, len(space.names)))
    for group in space.simplexes:
        features[:, group] = _random_weights(len(group), count, rng)
    _share_groups(space, features, rng)
    return features


def _random_weights(k: int, count: int, rng: np.random.Generator) -> Array:
    raw = rng.exponential(size=(count, k))
    members = rng.integers(1, k + 1, size=count)
    sparse = rng.random(count) < 0.5
    rank = np.argsort(np.argsort(rng.random((count, k)), axis=1), axis=1)
    raw[sparse[:, None] & (rank >= members[:, None])] = 0.0
    return np.asarray(raw / raw.sum(axis=1, keepdims=True))


def _share_groups(space: Space, features: Array, rng: np.random.Generator) -> None:
    """Half of the rows use one mix in all layer groups: most good merges differ little from one layer to the next."""
    if len({len(group) for group in space.simplexes}) == 1 and len(space.simplexes) > 1:
        shared = np.flatnonzero(rng.random(len(features)) < 0.5)
        mix = features[shared][:, space.simplexes[0]]
        for group in space.simplexes[1:]:
            for place, column in enumerate(group):
                features[shared, column] = mix[:, place]
