"""Why the front looks as it does: what each checkpoint's weight does, what goes with it, and which pairs interfere.

All of it is read off the Gaussian process that chooses the front, around the merges on it. Every figure is a sum of
that model's values with fixed coefficients, so its standard error follows from the model, noise and the correlation of
neighbouring merges included (of rates by the delta method, see `optimizer.angles`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import erfc, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.samplers import RandomSampler
from optuna.study import Study

from optimizer.features import Array, Space
from optimizer.front import Fit, fit, posterior_of
from optimizer.spec import Spec
from optimizer.statistics import holm
from search_spaces.recipe import Recipe
from storage.records import Z95
from storage.store import Store

if TYPE_CHECKING:
    from optimizer.surrogate import Surrogate

STEP = 0.1
"""How much weight, or scale, an effect is about."""

NEGLIGIBLE = 0.02
"""A checkpoint whose weight is smaller in every merge on the front can be left out."""

LEVEL = 0.05
_MOST_AROUND = 16
_PAIR_SHARE = 0.5

Weights = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A predicted change of one objective in its own unit and direction. ``p`` is adjusted for its table (Holm)."""

    mean: float
    stderr: float
    p: float
    maximise: bool

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.mean - Z95 * self.stderr

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.mean + Z95 * self.stderr

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``open``."""
        if self.p > LEVEL:
            return "open"
        return "better" if (self.mean > 0) == self.maximise else "worse"

    def to_json(self) -> dict[str, Any]:
        """Mean, standard error, 95 % interval, ``p_holm`` and verdict."""
        interval = {"mean": self.mean, "stderr": self.stderr, "low": self.low, "high": self.high}
        return interval | {"p_holm": self.p, "verdict": self.verdict}


@dataclass(frozen=True, slots=True, kw_only=True)
class Influence:
    """One checkpoint on the front, its changes by objective.

    Attributes:
        least, mean, largest: its weight in the merges on the front. members: how many of these it could be taken from.
        effect: of `STEP` more of it, everything else scaled down to make room. left_out: of taking it out of those
            members, their weights scaled up to 1; empty where there are none.
    """

    checkpoint: str
    least: float
    mean: float
    largest: float
    members: int
    effect: Mapping[str, Change]
    left_out: Mapping[str, Change]

    @property
    def negligible(self) -> bool:
        """Whether every merge on the front has next to nothing of it."""
        return self.largest < NEGLIGIBLE

    @property
    def harmful(self) -> bool:
        """Whether the front would surely gain without it, and surely lose nothing."""
        return self._verdicts - {"open"} == {"better"}

    @property
    def needed(self) -> bool:
        """Whether the front would surely lose something without it."""
        return "worse" in self._verdicts

    @property
    def advice(self) -> str:
        """What follows, in words."""
        if self.negligible:
            return f"leave it out: below {NEGLIGIBLE:.0%} in every merge on the front"
        if self.harmful:
            return "leave it out: the front gains without it"
        if self.needed:
            return "needed"
        return "no loss can be told without it" if self.left_out else ""

    @property
    def _verdicts(self) -> set[str]:
        return {change.verdict for change in self.left_out.values()}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "checkpoint": self.checkpoint,
            "weight": {"least": self.least, "mean": self.mean, "largest": self.largest},
            "members": self.members,
            "effect": _json(self.effect),
            "left_out": _json(self.left_out),
            "leave_out": self.negligible or self.harmful,
            "advice": self.advice,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two checkpoints that share half of the merge evenly, against the average of either having that half alone.

    Of task-vector scales: both at half of their range, less what each of them does alone. ``blend`` is by objective.
    """

    a: str
    b: str
    blend: Mapping[str, Change]

    @property
    def interferes(self) -> bool:
        """Whether mixing the two surely costs something."""
        return any(change.verdict == "worse" for change in self.blend.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"a": self.a, "b": self.b, "blend": _json(self.blend), "interferes": self.interferes}


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """What the model says of a study.

    Attributes:
        around: the trials whose merges were varied, ``on_front`` whether they are on the front (else all are taken).
        checkpoints: in the study's order. pairs: the most costly first. fallback: why there is no model (else None);
            then only weights are known, and there are no changes and no pairs.
    """

    around: tuple[int, ...]
    on_front: bool
    checkpoints: tuple[Influence, ...]
    pairs: tuple[Pair, ...]
    fallback: str | None

    def to_json(self) -> dict[str, Any]:
        """The form that the command line prints; low and high are the 95 % interval."""
        return {
            "around": list(self.around),
            "on_front": self.on_front,
            "step": STEP,
            "checkpoints": [c.to_json() for c in self.checkpoints],
            "pairs": [p.to_json() for p in self.pairs],
            "fallback": self.fallback,
        }


