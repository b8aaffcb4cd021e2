"""Rates as a Gaussian process can take them.

The share of items that are right moves fast in the middle and hardly at all near 0 and 1, and so does its noise. The
arcsine of its square root is free of both: on that scale a rate of n items has the variance 1/(4n) wherever it lies
(Anscombe 1948, doi:10.1093/biomet/35.3-4.246), and a cliff is less steep. The angle of a measured rate lies too far out
in the mean, so every rate is drawn in first by what its noise does to that mean (Brown, Cai and Zhou 2010,
doi:10.1214/09-AOS762: a quarter is added to what is right and to what is wrong).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from optimizer.features import Array

_END = 1e-6
"""Rates whose ``4 p (1 - p)`` is no more than this are 0 or 1."""

_LEAST_SLOPE = 0.05
"""That of a rate of 0.9994."""


@dataclass(frozen=True, slots=True)
class Angles:
    """Which of ``o`` outcomes are rates, and how to come and go between their units and angles.

    Attributes:
        floor: ``(o,)``, the lowest value that is possible, 0 for a rate and -1 for one with its sign turned; NaN for
            an outcome that is no rate and stays as it is.
    """

    floor: tuple[float, ...]

    @classmethod
    def of(cls, values: Array, variances: Array) -> Angles:
        """By what was measured, ``(n, o)``, and its variances, NaN where unknown.

        A rate never leaves [0, 1], or [-1, 0], and its variances differ less on the other scale than on its own.
        """
        return cls(tuple(_floor(*column) for column in zip(values.T, variances.T, strict=True)))

    def forward(self, values: Array, variances: Array) -> tuple[Array, Array]:
        """Values and variances ``(n, o)`` of the same measurements on the model's scale, NaN where unknown."""
        values, variances = values.copy(), variances.copy()
        for i, floor in enumerate(self.floor):
            if not math.isnan(floor):
                values[:, i], variances[:, i] = _angles(values[:, i] - floor, variances[:, i])
        return values, variances

    def back(self, angles: torch.Tensor) -> torch.Tensor:
        """``(..., o, n)`` back in units."""
        floor, are = self._columns()
        return torch.where(are, floor + angles.clamp(0.0, torch.pi / 2.0).sin() ** 2, angles)

    def slope(self, mean: torch.Tensor) -> torch.Tensor:
        """Change in units by angle ``(..., o, n)``; never 0, for a mean at its end is not certain either."""
        _, are = self._columns()
        steep = (2.0 * mean.clamp(0.0, torch.pi / 2.0)).sin().clamp_min(_LEAST_SLOPE)
        return torch.where(are, steep, torch.ones_like(mean))

    def _columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        floor = torch.tensor(self.floor, dtype=torch.float64).unsqueeze(-1)
        return floor.nan_to_num(), ~floor.isnan()


def _angles(rates: Array, variances: Array) -> tuple[Array, Array]:
    """At its ends a rate states no variance that could be believed: there it is as for most of the others.

    A rate of unknown variance is not drawn in.
    """
    rates = np.clip(rates, 0.0, 1.0)
    slack = 4.0 * rates * (1.0 - rates)
    inside = np.isfinite(variances) & (slack > _END)
    found = np.divide(variances, slack, out=np.full(len(rates), math.nan), where=inside)
    if inside.any():
        found[np.isfinite(variances) & ~inside] = np.median(found[inside])
    shift = np.nan_to_num(found, nan=0.0)  # of a rate of n items 1/(4n)
    return np.arcsin(np.sqrt((rates + shift) / (1.0 + 2.0 * shift))), found


def _floor(values: Array, variances: Array) -> float:
    for floor in (0.0, -1.0):
        if floor <= values.min() and values.max() <= floor + 1.0 and _is_steadied(values - floor, variances):
            return floor
    return math.nan


def _is_steadied(rates: Array, variances: Array) -> bool:
    slack = 4.0 * rates * (1.0 - rates)
    inside = (variances > 0.0) & (slack > _END)
    if not inside.any():
        return False
    own = np.log(variances[inside])
    return bool(np.std(own - np.log(slack[inside])) < np.std(own))
