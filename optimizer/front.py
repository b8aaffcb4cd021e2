"""Which trials are on the front, and how sure that is.

Choosing the front by measured values picks the lucky ones (winner's curse); here it is chosen by the posterior mean of
a model of the whole study, with the probability of each choice beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from optimizer.features import Array, shared_distributions, space_of
from optimizer.measurements import Data, data_of, most_telling, signs

if TYPE_CHECKING:
    from optimizer.surrogate import Surrogate

ENOUGH_TRIALS = 8
"""Fewest trials in the search space that a model is asked about; below it raw means decide."""

MOST_BELIEVED = 2000
"""Most trials that the front's model is conditioned on.

A proposal's model has fewer. But what is left out is left out by its measurements, so that those that stay are the
lucky ones, and a front would promise too much."""

_DRAWS = 256
_REPEATS = 64
_SAME_PLACE = 0.03
"""Distance, in the front's own range, below which two points count as equally near to each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What is known of one COMPLETE trial, by objective order and in the study's own units and directions.

    ``stderr`` is NaN where nothing states it. ``on_front`` and ``feasible`` are probabilities.
    """

    mean: tuple[float, ...]
    stderr: tuple[float, ...]
    on_front: float
    feasible: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Posterior:
    """Every COMPLETE trial's estimate by its number, the front, and why raw means had to do (None if they had not)."""

    trials: Mapping[int, Estimate]
    front: tuple[int, ...]
    fallback: str | None


def posterior_front(study: Study, most: int = MOST_BELIEVED) -> list[int]:
    """Numbers of the trials on the front by posterior mean, in order; empty if no trial is feasible by it.

    See `posterior`, which says more and takes longer. ``most`` is how many trials the model is conditioned on.
    """
    found = fit(study, most)
    return list(_front(found, _believed(found, draws=0)))


def posterior(study: Study) -> Posterior:
    """Posterior of every COMPLETE trial under a Gaussian process of the searched space.

    Each trial's own noise (user attribute ``stderr``, one standard error an objective) is used where it is set. What
    being chosen adds to a mean is taken off again: on the front means are lowered by what a parametric bootstrap finds
    (`_sobered`).

    Trials outside the space (baselines) keep their raw means and standard errors. Of a study with more than
    `MOST_BELIEVED` trials the model predicts those that it is not conditioned on. The order of the trials changes
    nothing, nor does a second call. Objectives are modelled as independent of one another. Trials with values that are
    not finite are left out. A trial that a race stopped early (user attribute ``stopped``) informs the model, with the
    error of its few items, and is never on the front; nor is a second look at an earlier trial (user attribute
    ``again``, its number).
    """
    return posterior_of(fit(study))


