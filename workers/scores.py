"""From items' values to an objective's score: languages weighed, translations clustered, the error bar carried."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import exp, isfinite, log, sqrt
from statistics import fmean
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from storage.records import Score
from workers.errors import TrialError
from workers.suites import Item

Across = str | Mapping[str, float]
"""How languages count: mean, min, softmin, or a weight for each language."""

Bounds = tuple[float, float] | None

_SOFTNESS = 0.05
"""Scale of the soft minimum: languages that differ by much less than this count alike."""

_Array = npt.NDArray[np.float64]
_AnyKey = TypeVar("_AnyKey", bound=tuple[str | None, ...])
_Key = tuple[str, str]
_Codes = npt.NDArray[np.intp]


class Aggregation:
    """Makes one score of the values of a fixed list of items; what depends on the items alone is laid out once.

    A language's mean is the average of its suites' means; the objective's is the mean, minimum, soft minimum or
    weighted mean of its languages. The standard error is that of the linearised estimate, within labels (how many
    items are harmful is no accident) and clustered by ``group`` (translations of one prompt vary together). Where
    nothing varies and values are bounded, every label's items count with one success and one failure more (Agresti &
    Coull 1998), for 0 of n is not certainty.

    Args:
        items: (suite, item) pairs. across: how languages count. bounds: where values lie, None without bounds.
    """

    def __init__(self, items: Sequence[tuple[str, Item]], across: Across, bounds: Bounds) -> None:
        self._items = items
        self._across = across
        self._bounds = bounds
        self._cell, self._cells = _codes([(suite, item.lang) for suite, item in items])
        self._stratum, _ = _codes([(suite, item.lang, item.label) for suite, item in items])
        self._cluster, _ = _codes([(suite, item.group or item.id) for suite, item in items])

    def score(self, values: Sequence[float | None]) -> Score:
        """The mean with its standard error, of values in the items' order; None is unscored.

        Raises: TrialError where a value is not finite, or no item of a language was scored.
        """
        scored = np.array([v is not None for v in values])
        numbers = np.array([0.0 if v is None else v for v in values])
        if not np.isfinite(numbers).all():
            place = int(np.flatnonzero(~np.isfinite(numbers))[0])
            suite, item = self._items[place]
            raise TrialError(f"values must be finite, but item {item.id} of {suite} has {values[place]}.")
        in_cell = np.bincount(self._cell[scored], minlength=len(self._cells))
        for count, (suite, lang) in zip(in_cell, self._cells, strict=True):
            if count == 0:
                raise TrialError(f"every language must have a scored item, but {lang} of {suite} has none.")
        means = np.bincount(self._cell[scored], numbers[scored]) / in_cell
        mean, slopes = _combine(dict(zip(self._cells, means.tolist(), strict=True)), self._across)
        share = np.array([slopes[cell] for cell in self._cells]) / in_cell
        variance = self._variance(numbers[scored], scored, share[self._cell[scored]])
        n = int(scored.sum())
        return Score(mean=mean, stderr=sqrt(variance), n=n, unscored=len(values) - n)

    def _variance(self, numbers: _Array, scored: npt.NDArray[np.bool_], share: _Array) -> float:
        """Of the mean; ``share`` is each item's weight in it."""
        stratum = self._stratum[scored]
        size = np.bincount(stratum)
        centre = np.bincount(stratum, numbers) / np.maximum(size, 1)
        pulls = np.bincount(self._cluster[scored], share * (numbers - centre[stratum]))
        clusters = len(np.unique(self._cluster[scored]))
        spread = float((pulls**2).sum())
        if spread > 1e-24 and clusters > 1:
            return spread * clusters / (clusters - 1)
        weight = np.bincount(stratum, share)
        strata = zip(weight.tolist(), centre.tolist(), size.tolist(), strict=True)
        return float(sum(w**2 * _least_variance(c, n, self._bounds) for w, c, n in strata if n))


def plain_score(values: Sequence[float], bounds: Bounds = (0.0, 1.0)) -> Score:
    """Mean and standard error of independent values."""
    n, mean = len(values), fmean(values)
    if not isfinite(mean):
        raise TrialError(f"values must be finite, but their mean is {mean}.")
    spread = sum((v - mean) ** 2 for v in values)
    variance = spread / (n * (n - 1)) if spread > 0.0 else _least_variance(mean, n, bounds)
    return Score(mean=mean, stderr=sqrt(variance), n=n)


def _codes(keys: Sequence[_AnyKey]) -> tuple[_Codes, list[_AnyKey]]:
    """Each key's place among the different keys, and these."""
    distinct = list(dict.fromkeys(keys))
    places = {key: i for i, key in enumerate(distinct)}
    return np.array([places[key] for key in keys], dtype=np.intp), distinct


def _combine(means: Mapping[_Key, float], across: Across) -> tuple[float, dict[_Key, float]]:
    """The objective's value and its slope in every (suite, language) mean."""
    by_language: dict[str, list[float]] = defaultdict(list)
    for (_, lang), mean in means.items():
        by_language[lang].append(mean)
    levels = {lang: fmean(ms) for lang, ms in by_language.items()}
    value, weights = _across(levels, across)
    return value, {cell: weights[cell[1]] / len(by_language[cell[1]]) for cell in means}


def _across(levels: Mapping[str, float], across: Across) -> tuple[float, dict[str, float]]:
    if across == "min":
        worst = min(levels, key=levels.__getitem__)
        return levels[worst], {lang: float(lang == worst) for lang in levels}
    if across == "softmin":
        return _softmin(levels)
    raw = dict.fromkeys(levels, 1.0) if isinstance(across, str) else {lang: across.get(lang, 0.0) for lang in levels}
    total = sum(raw.values())
    weights = {lang: w / total for lang, w in raw.items()}
    return sum(weights[lang] * level for lang, level in levels.items()), weights


def _softmin(levels: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    low = min(levels.values())
    parts = {lang: exp(-(level - low) / _SOFTNESS) for lang, level in levels.items()}
    total = sum(parts.values())
    return low - _SOFTNESS * log(total / len(levels)), {lang: part / total for lang, part in parts.items()}


def _least_variance(mean: float, n: int, bounds: Bounds) -> float:
    """Variance of the mean of n values that do not vary: with one at either bound added; 0 without bounds."""
    if bounds is None:
        return 0.0
    low, high = bounds
    share = ((mean - low) / (high - low) * n + 1) / (n + 2)
    return (high - low) ** 2 * share * (1 - share) / (n + 2)
