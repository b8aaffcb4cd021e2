"""From items' values to an objective's score: languages weighed, translations clustered, the error bar carried."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, isfinite, log, sqrt

from storage.records import Score
from workers.errors import TrialError
from workers.suites import Item

Across = str | Mapping[str, float]
"""How languages count: mean, min, softmin, or a weight for each language."""

_SOFTNESS = 0.05
"""Scale of the soft minimum: languages that differ by much less than this count alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Valued:
    """One item's value in one suite of an objective."""

    suite: str
    item: Item
    value: float | None


def objective_score(valued: Sequence[Valued], across: Across, bounds: tuple[float, float] | None) -> Score:
    """The objective's mean with its standard error.

    A language's mean is the average of its suites' means; the objective's is the mean, minimum, soft minimum or
    weighted mean of its languages. The standard error is that of the linearised estimate, clustered by ``group``
    (translations of one prompt vary together); where nothing varies and values are bounded, it is that of one
    success and one failure added (Agresti & Coull 1998), for 0 of n is not certainty.

    Raises: TrialError where a value is not finite, or no item of a language was scored.
    """
    scored = [v for v in valued if v.value is not None]
    for v in scored:
        if not isfinite(v.value or 0.0):
            raise TrialError(f"values must be finite, but item {v.item.id} of {v.suite} has {v.value}.")
    cells = _cells(valued)
    means = {cell: sum(values) / len(values) for cell, values in cells.items()}
    mean, slopes = _combine(means, across)
    pull: dict[tuple[str, str], float] = defaultdict(float)
    for v in scored:
        cell = (v.suite, v.item.lang)
        share = slopes[cell] / len(cells[cell])
        pull[v.suite, v.item.group or v.item.id] += share * ((v.value or 0.0) - means[cell])
    return Score(
        mean=mean,
        stderr=_stderr(list(pull.values()), mean, len(scored), bounds),
        n=len(scored),
        unscored=len(valued) - len(scored),
    )


def plain_score(values: Sequence[float], bounds: tuple[float, float] | None = (0.0, 1.0)) -> Score:
    """Mean and standard error of independent values."""
    n = len(values)
    mean = sum(values) / n
    return Score(mean=mean, stderr=_stderr([(v - mean) / n for v in values], mean, n, bounds), n=n)


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
    levels = {lang: sum(ms) / len(ms) for lang, ms in by_language.items()}
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


def _stderr(pulls: Sequence[float], mean: float, n: int, bounds: tuple[float, float] | None) -> float:
    clusters = len(pulls)
    spread = sum(p * p for p in pulls)
    if spread > 0.0 and clusters > 1:
        return sqrt(spread * clusters / (clusters - 1))
    if bounds is None:
        return 0.0
    low, high = bounds
    share = ((mean - low) / (high - low) * n + 1) / (n + 2)
    return (high - low) * sqrt(max(share * (1 - share), 0.0) / (n + 2))