def posterior_of(found: Fit) -> Posterior:
    """The same of a study that was fitted already."""
    return _summary(found, _believed(found, _DRAWS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A study's COMPLETE trials, the model and the rows of its space; else the reason why there is none.

    ``signs`` is ``(m,)``, 1 for an objective to maximise; ``whole`` ``(n,)``, which trials may be on the front.
    """

    data: Data
    model: Surrogate | None
    rows: npt.NDArray[np.int_]
    signs: Array
    whole: npt.NDArray[np.bool_]
    reason: str | None


def fit(study: Study, most: int = MOST_BELIEVED) -> Fit:
    """Fit the model of a study, conditioned on at most so many trials, or say why raw means have to do."""
    data = data_of(study)
    trials = study.get_trials(deepcopy=False)
    part = {t.number for t in trials if t.user_attrs.get("stopped") or "again" in t.user_attrs}
    whole = np.array([number not in part for number in data.numbers], dtype=bool)
    model, rows, reason = _model(trials, data, most)
    return Fit(data=data, model=model, rows=rows, signs=signs(study), whole=whole, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Beliefs:
    """Means and errors ``(n, m)``, constraint means ``(n, c)``, draws ``(s, n, m)`` and ``(s, n)`` feasible."""

    mean: Array
    stderr: Array
    constraints: Array
    draws: Array
    feasible: npt.NDArray[np.bool_]


def _believed(found: Fit, draws: int) -> _Beliefs:
    believed = _raw(found.data, draws)
    if found.model is None:
        return believed
    return _sobered(_modelled(believed, found.model, found.rows, found.data), found.model, found)


def _raw(data: Data, draws: int) -> _Beliefs:
    stderr = np.sqrt(data.variances)
    noise = np.random.default_rng(0).normal(size=(draws, *data.values.shape)) * np.nan_to_num(stderr)
    constraints = np.nan_to_num(data.constraints, nan=-math.inf)
    feasible = np.tile((constraints <= 0.0).all(axis=1), (draws, 1))
    return _Beliefs(
        mean=data.values, stderr=stderr, constraints=constraints, draws=data.values + noise, feasible=feasible
    )


def _model(
    trials: Sequence[FrozenTrial], data: Data, most: int
) -> tuple[Surrogate | None, npt.NDArray[np.int_], str | None]:
    """The model and the rows that lie in its space, or the reason why there is none."""
    from optimizer import surrogate

    nothing = np.array([], dtype=int)
    distributions = shared_distributions(trials)
    space = space_of(distributions) if distributions else None
    if distributions is None or (distributions and space is None):
        return None, nothing, "raw means: the search space is not made of numbers that every trial has"
    rows = data.inside(space) if space is not None else nothing
    if space is None or len(rows) < ENOUGH_TRIALS:
        return None, nothing, f"raw means: fewer than {ENOUGH_TRIALS} trials in the search space"
    telling = rows[most_telling(data.rows(rows), most)]
    with surrogate.one_thread(0):
        try:
            return surrogate.Surrogate(space, data.rows(telling)), rows, None
        except surrogate.FIT_ERRORS as error:
            return None, nothing, f"raw means: the model could not be fitted ({type(error).__name__})"


def _modelled(raw: _Beliefs, model: Surrogate, rows: npt.NDArray[np.int_], data: Data) -> _Beliefs:
    """Beliefs with the modelled rows taken from the model."""
    m = data.values.shape[1]
    mean, stderr, draws = model.beliefs(data.rows(rows), len(raw.draws))
    constraints = (
        np.stack([r.slope * mean[:, r.outcome] + r.intercept for r in model.rules], axis=1)
        if model.rules
        else mean[:, :0]
    )
    broken = [r.slope * draws[:, :, r.outcome] + r.intercept > 0.0 for r in model.rules]
    new = _Beliefs(
        mean=raw.mean.copy(),
        stderr=raw.stderr.copy(),
        constraints=raw.constraints.copy(),
        draws=raw.draws.copy(),
        feasible=raw.feasible.copy(),
    )
    new.mean[rows], new.stderr[rows] = mean[:, :m], stderr[:, :m]
    new.constraints[rows], new.draws[:, rows] = constraints, draws[:, :, :m]
    new.feasible[:, rows] = ~np.any(broken, axis=0) if broken else True
    return new


def _sobered(believed: _Beliefs, model: Surrogate, found: Fit) -> _Beliefs:
    """Lower the means of the trials that are chosen by what being chosen adds to a mean.

    Which are chosen is asked anew until none is on the front with a mean that was not lowered. Means stay as they are
    where no trial would keep the constraints after it.
    """
    modelled = np.isin(np.arange(len(found.data.numbers)), found.rows)
    optimism = _optimism(believed, model, found)
    lower = np.zeros(len(modelled), dtype=bool)
    while True:
        sober = _moved(believed, model, -np.outer(lower, optimism))
        front = _leaders(sober.mean, _feasible(sober.constraints) & found.whole)
        if not front.any():
            return believed
        if not (front & modelled & ~lower).any():
            return sober
        lower |= front & modelled


def _optimism(believed: _Beliefs, model: Surrogate, found: Fit) -> Array:
    """By how much the outcomes ``(o,)`` of a front lie above their means before the noise that chose it.

    Parametric bootstrap: the posterior means are taken for the truth, and the noise of every trial that the model is
    conditioned on is drawn again.
    """
    echoes = model.echoes(found.data.rows(found.rows), _REPEATS)
    lifts = []
    for echo in echoes:
        move = np.zeros((len(believed.mean), echo.shape[1]))
        move[found.rows] = echo
        again = _moved(believed, model, move)
        front = _leaders(again.mean, _feasible(again.constraints) & found.whole)[found.rows]
        if front.any():
            # An exact sum, so that the order of the trials changes nothing.
            lifts.append([math.fsum(column) / front.sum() for column in echo[front].T])
    return np.asarray(np.mean(lifts, axis=0)) if lifts else np.zeros(echoes.shape[2])


def _moved(believed: _Beliefs, model: Surrogate, move: Array) -> _Beliefs:
    """Beliefs with the outcomes of each trial moved by ``(n, o)``."""
    constraints = believed.constraints.copy()
    for i, rule in enumerate(model.rules):
        constraints[:, i] += rule.slope * move[:, rule.outcome]
    return replace(believed, mean=believed.mean + move[:, : model.objectives], constraints=constraints)


def _feasible(constraints: Array) -> npt.NDArray[np.bool_]:
    return np.asarray((constraints <= 0.0).all(axis=1))


def _front(found: Fit, believed: _Beliefs) -> tuple[int, ...]:
    """A trial that did not answer all its items is never on the front."""
    best = _leaders(believed.mean, _feasible(believed.constraints) & found.whole)
    return tuple(found.data.numbers[i] for i in np.flatnonzero(best))


def _summary(found: Fit, believed: _Beliefs) -> Posterior:
    numbers, whole = found.data.numbers, found.whole
    chance = np.mean(
        [_leaders(values, allowed & whole) for values, allowed in zip(believed.draws, believed.feasible, strict=True)],
        axis=0,
    )
    allowed = believed.feasible.mean(axis=0)
    trials = {
        number: Estimate(
            mean=tuple((believed.mean[i] * found.signs).tolist()),
            stderr=tuple(believed.stderr[i].tolist()),
            on_front=float(chance[i]),
            feasible=float(allowed[i]),
        )
        for i, number in enumerate(numbers)
    }
    return Posterior(trials=trials, front=_front(found, believed), fallback=found.reason)


def _leaders(values: Array, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which rows are allowed and not dominated by another allowed row; more is better."""
    rows = np.flatnonzero(allowed)
    leaders = np.zeros(len(values), dtype=bool)
    leaders[rows[non_dominated_rows(values[rows])]] = True
    return leaders


def non_dominated_rows(values: Array) -> npt.NDArray[np.int_]:
    """Rows of ``(n, m)`` that no row dominates, equal rows all kept; more is better, and there must be no NaN."""
    left = np.lexsort(-values.T[::-1])
    kept: list[int] = []
    while len(left):
        # In this order no row is dominated by a later one, so the first that is left is on the front.
        first = values[left[0]]
        kept.extend(left[(values[left] == first).all(axis=1)].tolist())
        left = left[(values[left] > first).any(axis=1)]
    return np.array(sorted(kept), dtype=int)


def non_dominated(values: Array, directions: Sequence[StudyDirection]) -> list[int]:
    """Rows of ``values (n, m)`` that no other row dominates, in order; equal rows are all kept.

    Raises:
        ValueError: a value is NaN.
    """
    if np.isnan(values).any():
        raise ValueError("values must be numbers to be compared, but some are NaN.")
    return [int(row) for row in non_dominated_rows(_turned(values, directions))]


def hypervolume(values: Array, reference: Sequence[float], directions: Sequence[StudyDirection]) -> float:
    """Volume between a set of points ``(n, m)`` and a reference point ``(m,)``, by BoTorch; 0.0 for no points."""
    import torch
    from botorch.utils.multi_objective.box_decompositions.dominated import DominatedPartitioning

    points = _turned(np.asarray(values, dtype=float).reshape(-1, len(directions)), directions)
    corner = _turned(np.array([reference], dtype=float), directions)[0]
    better = points[(points > corner).all(axis=1)]
    if len(better) == 0:
        return 0.0
    if len(directions) == 1:
        return float(better.max() - corner[0])
    boxes = DominatedPartitioning(ref_point=torch.from_numpy(corner), Y=torch.from_numpy(better))
    return float(boxes.compute_hypervolume())


def knee(values: Array, directions: Sequence[StudyDirection]) -> int:
    """Row of the front ``values (n, m)`` that bulges most: farthest beyond the plane through its extremes.

    Objectives are scaled to the front's own range first, so that their units do not matter (Das 1999).

    Raises:
        ValueError: there is no row.
    """
    if len(values) == 0:
        raise ValueError("a knee needs at least 1 point, but got 0.")
    turned = _turned(values, directions)
    span = np.ptp(turned, axis=0)
    return int(np.argmax(((turned - turned.min(axis=0)) / np.where(span > 0.0, span, 1.0)).sum(axis=1)))


def spread(values: Array, directions: Sequence[StudyDirection], count: int) -> list[int]:
    """``count`` rows of the front ``(n, m)``, as far from one another as can be, best first by the first objective.

    Objectives are scaled to the front's own range. The rows are those that would push one another away the least, by
    the fourth power of their distance (Hardin and Saff 2004); found by adding the farthest row, then by swaps.

    Raises:
        ValueError: there are not as many rows.
    """
    if not 1 <= count <= len(values):
        raise ValueError(f"from 1 to all {len(values)} points can be spread, but got {count}.")
    turned = _turned(values, directions)
    span = np.ptp(turned, axis=0)
    scaled = (turned - turned.min(axis=0)) / np.where(span > 0.0, span, 1.0)
    apart = np.linalg.norm(scaled[:, None] - scaled[None], axis=2)
    chosen = [int(np.argmax(turned[:, 0]))]
    while len(chosen) < count:
        far = apart[:, chosen].min(axis=1)
        far[chosen] = -1.0
        chosen.append(int(np.argmax(far)))
    push = np.where(np.eye(len(apart)) > 0, 0.0, 1.0 / np.maximum(apart, _SAME_PLACE) ** 4)
    while (better := _swapped(push, chosen)) is not None:
        chosen = better
    return sorted(chosen, key=lambda i: (-turned[i, 0], i))


def _swapped(push: Array, chosen: Sequence[int]) -> list[int] | None:
    """The best exchange of one chosen row for another; None where none spreads them further."""
    felt = push[:, chosen].sum(axis=1)
    # What a row would feel in the place of a chosen one, less what that one feels.
    gain = felt[chosen][:, None] - (felt[None, :] - push[chosen])
    gain[:, chosen] = -np.inf
    place, other = (int(i) for i in np.unravel_index(int(np.argmax(gain)), gain.shape))
    if gain[place, other] <= 1e-6 * felt[chosen].sum():
        return None
    return [*chosen[:place], other, *chosen[place + 1 :]]


def _turned(values: Array, directions: Sequence[StudyDirection]) -> Array:
    return np.asarray(values, dtype=float) * [1.0 if d == StudyDirection.MAXIMIZE else -1.0 for d in directions]
