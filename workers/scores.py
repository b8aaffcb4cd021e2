"""From items' values to an objective's score: languages weighed, translations clustered, the error bar carried."""

from collections.abc import Mapping, Sequence
from math import inf, isfinite, sqrt
from statistics import fmean
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from storage.records import Score
from workers.errors import TrialError
from workers.suites import Item

Across = str | Mapping[str, float]
"""How languages count: mean, min (the worst), softmin, cvar or cvar:SHARE (the mean of the worst share of them), or a
weight for each language."""

CVAR_SHARE = 0.3
"""Share of the languages that ``cvar`` without a number takes: of six the worst and four fifths of the next."""

Bounds = tuple[float, float] | None

_SOFTNESS = 0.05
"""Scale of the soft minimum: languages that differ by much less than this count alike."""

_Array = npt.NDArray[np.float64]
_AnyKey = TypeVar("_AnyKey", bound=tuple[str | None, ...])
_Key = tuple[str, str]
_Codes = npt.NDArray[np.intp]
_Mask = npt.NDArray[np.bool_]


class Aggregation:
    """Makes one score of the values of a fixed list of items; what depends on the items alone is laid out once.

    A language's mean is the average of its suites' means; the objective's is the mean, the worst, a soft minimum, the
    mean of the worst share (conditional value at risk, Rockafellar & Uryasev 2000: a language on its edge counts in
    part, and fewer than one language is the worst one) or a weighted mean of its languages. The standard error is that
    of the linearised estimate, within labels (how many items are harmful is no accident) and clustered by ``group``
    (translations of one prompt vary together). Where nothing varies and values are bounded, every label's items count
    with one success and one failure more (Agresti & Coull 1998), for 0 of n is not certainty.

    Args:
        items: (suite, item) pairs. across: how languages count. bounds: where values lie, None without bounds.
        maximise: whether more is better, which says what the worst is.
    """

    def __init__(
        self, items: Sequence[tuple[str, Item]], across: Across, bounds: Bounds, *, maximise: bool = True
    ) -> None:
        self._items = items
        self._across = across
        self._bounds = bounds
        self._maximise = maximise
        self._cell, self._cells = _codes([(suite, item.lang) for suite, item in items])
        self._languages, self._averages = _averages(self._cells)
        self._stratum, _ = _codes([(suite, item.lang, item.label) for suite, item in items])
        self._cluster, self._clusters = _codes([(suite, item.group or item.id) for suite, item in items])

    def score(self, values: Sequence[float | None]) -> Score:
        """The mean with its standard error, of values in the items' order; None is unscored.

        Raises: TrialError where a value is not finite or out of bounds, or no item of a language was scored.
        """
        numbers, scored = self._numbers(values)
        mean, shares = self._linearised(numbers, scored)
        variance = self._variance(numbers[scored], scored, shares[scored])
        n = int(scored.sum())
        return Score(mean=mean, stderr=sqrt(variance), n=n, unscored=len(values) - n)

    def contributions(self, values: Sequence[float | None]) -> tuple[float, _Array]:
        """The mean, and what each cluster ``(clusters,)`` adds to it at these weights. Raises as `score` does."""
        numbers, scored = self._numbers(values)
        mean, shares = self._linearised(numbers, scored)
        return mean, np.bincount(self._cluster, shares * numbers, len(self._clusters)).astype(np.float64)

    def shares(self, values: Sequence[float | None]) -> _Array:
        """Each item's weight in the mean, at these values; 0 where unscored. Raises: TrialError as `score` does."""
        return self._linearised(*self._numbers(values))[1]

    def _numbers(self, values: Sequence[float | None]) -> tuple[_Array, _Mask]:
        """The values with 0 for unscored, and which are scored."""
        scored = np.array([v is not None for v in values], dtype=bool)
        numbers = np.array([0.0 if v is None else v for v in values])
        if not np.isfinite(numbers).all():
            place = int(np.flatnonzero(~np.isfinite(numbers))[0])
            suite, item = self._items[place]
            raise TrialError(f"values must be finite, but item {item.id} of {suite} has {values[place]}.")
        self._require_bounds(numbers[scored], np.flatnonzero(scored))
        return numbers, scored

    def _require_bounds(self, numbers: _Array, places: _Codes) -> None:
        """What lies outside of its scorer's range, or is no item at all, is no score."""
        if not len(self._items):
            raise TrialError("a score must be of items, but there are none.")
        low, high = self._bounds or (-inf, inf)
        outside = np.flatnonzero((numbers < low) | (numbers > high))
        if len(outside):
            suite, item = self._items[int(places[outside[0]])]
            raise TrialError(
                f"values must lie in [{low:g}, {high:g}], but item {item.id} of {suite} has {numbers[outside[0]]:g}."
            )

    def _linearised(self, numbers: _Array, scored: _Mask) -> tuple[float, _Array]:
        """The mean, and each item's weight in it."""
        in_cell = np.bincount(self._cell[scored], minlength=len(self._cells))
        for count, (suite, lang) in zip(in_cell, self._cells, strict=True):
            if count == 0:
                raise TrialError(f"every language must have a scored item, but {lang} of {suite} has none.")
        means = np.bincount(self._cell[scored], numbers[scored]) / in_cell
        mean, slopes = _across(means @ self._averages, self._languages, self._across, self._maximise)
        shares: _Array = (self._averages @ slopes / in_cell)[self._cell]
        return float(mean), np.where(scored, shares, 0.0)

    def resampled(self, values: Sequence[float | None], times: _Array) -> _Array:
        """The objective ``(draws,)`` where cluster c stands ``times[draw, c]`` times; ``times`` is (draws, clusters).

        A language that a draw leaves without items keeps its mean of all items. None is unscored, as in `score`.
        """
        numbers, scored = self._numbers(values)
        shape = (times.shape[1], len(self._cells))
        place = self._cluster[scored] * shape[1] + self._cell[scored]
        sums = np.bincount(place, numbers[scored], shape[0] * shape[1]).reshape(shape)
        counts = np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)
        drawn, whole = times @ counts, sums.sum(axis=0) / counts.sum(axis=0)
        means = np.where(drawn > 0, times @ sums / np.maximum(drawn, 1e-12), whole)
        return _across(means @ self._averages, self._languages, self._across, self._maximise)[0]

    @property
    def cluster_of(self) -> _Codes:
        """Each item's cluster ``(items,)``."""
        return self._cluster

    @property
    def clusters(self) -> list[tuple[str, frozenset[tuple[str, str | None]]]]:
        """Each cluster's kind: its suite, and the languages and labels that its items have."""
        kinds: list[set[tuple[str, str | None]]] = [set() for _ in self._clusters]
        for place, (_, item) in zip(self._cluster, self._items, strict=True):
            kinds[place].add((item.lang, item.label))
        return [(suite, frozenset(kind)) for (suite, _), kind in zip(self._clusters, kinds, strict=True)]

    def _variance(self, numbers: _Array, scored: _Mask, share: _Array) -> float:
        """Of the mean; ``share`` is each item's weight in it."""
        stratum, cluster = self._stratum[scored], self._cluster[scored]
        size = np.bincount(stratum)
        centre = np.bincount(stratum, numbers) / np.maximum(size, 1)
        count = _clusters_in(stratum, cluster)
        free = np.sqrt(count / np.maximum(count - 1, 1))  # a mean of m clusters lies too close to each of them
        pulls = np.bincount(cluster, free[stratum] * share * (numbers - centre[stratum]))
        spread = float((pulls**2).sum())
        if spread > 1e-24:
            return spread
        weight = np.bincount(stratum, share)
        strata = zip(weight.tolist(), centre.tolist(), size.tolist(), strict=True)
        return float(sum(w**2 * _least_variance(c, n, self._bounds) for w, c, n in strata if n))


