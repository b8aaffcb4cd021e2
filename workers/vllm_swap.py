"""What runs inside each process of a vLLM engine: merges the family there and gives vLLM tensor after tensor.

vLLM mixes this class into its own worker class (``worker_extension_cls``) and calls its methods by name, in every
process of the engine (``collective_rpc``). vLLM itself is not imported here.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from search_spaces.errors import InputError
from search_spaces.recipe import Recipe, digest_of
from storage.checkpoints import tensor_digest
from workers.errors import MergeError
from workers.family import Family
from workers.merger import Merger
from workers.placement import copied


class Swap:
    """Methods of a vLLM worker. Their names must be none of vLLM's own."""

    device: torch.device
    rank: int
    model_runner: Any

    def mergefront_open(
        self, family: Family, forms: Mapping[str, tuple[tuple[int, ...], torch.dtype]], resident: bool
    ) -> str:
        """Open the checkpoints, on a GPU copied there where they shall be resident; returns why it cannot, if so.

        Args:
            forms: shape and type of each of the model's tensors, by its name in a checkpoint.
        """
        try:
            checkpoints = family.opened()
        except InputError as e:  # an error that is raised would reach the engine as a broken process
            return str(e)
        self._mergefront_like = {
            name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in forms.items()
        }
        sources: Mapping[str, Mapping[str, Tensor]] = {n: c.tensors for n, c in checkpoints.items()}
        if resident:
            sources = copied(sources, self._mergefront_like, self.device)
        self._mergefront_merger: Merger = family.merger(sources)
        self._mergefront_checkpoints = tuple(checkpoints.values())
        return ""

    def mergefront_check(self, recipe: Recipe) -> str:
        """Why a recipe cannot be merged; empty where it can. Nothing is written."""
        try:
            self._mergefront_merger.require(recipe, self._mergefront_like)
        except MergeError as e:
            return str(e)
        return ""

    def mergefront_changed(self) -> str:
        """Which file of a checkpoint is not what was opened any more, in words; empty where all are."""
        try:
            for checkpoint in self._mergefront_checkpoints:
                checkpoint.require_untouched()
        except InputError as e:
            return str(e)
        return ""

    def mergefront_swap(self, recipe: Recipe, wipe: bool) -> str:
        """Make the model the merge, and return the merge's digest (of the first process; empty from the others).

        vLLM cuts and fuses the tensors itself, so all of a checkpoint's tensors are given, each whole and in memory of
        its own: vLLM keeps a layer's until it has them all.

        Args:
            wipe: zero the key-value cache: what NaN leaves in it would reach later answers through masked places.
        """
        digests: dict[str, str] = {}
        self.reload_weights(weights_iterator=self._mergefront_stream(recipe, digests))  # type: ignore[attr-defined]  # vLLM's
        _pack_heads(self.model_runner.get_model())
        if wipe:
            for cache in self.model_runner.kv_caches:
                cache.zero_()
        return digest_of(digests) if self.rank == 0 else ""

    def _mergefront_stream(self, recipe: Recipe, digests: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._mergefront_merger.merged(recipe, self._mergefront_like, device=self.device):
            if self.rank == 0:
                digests[name] = tensor_digest(tensor)
            yield name, tensor


def _pack_heads(model: torch.nn.Module) -> None:
    """On a CPU a head that is tied to the embeddings multiplies by a packed copy of them, which no reload renews."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "cpu_linear") and weight is not None and weight.numel():
            module.quant_method.process_weights_after_loading(module)  # type: ignore[union-attr,operator]  # vLLM's
