"""From items' values to an objective's score: languages weighed, translations clustered, the error bar carried."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, isfinite, log, sqrt
from statistics import fmean

from storage.records import Score
from workers.errors import TrialError
from workers.suites import Item

Across = str | Mapping[str, float]
"""How languages count: mean, min, softmin, or a weight for each language."""

Bounds = tuple[float, float] | None

_SOFTNESS = 0.05
"""Scale of the soft minimum: languages that differ by much less than this count alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Valued:
    """One item's value in one suite of an objective."""

    suite: str
    item: Item
    value: float | None


def objective_score(valued: Sequence[Valued], across: Across, bounds: Bounds) -> Score:
    """The objective's mean with its standard error.

    A language's mean is the average of its suites' means; the objective's is the mean, minimum, soft minimum or
    weighted mean of its languages. The standard error is that of the linearised estimate, within labels (how many
    items are harmful is no accident) and clustered by ``group`` (translations of one prompt vary together). Where
    nothing varies and values are bounded, every label's items count with one success and one failure more (Agresti &
    Coull 1998), for 0 of n is not certainty.

    Raises: TrialError where a value is not finite, or no item of a language was scored.
    """
    scored = [(v, v.value) for v in valued if v.value is not None]
    for v, value in scored:
        if not isfinite(value):
            raise TrialError(f"values must be finite, but item {v.item.id} of {v.suite} has {value}.")
    cells = _cells(valued)
    mean, slopes = _combine({cell: fmean(values) for cell, values in cells.items()}, across)
    strata: dict[tuple[str, str, str | None], list[float]] = defaultdict(list)
    for v, value in scored:
        strata[v.suite, v.item.lang, v.item.label].append(value)
    centres = {stratum: fmean(values) for stratum, values in strata.items()}
    shares = {stratum: slopes[stratum[:2]] / len(cells[stratum[:2]]) for stratum in strata}
    pulls: dict[tuple[str, str], float] = defaultdict(float)
    for v, value in scored:
        stratum = (v.suite, v.item.lang, v.item.label)
        pulls[v.suite, v.item.group or v.item.id] += shares[stratum] * (value - centres[stratum])
    spread = sum(p * p for p in pulls.values())
    if spread > 0.0 and len(pulls) > 1:
        variance = spread * len(pulls) / (len(pulls) - 1)
    else:
        variance = sum((shares[s] * len(vs)) ** 2 * _least_variance(vs, bounds) for s, vs in strata.items())
    return Score(mean=mean, stderr=sqrt(variance), n=len(scored), unscored=len(valued) - len(scored))


def plain_score(values: Sequence[float], bounds: Bounds = (0.0, 1.0)) -> Score:
    """Mean and standard error of independent values."""
    n, mean = len(values), fmean(values)
    spread = sum((v - mean) ** 2 for v in values)
    variance = spread / (n * (n - 1)) if spread > 0.0 else _least_variance(values, bounds)
    return Score(mean=mean, stderr=sqrt(variance), n=n)


def _cells(valued: Sequence[Valued]) -> dict[tuple[str, str], list[float]]:
    cells: dict[tuple[str, str], list[float]] = {}
    for v in valued:
        values = cells.setdefault((v.suite, v.item.lang), [])
        if v.value is not None:
            values.append(v.value)
    for (suite, lang), values in cells.items():
        if not values:
            raise TrialError(f"every language must have a scored item, but {lang} of {suite} has none.")
    return cells


def _combine(means: Mapping[tuple[str, str], float], across: Across) -> tuple[float, dict[tuple[str, str], float]]:
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


def _least_variance(values: Sequence[float], bounds: Bounds) -> float:
    """Variance of the mean of values that do not vary: with one at either bound added; 0 without bounds."""
    if bounds is None:
        return 0.0
    low, high = bounds
    n = len(values)
    share = ((fmean(values) - low) / (high - low) * n + 1) / (n + 2)
    return (high - low) ** 2 * share * (1 - share) / (n + 2)
