"""What a study has measured, as arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optimizer.features import Array, Space

MOST_POINTS = 350
"""Most trials that a proposal's model is conditioned on: those nearest to the front, and a spread of the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """COMPLETE trials as arrays, every objective turned so that more is better.

    ``values`` and ``variances`` are ``(n, m)``, the latter NaN where a trial has no ``stderr``; ``constraints`` is
    ``(n, c)``, NaN where a trial does not state one, and 0 or less is feasible.
    """

    numbers: tuple[int, ...]
    params: tuple[Mapping[str, Any], ...]
    values: Array
    variances: Array
    constraints: Array

    def inside(self, space: Space) -> npt.NDArray[np.int_]:
        """Which trials lie in the space: baselines such as the base model do not."""
        return np.array([i for i, p in enumerate(self.params) if space.holds(p)], dtype=int)

    def rows(self, index: npt.NDArray[np.int_]) -> Data:
        """The same for some of the trials."""
        return Data(
            numbers=tuple(self.numbers[i] for i in index),
            params=tuple(self.params[i] for i in index),
            values=self.values[index],
            variances=self.variances[index],
            constraints=self.constraints[index],
        )


def signs(study: Study) -> Array:
    """``(m,)``: 1 for an objective to maximise, -1 for one to minimise."""
    return np.array([1.0 if d == StudyDirection.MAXIMIZE else -1.0 for d in study.directions])


def data_of(study: Study) -> Data:
    """All COMPLETE trials with finite values, in order of their number."""
    trials = [
        t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if np.all(np.isfinite(t.values))
    ]
    m = len(study.directions)
    names = sorted({name for t in trials for name in t.constraints})
    constraints = [[t.constraints.get(name, math.nan) for name in names] for t in trials]
    return Data(
        numbers=tuple(t.number for t in trials),
        params=tuple(t.params for t in trials),
        values=np.array([t.values for t in trials], dtype=float).reshape(-1, m) * signs(study),
        variances=np.array([_variances(t, m) for t in trials], dtype=float).reshape(-1, m),
        constraints=np.array(constraints, dtype=float).reshape(len(trials), len(names)),
    )


def _variances(trial: FrozenTrial, m: int) -> list[float]:
    stderr = trial.user_attrs.get("stderr")
    if not isinstance(stderr, (list, tuple)) or len(stderr) != m:
        return [math.nan] * m
    return [float(s) ** 2 if isinstance(s, (int, float)) and math.isfinite(s) else math.nan for s in stderr]


def most_telling(data: Data, most: int = MOST_POINTS) -> npt.NDArray[np.int_]:
    """Rows of at most ``most`` trials: the half nearest to the front, and an even spread of the others."""
    if len(data.numbers) <= most:
        return np.arange(len(data.numbers))
    low, high = data.values.min(axis=0), data.values.max(axis=0)
    scaled = (data.values - low) / np.where(high > low, high - low, 1.0)
    order = np.lexsort(np.concatenate([data.values, data.variances], axis=1).T)
    directions = np.random.default_rng(0).exponential(size=(64, scaled.shape[1])) + 1e-2
    utility = np.min(scaled[:, None, :] / directions, axis=2)
    regret = np.min(utility.max(axis=0) - utility, axis=1)[order]
    ranked = order[np.argsort(regret, kind="stable")]
    near, rest = ranked[: most // 2], ranked[most // 2 :]
    return np.concatenate([near, rest[np.linspace(0, len(rest) - 1, most - len(near)).astype(int)]])
