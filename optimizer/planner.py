"""What one worker holds, what one of its trials moves, and how long that takes: arithmetic on bytes and bandwidths.

Nothing here looks at a machine: :mod:`optimizer.memory` knows what there is, :mod:`optimizer.bandwidths` measures.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Bytes a second, as one worker gets them while all the others of its machine are at the same.

    Attributes:
        merge: what a merge reads and writes, from where the checkpoints lie into the live weights. digest: of merged
            weights. disk: of files that are not in memory; None where nobody has to wait for it.
    """

    merge: float
    digest: float
    disk: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One worker, in bytes.

    Attributes:
        model: of its live weights, which a trial writes once. read: of the checkpoints that a trial reads at most.
            streamed: of these, what it moves from the host to a GPU. on_gpu: of weights on its GPUs, live and resident
            ones. pinned: of page-locked buffers on the host. own: of weights in host memory of its own. mapped: of
            checkpoints in mapped files that trials read, which all workers of a machine share. from_disk: whether
            there is too little memory for these to stay there from trial to trial.
    """

    model: int
    read: int
    streamed: int = 0
    on_gpu: int = 0
    pinned: int = 0
    own: int = 0
    mapped: int = 0
    from_disk: bool = False

    @property
    def moved(self) -> int:
        """Bytes that a merge reads and writes."""
        return self.read + self.model

    def seconds(self, rates: Rates) -> dict[str, float]:
        """Of one swap, by what they are spent on. Waiting for the disk is not hidden behind anything."""
        found = {"merge": self.moved / rates.merge, "digest": self.model / rates.digest}
        if self.from_disk and rates.disk is not None:
            found["disk"] = (self.streamed or self.read) / rates.disk
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A change of the study, and the bytes that are needed then of those that are free."""

    change: str
    needed: int
    free: int

    def __str__(self) -> str:
        return f"{self.change} ({size_of(self.needed)} of {size_of(self.free)})"


def ways_out(ways: Iterable[Way]) -> str:
    """The first three that fit, as the end of a sentence; the cheapest shall come first."""
    fitting = [str(way) for way in ways if way.needed <= way.free]
    return "; ways out: " + ", ".join(fitting[:3]) if fitting else ""


def size_of(count: float) -> str:
    """Bytes as a reader likes them."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
