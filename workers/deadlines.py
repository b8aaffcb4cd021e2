"""How long a worker may be silent before it counts as hung."""

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Deadlines:
    """From the longest trial seen so far on the same split.

    Attributes:
        first: seconds where nothing has been seen yet: opening models, first trials. least: never less than this.
        factor: how many times the longest.
    """

    first: float = 3600.0
    least: float = 120.0
    factor: float = 10.0
    _longest: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def saw(self, split: str, seconds: float) -> None:
        """A trial on that split took so long."""
        self._longest[split] = max(self._longest[split], seconds)

    def seconds(self, split: str) -> float:
        """How long the next one may take."""
        longest = self._longest.get(split)
        return self.first if longest is None else max(self.least, self.factor * longest)