def plain_score(values: Sequence[float], bounds: Bounds = (0.0, 1.0)) -> Score:
    """Mean and standard error of independent values."""
    if not values:
        raise TrialError("a score must be of items, but there are none.")
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


def _clusters_in(stratum: _Codes, cluster: _Codes) -> _Codes:
    """How many clusters each stratum has."""
    return np.bincount(np.unique(np.stack([stratum, cluster]), axis=1)[0])


def _averages(cells: Sequence[_Key]) -> tuple[list[str], _Array]:
    """The languages, and the matrix (cells, languages) by which a language's level is the mean of its suites' means."""
    languages, names = _codes([(lang,) for _, lang in cells])
    matrix = np.zeros((len(cells), len(names)))
    matrix[np.arange(len(cells)), languages] = 1.0
    return [str(name) for (name,) in names], matrix / matrix.sum(axis=0)


def _across(levels: _Array, languages: Sequence[str], across: Across, maximise: bool) -> tuple[_Array, _Array]:
    """Objectives ``(...)`` of levels ``(..., languages)``, and their slopes ``(..., languages)`` in them."""
    count = len(languages)
    if not isinstance(across, str):
        raw = np.array([across.get(lang, 0.0) for lang in languages])
        return levels @ (raw / raw.sum()), np.broadcast_to(raw / raw.sum(), levels.shape)
    if across == "mean":
        return levels.mean(axis=-1), np.full(levels.shape, 1 / count)
    sign = 1.0 if maximise else -1.0
    if across == "softmin":
        value, slopes = _softmin(sign * levels)
        return sign * value, slopes
    worst = 1.0 if across == "min" else max(_share(across) * count, 1.0)
    taken = np.clip(worst - np.arange(count), 0.0, 1.0) / worst
    order = np.argsort(sign * levels, axis=-1, kind="stable")
    slopes = np.empty(levels.shape)
    np.put_along_axis(slopes, order, np.broadcast_to(taken, levels.shape), axis=-1)
    return (levels * slopes).sum(axis=-1), slopes


def _softmin(levels: _Array) -> tuple[_Array, _Array]:
    low = levels.min(axis=-1, keepdims=True)
    parts = np.exp(-(levels - low) / _SOFTNESS)
    value = low[..., 0] - _SOFTNESS * np.log(parts.mean(axis=-1))
    return value, parts / parts.sum(axis=-1, keepdims=True)


def _share(across: str) -> float:
    """The share in ``cvar`` or ``cvar:SHARE``."""
    name, _, share = across.partition(":")
    if name != "cvar":
        raise ValueError(f"languages count by mean, min, softmin, cvar or weights, but got {across!r}")
    return float(share) if share else CVAR_SHARE


def _least_variance(mean: float, n: int, bounds: Bounds) -> float:
    """Variance of the mean of n values that do not vary: with one at either bound added; 0 without bounds."""
    if bounds is None:
        return 0.0
    low, high = bounds
    share = ((mean - low) / (high - low) * n + 1) / (n + 2)
    return (high - low) ** 2 * share * (1 - share) / (n + 2)
