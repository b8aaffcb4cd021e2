"""A study's checkpoints by where they lie, to be opened in whatever process merges them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from storage.checkpoints import Checkpoint, Source
from storage.file_records import FileRecords
from workers.merger import Merger, Tensors
from workers.shares import WHOLE, Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What merges are made of: plain values that travel to any process.

    Attributes:
        sources: base, checkpoints and references, in the order in which sums run. base: the base's name.
        seed: the study's, from which the masks of DARE and DELLA are drawn.
        fingerprints: of the sources when the study began, by name; what is opened must have the same. files: what their
            files were then; those that look the same are not read for it.
    """

    sources: tuple[Source, ...]
    base: str
    seed: int = 0
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, FileRecords] = field(default_factory=dict)

    @property
    def root(self) -> Source:
        """The base: its directory has config and tokenizer."""
        return next(source for source in self.sources if source.name == self.base)

    def opened(self) -> dict[str, Checkpoint]:
        """Every checkpoint, mapped.

        Raises: InputError for one that does not open, and for one that is not what it was when the study began: a
            network may bring something else, and a file may have been replaced.
        """
        checkpoints = {source.name: Checkpoint(source, self.files.get(source.name)) for source in self.sources}
        for name, checkpoint in checkpoints.items():
            if name in self.fingerprints:
                checkpoint.require(self.fingerprints[name])
        return checkpoints

    def merger(
        self, tensors: Mapping[str, Tensors], near: Mapping[str, Tensors] | None = None, share: Share = WHOLE
    ) -> Merger:
        """Merges of the checkpoints' tensors; see :class:`workers.merger.Merger`."""
        return Merger(tensors, self.base, seed=self.seed, near=near, share=share)
