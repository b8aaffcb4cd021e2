"""A study's checkpoints by where they lie, to be opened in whatever process merges them."""

from collections.abc import Mapping
from dataclasses import dataclass

from storage.checkpoints import Checkpoint, Source
from workers.merger import Merger, Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What merges are made of: plain values that travel to any process.

    Attributes:
        sources: base, checkpoints and references, in the order in which sums run. base: the base's name.
        seed: the study's, from which the masks of DARE and DELLA are drawn.
    """

    sources: tuple[Source, ...]
    base: str
    seed: int = 0

    @property
    def root(self) -> Source:
        """The base: its directory has config and tokenizer."""
        return next(source for source in self.sources if source.name == self.base)

    def opened(self) -> dict[str, Checkpoint]:
        """Every checkpoint, mapped; raises InputError for one that does not open."""
        return {source.name: Checkpoint(source) for source in self.sources}

    def merger(self, tensors: Mapping[str, Tensors]) -> Merger:
        """Merges of the checkpoints' tensors, wherever these lie by now."""
        return Merger(tensors, self.base, seed=self.seed)
