"""Where to measure next: the point with the largest expected gain in hypervolume."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from optimizer.features import Array, Space, random_features
from optimizer.front import non_dominated_rows
from optimizer.surrogate import Surrogate

_DRAWS = 64
_DIRECTIONS = 32
_ROUNDS = 6

MOST_TOGETHER = 16
"""Most points that are chosen from the candidates of one search."""

_FEWER = 16
"""Draws where much is to be compared for several points at once."""

_SPREADS = (0.3, 0.1, 0.03)
_FINALISTS = 8

_BLIND = 256
"""Random mixes whose lower quartile bounds the hypervolume from below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A point to measure next, and what it promises as shares of the present hypervolume.

    Attributes:
        features: ``(d,)``. gain: expected of measuring it. noise: standard error of the present hypervolume.
        worth: what the front by posterior mean is expected to gain once the point is measured. again: the trial that
            would be worth the most if it were measured once more with as many items, worth_again: how much.
    """

    features: Array
    gain: float
    noise: float
    worth: float
    again: int | None
    worth_again: float


def propose(model: Surrogate, pending: Array, rng: np.random.Generator, once: Container[int] = frozenset()) -> Proposal:
    """The point with the largest expected gain in hypervolume, noise and pending points included.

    Noisy expected hypervolume improvement (Daulton et al. 2021, arXiv:2105.08195): the front that a new point must
    beat is drawn from the posterior, never taken from the measurements. The hypervolume itself is an average over
    directions of the best Chebyshev utility (Golovin and Zhang 2020, arXiv:2006.04655), which serves one objective as
    well as five; for one objective this is noisy expected improvement.

    Args:
        model: the fitted model. pending: features ``(p, d)`` of trials in flight. rng: all chance comes from it.
        once: numbers of trials that cannot be measured again.
    """
    gain = _Gain(model, torch.from_numpy(pending), rng)
    front = gain.front()
    pool = _starts(model.space, front, rng)
    scores = gain(pool)
    for spread in np.geomspace(0.3, 0.02, _ROUNDS):
        best = np.argsort(-scores)[:10]
        children = _children(model.space, pool[best], front, spread, rng)
        pool = np.concatenate([pool[best], children])
        scores = np.concatenate([scores[best], gain(children)])
    new = _is_new(pool, model, pending)
    chosen = next((pool[i] for i in np.argsort(-scores) if new[i]), random_features(model.space, 1, rng)[0])
    return gain.proposal(np.asarray(chosen), once)


def propose_several(
    model: Surrogate, pending: Array, count: int, rng: np.random.Generator, once: Container[int] = frozenset()
) -> list[Proposal]:
    """Points to measure at the same time, each the best beside those before it: at most ``count``, or `MOST_TOGETHER`.

    One search gathers candidates all along the front. From joint draws of their outcomes they are then chosen one by
    one, each for what it is expected to add to those chosen before (sequential greedy selection, Daulton et al. 2021):
    nothing is fitted, searched or drawn anew in between. Only the first says what a second look would be worth.

    Args:
        model, pending, rng, once: as of `propose`.
    """
    gain = _Gain(model, torch.from_numpy(pending), rng)
    pool = _along_the_front(gain, model.space, rng)
    pool = pool[_is_new(pool, model, pending)]
    pool = pool if len(pool) else random_features(model.space, count, rng)
    chosen = gain.chosen(pool, min(count, MOST_TOGETHER), rng)
    return [gain.proposal(pool[chosen[0][0]], once, _FEWER), *(gain.brief(pool[i], worth) for i, worth in chosen[1:])]


def _along_the_front(gain: _Gain, space: Space, rng: np.random.Generator) -> Array:
    """Features ``(n, d)`` of the most promising points in each direction of the front."""
    front = gain.front()
    pool = _starts(space, front, rng)
    scores = gain.by_direction(pool)
    for spread in _SPREADS:
        parents = pool[np.unique(np.argmax(scores[::2], axis=1))]
        children = _children(space, parents, front, spread, rng)
        pool = np.concatenate([pool, children])
        scores = np.concatenate([scores, gain.by_direction(children)], axis=1)
    return pool[np.unique(np.argsort(-scores, axis=1)[:, :_FINALISTS])]


def _is_new(pool: Array, model: Surrogate, pending: Array) -> npt.NDArray[np.bool_]:
    known = np.concatenate([model.features.numpy(), pending])
    return np.array([np.abs(known - point).max(axis=1).min() > 1e-3 for point in pool], dtype=bool)


class _Gain:
    """Expected gain in hypervolume of further points."""

    def __init__(self, model: Surrogate, pending: torch.Tensor, rng: np.random.Generator) -> None:
        self._model = model
        mean, variance = model.moments(model.features)
        self._measure = _measure(model, mean)
        self._rules = model.rules
        self._directions = _directions(_DIRECTIONS, model.objectives, rng)
        self._kept = self._near_front(mean, variance.sqrt())
        baseline = torch.cat([model.features[self._kept], pending])
        self._joint = model.joint(baseline)
        outcomes = len(mean)
        engine = torch.quasirandom.SobolEngine(outcomes * (len(baseline) + 1), scramble=True, seed=_seed(rng))
        uniform = engine.draw(_DRAWS, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
        normal = (torch.erfinv(2 * uniform - 1) * math.sqrt(2)).reshape(_DRAWS, outcomes, -1)
        self._best = self._utility(self._joint.draw(normal[..., :-1].contiguous())).amax(-1)
        self._normal = normal[..., -1]

    def front(self) -> Array:
        """Features ``(b, d)`` of the measured points that may be on the front."""
        return self._model.features[self._kept].numpy()

    def __call__(self, features: Array) -> Array:
        draws = self._joint.extend(torch.from_numpy(features), self._normal)
        return _improvement(self._utility(draws) - self._best.unsqueeze(-1)).mean(dim=(0, 1)).numpy()

    def by_direction(self, features: Array) -> Array:
        """The same of each direction by fewer draws: ``(directions, n)``."""
        draws = self._joint.extend(torch.from_numpy(features), self._normal)[:_FEWER]
        return _improvement(self._utility(draws) - self._best[:_FEWER].unsqueeze(-1)).mean(dim=0).numpy()

    def chosen(self, features: Array, count: int, rng: np.random.Generator) -> list[tuple[int, float]]:
        """Rows to measure at the same time, in the order in which they are chosen, and what each adds."""
        normal = torch.from_numpy(rng.normal(size=(*self._normal.shape, len(features))))
        utility = self._utility(self._joint.together(torch.from_numpy(features), normal))
        best, found = self._best, list[tuple[int, float]]()
        while len(found) < min(count, len(features)):
            gain = _improvement(utility - best.unsqueeze(-1)).mean(dim=(0, 1))
            gain[[row for row, _ in found]] = -math.inf
            row = int(gain.argmax())
            found.append((row, float(gain[row])))
            best = best.maximum(utility[..., row])
        return found

    def proposal(self, features: Array, once: Container[int], draws: int = _DRAWS) -> Proposal:
        """What is to be said of a point beside its features; on second looks by so many draws."""
        volume = self._best.mean(dim=1)
        level = max(float(volume.mean()), 1e-12)
        worth, others = self._worth(torch.from_numpy(features), self._normal[:draws])
        numbers = [self._model.numbers[i] for i in self._kept.tolist()]
        able = {n: w for n, w in zip(numbers, others, strict=True) if n not in once}
        again = max(able, key=lambda n: (able[n], -n), default=None)
        return Proposal(
            features=features,
            gain=max(float(self(features[None])[0]), 0.0) / level,
            noise=float(volume.std()) / level,
            worth=worth / level,
            again=again,
            worth_again=0.0 if again is None else able[again] / level,
        )

    def brief(self, features: Array, gain: float) -> Proposal:
        """The same of a point whose gain is known, without a word on second looks."""
        volume = self._best.mean(dim=1)
        level = max(float(volume.mean()), 1e-12)
        gain, noise = max(gain, 0.0) / level, float(volume.std()) / level
        return Proposal(features=features, gain=gain, noise=noise, worth=0.0, again=None, worth_again=0.0)

    def _worth(self, point: torch.Tensor, normal: torch.Tensor) -> tuple[float, list[float]]:
        """What the front by posterior mean gains by measuring a new point, and by each point near the front once more.

        This is the knowledge gradient (Frazier, Powell and Dayanik 2009), by draws of the one outcome that is unknown.
        """
        mean, covariance = self._model.posterior(torch.cat([self._model.features[self._kept], point[None]]))
        noise = torch.cat([self._model.noise[:, self._kept], self._model.noise.median(dim=1).values[:, None]], dim=1)
        spread = (covariance.diagonal(dim1=1, dim2=2).clamp_min(0.0) + noise).sqrt()
        steps = covariance / spread[:, None, :]
        now = float(self._utility(mean[None, :, :-1]).amax(-1).mean())
        draws = normal.unsqueeze(-1)
        # Draws and their mirror images: what a draw adds by chance alone its image takes away.
        both = torch.cat([draws, -draws])
        moved = [self._utility(mean + both * steps[:, :, j]) for j in range(mean.shape[1])]
        known = [float(utility[..., :-1].amax(-1).mean()) - now for utility in moved[:-1]]
        return float(moved[-1].amax(-1).mean()) - now, known

    def _utility(self, outcomes: torch.Tensor) -> torch.Tensor:
        """``(s, o, n)`` to ``(s, directions, n)``; where a constraint is broken, minus a little of the excess."""
        worst, size = self._measure
        m = self._model.objectives
        scaled = (outcomes[:, :m] - worst[:, None]) / size[:, None]
        utility = (scaled.unsqueeze(1) / self._directions[:, :, None]).amin(2).clamp_min(0.0) ** m
        excess = self._excess(outcomes).unsqueeze(1)
        return torch.where(excess > 0.0, -1e-3 * excess, utility)

    def _excess(self, outcomes: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(outcomes[:, 0])
        for rule in self._rules:
            spread = float(self._model.scale[rule.outcome]) * max(abs(rule.slope), 1e-12)
            total += (rule.slope * outcomes[:, rule.outcome] + rule.intercept).clamp_min(0.0) / spread
        return total

    def _near_front(self, mean: torch.Tensor, spread: torch.Tensor, most: int = 48) -> torch.Tensor:
        """Which measured points have a fair chance to be on the front."""
        middle = self._utility(mean.unsqueeze(0))[0]
        hopeful = self._utility(self._hopeful(mean, spread).unsqueeze(0))[0]
        margin = (hopeful - middle.amax(-1, keepdim=True)).amax(0)
        ranked = torch.argsort(margin, descending=True, stable=True)[:most]
        fair = ranked[margin[ranked] >= 0.0]
        return fair if len(fair) >= 3 else ranked[:3]

    def _hopeful(self, mean: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        signs = torch.ones(len(mean), dtype=mean.dtype)
        for rule in self._rules:
            if rule.outcome >= self._model.objectives:
                signs[rule.outcome] = -1.0
        return mean + 2.0 * signs[:, None] * spread


def _improvement(gain: torch.Tensor) -> torch.Tensor:
    """The tiny slope below zero orders points none of whose draws improves anything."""
    return torch.where(gain > 0.0, gain, 1e-6 * gain)


def _measure(model: Surrogate, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reference point and the range above it: two ``(m,)``.

    The point lies a tenth of the front's range below its worst corner, or at the lower quartile of what the model
    expects of random mixes where that is lower: a front that is still short must not put its own extensions out of
    bounds. What was measured says less, for the longer a search is, the more of it lies near the front.
    """
    values = mean[: model.objectives].T
    feasible = torch.ones(len(values), dtype=torch.bool)
    for rule in model.rules:
        feasible &= rule.slope * mean[rule.outcome] + rule.intercept <= 0.0
    chosen = values[feasible] if int(feasible.sum()) > 1 else values
    front = chosen[non_dominated_rows(chosen.numpy())]
    low, high = front.amin(0), chosen.amax(0)
    everything = (values.amax(0) - values.amin(0)).clamp_min(1e-9)
    size = torch.where(high - low > 0.05 * everything, high - low, everything)
    blind = torch.from_numpy(random_features(model.space, _BLIND, np.random.default_rng(0)))
    expected = model.moments(blind)[0][: model.objectives].T
    reference = torch.minimum(low - 0.1 * size, expected.quantile(0.25, dim=0))
    return reference, high - reference