def of_study(store: Store, name: str, spec: Spec, recipes: Mapping[int, Recipe]) -> Why:
    """`why` of a study in its database, of whose measured trials these are the recipes."""
    merges = {n: recipe.mean_weights() for n, recipe in recipes.items() if spec.space.contains(recipe)}
    return why(store.optuna_study(name, RandomSampler(seed=0)), [o.name for o in spec.optimised], merges)


def why(study: Study, objectives: Sequence[str], weights: Mapping[int, Weights]) -> Why:
    """Ask the model of a study what its checkpoints do.

    Args:
        study: any Optuna study that `optimizer.front.posterior` reads. objectives: their names, in the study's order.
        weights: of every trial that is a merge of the checkpoints, one number a checkpoint.
    """
    found = fit(study)
    on_front = [n for n in posterior_of(found).front if n in weights]
    known = {found.data.numbers[i] for i in found.rows} if found.model is not None else set(weights)
    members = [n for n in on_front if n in known]
    around = _spread(found, members or sorted(known & weights.keys()))
    names = list(dict.fromkeys(name for n in around for name in weights[n]))
    shares = {name: [weights[n].get(name, 0.0) for n in (on_front or around)] for name in names}
    changes = _Changes(found, objectives, around) if found.model is not None and around else None
    return Why(
        around=tuple(around),
        on_front=bool(members),
        checkpoints=_influences(shares, changes),
        pairs=changes.pairs(names) if changes is not None else (),
        fallback=found.reason,
    )


def _spread(found: Fit, members: Sequence[int]) -> list[int]:
    """At most sixteen of them, evenly along the first objective."""
    value = dict(zip(found.data.numbers, found.data.values[:, 0].tolist(), strict=True))
    ordered = sorted(members, key=lambda n: (value[n], n))
    places = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), _MOST_AROUND)).round().astype(int))
    return sorted(ordered[i] for i in places)


def _influences(shares: Mapping[str, Sequence[float]], changes: _Changes | None) -> tuple[Influence, ...]:
    effects = changes.effects(list(shares)) if changes is not None else [{}] * len(shares)
    left_out = changes.left_out(list(shares)) if changes is not None else [(0, {})] * len(shares)
    return tuple(
        Influence(
            checkpoint=name,
            least=min(share),
            mean=sum(share) / len(share),
            largest=max(share),
            members=members,
            effect=effect,
            left_out=without,
        )
        for (name, share), effect, (members, without) in zip(shares.items(), effects, left_out, strict=True)
    )


class _Changes:
    """Contrasts of the model around some of its trials."""

    def __init__(self, found: Fit, objectives: Sequence[str], around: Sequence[int]) -> None:
        if found.model is None:
            raise ValueError("changes are read off a model, but there is none.")
        self._model: Surrogate = found.model
        self._space: Space = found.model.space
        self._signs = found.signs
        self._objectives = objectives
        self._features = self._space.encode([found.data.params[found.data.numbers.index(n)] for n in around])

    def effects(self, names: Sequence[str]) -> list[dict[str, Change]]:
        """Of `STEP` more of each checkpoint."""
        return self._changes([[(1.0, up), (-1.0, down)] for up, down in self._each(_more, names)])

    def left_out(self, names: Sequence[str]) -> list[tuple[int, dict[str, Change]]]:
        """How many merges each checkpoint could be taken from, and what that changes in them."""
        taken = self._each(_without, names)
        found = iter(self._changes([[(1.0, after), (-1.0, before)] for before, after in taken if len(before)]))
        return [(len(before), next(found) if len(before) else {}) for before, _ in taken]

    def pairs(self, names: Sequence[str]) -> tuple[Pair, ...]:
        """Every pair, the most costly first."""
        pairs = list(combinations(names, 2))
        blends = self._changes([_blend(self._space, self._features, a, b) for a, b in pairs])
        found = [Pair(a=a, b=b, blend=blend) for (a, b), blend in zip(pairs, blends, strict=True)]
        return tuple(sorted(found, key=lambda p: min(map(_surely, p.blend.values()))))

    def _each(
        self, vary: Callable[[Space, Array, str], tuple[Array, Array]], names: Sequence[str]
    ) -> list[tuple[Array, Array]]:
        return [vary(self._space, self._features, name) for name in names]

    def _changes(self, contrasts: Sequence[Sequence[tuple[float, Array]]]) -> list[dict[str, Change]]:
        """One dictionary a contrast; a contrast is (coefficient, features), each averaged over its rows."""
        known = [self._contrast(parts) for parts in contrasts]
        ps = holm([_p(mean, error) for row in known for mean, error in row]) if known else []
        each = iter(ps)
        return [
            {
                name: Change(mean=float(sign * mean), stderr=error, p=next(each), maximise=bool(sign > 0))
                for name, sign, (mean, error) in zip(self._objectives, self._signs, row, strict=True)
            }
            for row in known
        ]

    def _contrast(self, parts: Sequence[tuple[float, Array]]) -> list[tuple[float, float]]:
        import torch

        points = torch.from_numpy(np.concatenate([features for _, features in parts]))
        coefficients = np.concatenate([np.full(len(f), c / len(f)) for c, f in parts])
        mean, stderr = self._model.contrast(points, torch.from_numpy(coefficients))
        count = self._model.objectives
        return list(zip(mean[:count].tolist(), stderr[:count].tolist(), strict=True))


