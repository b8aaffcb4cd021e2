"""A study's checkpoints by where they lie, to be opened in whatever process merges them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from storage.checkpoints import Checkpoint, Source
from workers.merger import Merger, Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What merges are made of: plain values that travel to any process.

    Attributes:
        sources: base, checkpoints and references, in the order in which sums run. base: the base's name.
        seed: the study's, from which the masks of DARE and DELLA are drawn.
        fingerprints: of the sources when the study began, by name; what is fetched must have the same.
    """

    sources: tuple[Source, ...]
    base: str
    seed: int = 0
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Source:
        """The base: its directory has config and tokenizer."""
        return next(source for source in self.sources if source.name == self.base)

    def opened(self) -> dict[str, Checkpoint]:
        """Every checkpoint, mapped.

        Raises: InputError for one that does not open, and for one that was fetched and is not what the driver has: a
            network may bring something else.
        """
        checkpoints = {source.name: Checkpoint(source) for source in self.sources}
        for source in self.sources:
            if source.staged and source.name in self.fingerprints:
                checkpoints[source.name].require(self.fingerprints[source.name])
        return checkpoints

    def merger(self, tensors: Mapping[str, Tensors]) -> Merger:
        """Merges of the checkpoints' tensors, wherever these lie by now."""
        return Merger(tensors, self.base, seed=self.seed)
