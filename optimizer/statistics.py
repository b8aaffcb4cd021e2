"""What may be said of two merges that answered the same items, and how surely.

Two merges find the same items hard, so their difference is known far better than either score: everything here is
paired by item. Items that share a cluster (translations of one prompt) vary together, so clusters are drawn, not items.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, norm

from storage.records import Z95, Score
from workers.scores import Across, Aggregation, Bounds
from workers.suites import Item

Array = npt.NDArray[np.float64]
Values = Sequence[float | None]

DRAWS = 2000
_MOST_COUNTS = 10_000_000
"""Of one resample matrix (80 MB); a longer list of clusters gets fewer draws, though never fewer than 400."""

_FEWEST_DRAWS = 400
_FLIPS = 9999
_FEWEST = 5
"""Kinds of clusters with fewer members than this are drawn together: one cluster alone shows no spread."""

_POWERED = float(norm.ppf(0.975) + norm.ppf(0.8))
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far A lies above B on the items that both were scored on, in the objective's own unit and direction.

    Attributes:
        low, high: 95 % interval. p: two-sided, of the hypothesis that A and B are exchangeable on every cluster.
        n: items. clusters: of which each counts once. wins, losses: items where A's value is higher, lower.
    """

    mean: float
    stderr: float
    low: float
    high: float
    p: float
    n: int
    clusters: int
    wins: int
    losses: int

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0.0 or self.high < 0.0

    @property
    def items_needed(self) -> int | None:
        """Items like these that would show this difference four times in five, at 5 %; None where there is none."""
        if abs(self.mean) < _ROUNDING or not self.stderr:  # sums of equal values differ in their last bits
            return None
        return ceil(self.n * (_POWERED * self.stderr / self.mean) ** 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Relative:
    """A against B as papers have it: the change in percent of B, and how often A is higher (a tie is half a win).

    Both with their 95 % intervals; ``change`` is None where B's value may be zero or of the other sign. In the win rate
    every suite and language counts alike.
    """

    change: tuple[float, float, float] | None
    win_rate: tuple[float, float, float]
    n: int


class Pairing:
    """Candidates on one list of items: one resample matrix serves them all, so every difference is paired.

    Args: as of :class:`workers.scores.Aggregation`; the same seed draws the same resamples.
    """

    def __init__(
        self,
        items: Sequence[tuple[str, Item]],
        across: Across,
        bounds: Bounds,
        *,
        maximise: bool = True,
        draws: int = DRAWS,
        seed: int = 0,
    ) -> None:
        self._whole = Aggregation(items, across, bounds, maximise=maximise)
        self._even = Aggregation(items, "mean", (0.0, 1.0))
        self._linear = not isinstance(across, str) or across == "mean"
        self._width = 0.0 if bounds is None else bounds[1] - bounds[0]
        kinds = self._whole.clusters
        fewer = max(_MOST_COUNTS // len(kinds), _FEWEST_DRAWS)
        self._times = resamples(kinds, draws=min(draws, fewer), seed=seed)
        self._seed = seed
        self._drawn: dict[tuple[float | None, ...], Array] = {}

    def difference(self, a: Values, b: Values) -> Difference:
        """A minus B. Raises TrialError where a language has no item that both were scored on."""
        a, b = both_scored(a, b)
        mean = self._whole.score(a).mean - self._whole.score(b).mean
        drawn = self._resampled(a) - self._resampled(b)
        gaps = np.array([0.0 if x is None or y is None else x - y for x, y in zip(a, b, strict=True)])
        clusters, n = self._clusters(a), sum(x is not None for x in a)
        low, high, stderr = _interval(drawn, mean, self._width * _floor(clusters, n))
        return Difference(
            mean=mean,
            stderr=stderr,
            low=self._within(low),
            high=self._within(high),
            p=self._p(a, gaps, drawn),
            n=n,
            clusters=clusters,
            wins=int((gaps > 0).sum()),
            losses=int((gaps < 0).sum()),
        )

    def relative(self, a: Values, b: Values) -> Relative:
        """A in relation to B. Raises TrialError as :meth:`difference` does."""
        a, b = both_scored(a, b)
        wins = [None if x is None or y is None else _win(x, y) for x, y in zip(a, b, strict=True)]
        rate = self._even.score(wins)
        low, high, _ = _interval(
            self._even.resampled(wins, self._times), rate.mean, _floor(self._clusters(wins), rate.n)
        )
        return Relative(change=self._change(a, b), win_rate=(rate.mean, max(low, 0.0), min(high, 1.0)), n=rate.n)

    def _within(self, difference: float) -> float:
        """Values with bounds differ by no more than these are apart."""
        return max(-self._width, min(difference, self._width)) if self._width else difference

    def _clusters(self, values: Values) -> int:
        """How many clusters have a scored item."""
        return len(np.unique(self._whole.cluster_of[[v is not None for v in values]]))

    def _resampled(self, values: Values) -> Array:
        """Kept, for one candidate is held against many."""
        key = tuple(values)
        if key not in self._drawn:
            self._drawn[key] = self._whole.resampled(values, self._times)
        return self._drawn[key]

    def _change(self, a: Values, b: Values) -> tuple[float, float, float] | None:
        below, score = self._resampled(b), self._whole.score(b)
        if abs(score.mean) <= Z95 * score.stderr or (np.sign(below) != np.sign(score.mean)).any():
            return None
        change = 100 * (self._whole.score(a).mean / score.mean - 1)
        floor = 100 * self._width * _floor(self._clusters(a), score.n) / abs(score.mean)
        low, high, _ = _interval(100 * (self._resampled(a) / below - 1), change, floor)
        return change, low, high

    def _p(self, scored: Values, gaps: Array, drawn: Array) -> float:
        """Sign flips of whole clusters; where languages do not simply add up, the bootstrap's own tail."""
        if not self._linear:
            tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
            return min(2 * (tail + 1) / (len(drawn) + 1), 1.0)
        shares = self._whole.shares(scored)
        weights = shares[[v is not None for v in scored]]
        if np.ptp(weights) < 1e-12 and np.isin(gaps, (-1.0, 0.0, 1.0)).all():
            return mcnemar(np.bincount(self._whole.cluster_of, gaps).round().astype(int).tolist())
        pulls = np.bincount(self._whole.cluster_of, gaps * shares)
        return sign_flips(pulls.astype(float), seed=self._seed)


def both_scored(a: Values, b: Values) -> tuple[list[float | None], list[float | None]]:
    """The two columns with None in both where either is unscored."""
    pairs = [(None, None) if x is None or y is None else (x, y) for x, y in zip(a, b, strict=True)]
    return [x for x, _ in pairs], [y for _, y in pairs]


def resamples(kinds: Sequence[tuple[str, Hashable]], *, draws: int = DRAWS, seed: int = 0) -> Array:
    """How often each cluster stands in each draw, ``(draws, clusters)``.

    Clusters are drawn within their kind (suite, languages, labels), whose numbers are no accident. One fewer is drawn
    than there are, which makes the bootstrap's variance unbiased for small kinds as well (Rao & Wu 1988).
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for cluster, own in enumerate(kinds):
        members[own].append(cluster)
    drawn: dict[Hashable, list[int]] = defaultdict(list)
    for clusters in members.values():
        kind = kinds[clusters[0]]
        drawn[kind if len(clusters) >= _FEWEST else kind[0]].extend(clusters)
    rng = np.random.default_rng(seed)
    times = np.ones((draws, len(kinds)))
    for clusters in drawn.values():
        count = len(clusters)
        if count > 1:
            times[:, clusters] = rng.multinomial(count - 1, [1 / count] * count, size=draws)
    return times


def mcnemar(net: Sequence[int]) -> float:
    """Exact two-sided p of net wins by cluster, under fair coins for their signs.

    With one item a cluster this is the exact test of McNemar (1947); a cluster of translations keeps its net number of
    wins and has one coin for all of them. The distribution is exact: a binomial for each size, convolved.
    """
    sizes = np.abs(np.asarray(net, dtype=int))
    chances = np.ones(1)
    for size in range(1, int(sizes.max(initial=0)) + 1):
        count = int((sizes == size).sum())
        if count:
            spaced = np.zeros(2 * size * count + 1)
            spaced[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
            chances = np.convolve(chances, spaced)
    total = int(sizes.sum())
    sums = np.arange(-total, total + 1)
    return float(min(chances[np.abs(sums) >= abs(int(np.sum(net)))].sum(), 1.0))


def sign_flips(pulls: Array, *, seed: int = 0, flips: int = _FLIPS) -> float:
    """Two-sided p of the sum of ``pulls``, one a cluster, under fair coins for their signs (random flips, seeded)."""
    pulls = pulls[pulls != 0.0]
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(flips, len(pulls)))
    extreme = np.abs(signs @ pulls) >= abs(pulls.sum()) * (1 - 1e-9)
    return float((extreme.sum() + 1) / (flips + 1))


def holm(ps: Sequence[float]) -> list[float]:
    """The p values adjusted for being a family (Holm 1979), in their order."""
    order = np.argsort(ps, kind="stable")
    steps = np.asarray(ps, dtype=float)[order] * (len(ps) - np.arange(len(ps)))
    adjusted = np.empty(len(ps))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(p) for p in adjusted]


def gap(search: Score, fresh: Score, *, maximise: bool = True) -> tuple[float, float, float]:
    """By how much the search flattered, with its 95 % interval: the two scores are of different items."""
    value = (search.mean - fresh.mean) * (1.0 if maximise else -1.0)
    margin = Z95 * sqrt(search.stderr**2 + fresh.stderr**2)
    return value, value - margin, value + margin


def _win(a: float, b: float) -> float:
    return 0.5 + 0.5 * float(np.sign(a - b))


def _floor(clusters: int, items: int) -> float:
    """Standard error, as a share of the values' range, of one discordant pair of items more (Agresti & Min 2005)."""
    return 1 / ((clusters + 2) * sqrt(items / clusters))


def _interval(drawn: Array, mean: float, floor: float) -> tuple[float, float, float]:
    """Low, high and standard error: the draws' quantiles, spread about the mean, widened by ``floor``.

    Merges that agree on every item of n are not known to agree on the next n.
    """
    spread = float(drawn.std(ddof=1))
    stderr = sqrt(spread**2 + floor**2)
    if spread <= 1e-12:
        return mean - Z95 * stderr, mean + Z95 * stderr, stderr
    low, high = np.quantile(drawn, [0.025, 0.975])
    centre, wider = float(drawn.mean()), stderr / spread
    return mean + (float(low) - centre) * wider, mean + (float(high) - centre) * wider, stderr