def _more(space: Space, features: Array, name: str) -> tuple[Array, Array]:
    """Merges with `STEP` more of a checkpoint, and what they are compared with."""
    up, down = features.copy(), features.copy()
    for column in space.columns(name):
        group = space.group(column)
        if group:
            up[:, group] *= 1.0 - STEP
            up[:, column] += STEP
        else:
            step = min(STEP / space.width(column), 1.0)
            up[:, column] = np.clip(up[:, column] + step, step, 1.0)
            down[:, column] = up[:, column] - step
    return up, down


def _without(space: Space, features: Array, name: str) -> tuple[Array, Array]:
    """The merges that hold something of a checkpoint and of another, before and after it is taken out of them."""
    after = features.copy()
    for column in space.columns(name):
        after[:, column] = space.nothing(column)
    able = np.abs(after - features).max(axis=1) > 1e-9
    for group in space.simplexes:
        able &= after[:, group].sum(axis=1) > 1e-9
    for group in space.simplexes:
        after[:, group] /= np.maximum(after[:, group].sum(axis=1, keepdims=True), 1e-9)
    return features[able], after[able]


def _blend(space: Space, features: Array, a: str, b: str) -> list[tuple[float, Array]]:
    """Both checkpoints together against either alone; what is no merge weight has no average, but may be left out."""
    if space.simplexes:
        mixed = [_mixed(space, features, {a: x, b: 1.0 - x}) for x in (0.5, 1.0, 0.0)]
        return list(zip((1.0, -0.5, -0.5), mixed, strict=True))
    switched = [_switched(space, features, {a: x, b: y}) for x, y in ((1, 1), (1, 0), (0, 1), (0, 0))]
    return list(zip((1.0, -1.0, -1.0, 1.0), switched, strict=True))


def _mixed(space: Space, features: Array, shares: Weights) -> Array:
    """Half of each merge given to these checkpoints by their shares, and all of a merge that holds nothing else."""
    made = features.copy()
    for name in shares:
        made[:, space.columns(name)] = 0.0
    for group in space.simplexes:
        rest = made[:, group].sum(axis=1, keepdims=True)
        made[:, group] *= (1.0 - _PAIR_SHARE) / np.maximum(rest, 1e-9)
        for name, share in shares.items():
            column = [c for c in space.columns(name) if c in group]
            made[:, column] = np.where(rest > 1e-9, _PAIR_SHARE, 1.0) * share
    return made


def _switched(space: Space, features: Array, on: Mapping[str, int]) -> Array:
    """Task vectors at half of their range or left out."""
    made = features.copy()
    for name, there in on.items():
        for column in space.columns(name):
            made[:, column] = 0.5 if there else space.nothing(column)
    return made


def _surely(change: Change) -> float:
    """How many standard errors an objective gains; below zero it loses."""
    return (change.mean if change.maximise else -change.mean) / (change.stderr + 1e-12)


def _p(mean: float, stderr: float) -> float:
    """Two-sided, of a change of zero."""
    return erfc(abs(mean) / stderr / sqrt(2)) if stderr > 0.0 else float(mean == 0.0)


def _json(changes: Mapping[str, Change]) -> dict[str, Any]:
    return {name: change.to_json() for name, change in changes.items()}