def _directions(count: int, m: int, rng: np.random.Generator) -> torch.Tensor:
    """Directions ``(count, m)`` spread evenly over the positive part of the unit sphere."""
    if m == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if m == 2:
        angle = (torch.arange(count, dtype=torch.float64) + rng.random()) * (math.pi / 2 / count)
        return torch.stack([angle.sin(), angle.cos()], dim=1).clamp_min(1e-3)
    engine = torch.quasirandom.SobolEngine(m, scramble=True, seed=_seed(rng))
    uniform = engine.draw(count, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    normal = torch.erfinv(uniform)
    return torch.clamp(normal / torch.linalg.vector_norm(normal, dim=1, keepdim=True), min=1e-3)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _starts(space: Space, front: Array, rng: np.random.Generator) -> Array:
    pairs = rng.integers(len(front), size=(2, 192))
    share = rng.random((192, 1))
    mixes = share * front[pairs[0]] + (1.0 - share) * front[pairs[1]]
    near = _children(space, front[rng.integers(len(front), size=16)], front, 0.3, rng)
    return np.concatenate([random_features(space, 256, rng), mixes, near])


def _children(space: Space, parents: Array, front: Array, spread: float, rng: np.random.Generator) -> Array:
    """Twenty-four neighbours of each parent: some coordinates jittered, a step to another mix, or weights dropped."""
    base = np.repeat(parents, 24, axis=0)
    kind = np.tile(np.arange(24) % 3, len(parents))
    share = rng.random((len(base), 1))
    mask = rng.random(base.shape) < np.maximum(share, 1.5 / base.shape[1])
    jittered = base + spread * rng.normal(size=base.shape) * mask * rng.random((len(base), 1))
    others = np.concatenate([random_features(space, len(base) // 2, rng), front])
    step = spread * rng.random((len(base), 1))
    moved = base + step * (others[rng.integers(len(others), size=len(base))] - base)
    dropped = base * (rng.random(base.shape) >= 1.0 / base.shape[1])
    children = np.where(kind[:, None] == 0, jittered, np.where(kind[:, None] == 1, moved, dropped))
    return space.project(children)
