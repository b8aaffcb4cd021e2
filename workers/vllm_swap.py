"""What runs inside each process of a vLLM engine: merges the family there and gives vLLM tensor after tensor.

vLLM mixes this class into its own worker class (``worker_extension_cls``) and calls its methods by name, in every
process of the engine (``collective_rpc``). vLLM itself is not imported here.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from search_spaces.errors import InputError
from search_spaces.recipe import Recipe
from storage.checkpoints import tensor_digest
from workers.errors import MergeError
from workers.family import Family
from workers.kernels import Pass
from workers.merger import Merger
from workers.placement import copied
from workers.shares import Share

_log = logging.getLogger(__name__)

Plans = Mapping[str, Pass[str]]


class Swap:
    """Methods of a vLLM worker. Their names must be none of vLLM's own."""

    device: torch.device
    model_runner: Any

    def mergefront_open(
        self, family: Family, forms: Mapping[str, tuple[tuple[int, ...], torch.dtype]], resident: int
    ) -> str:
        """Open the checkpoints, and copy of this process's share of them so many bytes to its GPU; returns why it
        cannot, if so.

        Args:
            forms: shape and type of each of the model's tensors, by its name in a checkpoint.
        """
        try:
            checkpoints = family.opened()
        except InputError as e:  # an error that is raised would reach the engine as a broken process
            return str(e)
        like = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in forms.items()}
        # vLLM's first process group is of all the engine's processes and speaks to their devices: NCCL, on CPUs gloo.
        share = Share(dist.get_rank(), dist.get_world_size())
        sources = {name: c.tensors for name, c in checkpoints.items()}
        near = copied(sources, like, self.device, resident, share)
        owned = share.owned(like)
        self._mergefront_like = like
        self._mergefront_own = {name: tensor for name, tensor in like.items() if name in owned}
        self._mergefront_share = share
        self._mergefront_merger: Merger = family.merger(sources, near, share)
        self._mergefront_checkpoints = tuple(checkpoints.values())
        return ""

    def mergefront_plan(self, recipe: Recipe) -> tuple[str, Plans]:
        """Why a recipe cannot be merged, empty where it can; and the plans of the tensors that this process owns.
        Nothing is written, and no process waits for another.
        """
        try:
            return "", self._mergefront_merger.plan(recipe, self._mergefront_own)
        except MergeError as e:
            return str(e), {}

    def mergefront_changed(self) -> str:
        """Which file of a checkpoint is not what was opened any more, in words; empty where all are."""
        try:
            for checkpoint in self._mergefront_checkpoints:
                checkpoint.require_untouched()
        except InputError as e:
            return str(e)
        return ""

    def mergefront_swap(self, plans: Plans, wipe: bool) -> dict[str, str]:
        """Make the model the merge, and return the digests of the tensors that this process owns.

        vLLM cuts and fuses the tensors itself, so all of a checkpoint's tensors are given, each whole and in memory of
        its own: vLLM keeps a layer's until it has them all.

        Args:
            plans: of every tensor.
            wipe: zero the key-value cache: what NaN leaves in it would reach later answers through masked places.
        """
        digests: dict[str, Future[str]] = {}
        with _all_or_none(self._mergefront_share), ThreadPoolExecutor(1) as hashing:
            stream = self._mergefront_stream(plans, digests, hashing)
            self.reload_weights(weights_iterator=stream)  # type: ignore[attr-defined]  # vLLM's
            found = {name: digest.result() for name, digest in digests.items()}
        _pack_heads(self.model_runner.get_model())
        if wipe:
            for cache in self.model_runner.kv_caches:
                cache.zero_()
        return found

    def _mergefront_stream(
        self, plans: Plans, digests: dict[str, Future[str]], hashing: ThreadPoolExecutor
    ) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the merge. Each process hashes its own beside the merging, so that no other waits for it."""
        last: Future[str] | None = None
        for name, like in self._mergefront_like.items():
            write = partial(self._mergefront_merger.run, name, plans[name])
            tensor = self._mergefront_share.joined(like, self.device, write)
            if name in self._mergefront_own:
                if last is not None:
                    last.result()  # no more than one tensor waits in memory
                last = digests[name] = hashing.submit(_digest, tensor, _stream_of(self.device))
            yield name, tensor


@contextmanager
def _all_or_none(share: Share) -> Iterator[None]:
    """What breaks in here ends this process where there are others: they wait for it in an exchange, and vLLM waits
    for their answers in turn. When one ends, vLLM ends the engine.
    """
    done = False
    try:
        yield
        done = True
    finally:
        if not done and share.of > 1:
            _log.critical("a swap broke in process %d of %d, which ends", share.rank, share.of, exc_info=True)
            os._exit(1)


def _stream_of(device: torch.device) -> Any:
    return torch.get_device_module(device).current_stream()


def _digest(tensor: Tensor, stream: Any) -> str:
    """Of what the stream has written when it comes to that."""
    with torch.get_device_module(tensor.device).stream(stream):
        return tensor_digest(tensor)


def _pack_heads(model: torch.nn.Module) -> None:
    """On a CPU a head that is tied to the embeddings multiplies by a packed copy of them, which no reload renews."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "cpu_linear") and weight is not None and weight.numel():
            module.quant_method.process_weights_after_loading(module)  # type: ignore[union-attr,operator]  # vLLM's
