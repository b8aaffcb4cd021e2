"""What a paper claims, what the replay gives for it, and one word by rule."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import mean, stdev

from scipy.stats import t


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A mean over training seeds with its 95 % interval (Student's t); one seed alone has none."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """One value a training seed. Each seed answers items of its own, so their noise is within that of the seeds."""
        centre, count = mean(values), len(values)
        if count < 2:
            return cls(mean=centre, low=-inf, high=inf)
        half = float(t.ppf(0.975, count - 1)) * stdev(values) / sqrt(count)
        return cls(mean=centre, low=centre - half, high=centre + half)

    def text(self, digits: int = 1) -> str:
        """``4.1 [2.0, 6.2]``; no interval where there is none."""
        if self.low == -inf:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One claim of a paper, said of a number that is above ``bar`` if it is true (below, with ``less``).

    Attributes:
        text: the claim, in a sentence. paper: what the paper reports for it, with where (table, section).
        measure: what the number is, with its unit. values: one a training seed, on fresh items.
        bar: what must be exceeded: 0 for "better", a small negative margin for "no worse".
    """

    text: str
    paper: str
    measure: str
    values: Sequence[float]
    bar: float = 0.0
    less: bool = False
    digits: int = 1

    @property
    def spread(self) -> Spread:
        """Over the training seeds."""
        return Spread.of(self.values)

    @property
    def word(self) -> str:
        """holds: all of the interval is beyond the bar; does not: none of it; cannot be told: neither."""
        spread = self.spread
        if spread.low == spread.high == self.bar:
            return "does not"
        beyond, short = spread.low > self.bar, spread.high < self.bar
        if self.less:
            beyond, short = spread.high < self.bar, spread.low > self.bar
        return "holds" if beyond else "does not" if short else "cannot be told"
