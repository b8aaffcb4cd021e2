"""What vLLM is asked to run, and in how much memory: decided before it is imported."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from search_spaces.errors import InputError
from search_spaces.groups import layer_of
from workers.placement import BUFFER, Tensors, buffers, resident_bytes, sizes
from workers.shares import Share
from workers.transformers_engine import context_of

INSTALL = "pip install 'mergefront[vllm]'"

_ACTIVATIONS = 0.1
"""Share of a GPU's free memory that is left to forward passes."""

_HOST_CACHE = (1 << 26, 1 << 32)
"""Least and most bytes of a key-value cache on a host."""

_HOST_TEXTS = 64
"""Texts of full length whose keys and values a host's cache shall hold at once."""

_SIDE_BY_SIDE = 1 << 15
"""Tokens whose keys and values shall not give way to resident checkpoints: 256 texts, as many as vLLM runs side by
side by default, of 128 tokens. With fewer, all answers would wait so that a part of the merge need not.
"""

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Bytes of a model's key-value cache in one process: of one token, and of a text as long as the engine takes."""

    token: int
    text: int

    @classmethod
    def of(cls, config: Any, *, dtype: str, processes: int, longest: int | None) -> "Cache":
        """By the config: keys and values of every layer and head. Layers that look back a few tokens only need less.

        Args:
            longest: tokens of the longest text that shall fit, None for as many as the model can attend to.
        """
        text = config.get_text_config()
        context = min(longest or context_of(config), context_of(config))
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        size = getattr(torch, dtype).itemsize
        token = 2 * text.num_hidden_layers * max(heads // processes, 1) * width * size
        return cls(token=token, text=token * (context + 1))

    @property
    def useful(self) -> int:
        """What checkpoints on the same GPU must leave of it."""
        return max(self.text, _SIDE_BY_SIDE * self.token)

    @property
    def on_host(self) -> int:
        """As much as a host gives: some texts of full length, within limits."""
        least, most = _HOST_CACHE
        return max(min(max(_HOST_TEXTS * self.text, least), most), self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPlan:
    """How one GPU's memory is shared out, in bytes.

    Attributes:
        resident: of its process's share of the checkpoints, what is copied to the GPU. utilization: share of the GPU's
            whole memory that vLLM may take, for model, forward passes and key-value cache.
    """

    resident: int
    utilization: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Bytes that one of an engine's processes needs on its GPU.

    Attributes:
        model: its part of the weights. cache: keys and values. swap: tensors on their way into the model.
        sources: its share of all checkpoints.
    """

    model: int
    cache: Cache
    swap: int
    sources: int

    @classmethod
    def of(cls, like: Mapping[str, Tensor], cache: Cache, *, sources: Mapping[str, Tensors], processes: int) -> "Needs":
        """By the live weights (on any device) and the checkpoints' tensors."""
        model = sum(t.nbytes for t in like.values())
        share = sum(sizes(sources, like, Share(0, processes)).values())
        return cls(model=model // processes, cache=cache, swap=swap_room(like), sources=share)


def plan_gpu(needs: Needs, *, total: int, free: int) -> GpuPlan:
    """As much of the checkpoints is resident as leaves a useful cache; vLLM gets what they leave.

    Args:
        total: bytes of the GPU. free: of these, before anything of the engine is there.
    Raises: InputError with the arithmetic where not even streamed checkpoints fit.
    """
    passes = int(_ACTIVATIONS * free)
    streamed = streamed_needs(needs, free)
    resident = resident_bytes(needs.sources, free - needs.model - needs.cache.useful - passes - needs.swap)
    outside = needs.swap + resident + buffers(needs.sources - resident)
    if not resident and streamed > free:
        gib = [f"{x / 2**30:,.1f}" for x in (streamed, needs.model, needs.cache.text, passes, outside, free)]
        raise InputError(
            f"a vLLM engine must fit into its GPU's memory, but it needs {gib[0]} GiB (model {gib[1]}, keys and values "
            f"of one text of full length {gib[2]}, forward passes {gib[3]}, swaps {gib[4]}) and {gib[5]} GiB is free: "
            "raise workers.tensor_parallel or lower workers.max_model_len."
        )
    return GpuPlan(resident=resident, utilization=(free - outside) / total)


def streamed_needs(needs: Needs, free: int) -> int:
    """Bytes of a GPU, of which so many are free, with which an engine runs whose checkpoints stay on the host."""
    return needs.model + needs.cache.text + int(_ACTIVATIONS * free) + needs.swap + 2 * BUFFER


def swap_room(like: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors that a swap holds at a time: the largest layer's, merged and as vLLM lays it out."""
    layers: Counter[str] = Counter()
    for name, tensor in like.items():
        layer = layer_of(name)
        layers[name if layer is None else f"layer {layer}"] += tensor.nbytes
    return 2 * max(layers.values())


def refusal(config: Mapping[str, Any], *, device: str) -> str | None:
    """Why a model is not run on vLLM, in words; None where it is.

    Args:
        config: as in config.json. device: ``cpu`` or ``cuda``: on CUDA a study's ``verify-swap`` has the last word on
            mixtures of experts and latent attention, on a CPU nothing has shown them right.
    """
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    if any(part.get("quantization_config") for part in parts):
        return "a model must not be quantised to be merged on vLLM, but its config.json has a quantization_config."
    experts = any((part.get(key) or 0) > 1 for part in parts for key in _EXPERTS if _is_count(part.get(key)))
    latent = any(part.get("kv_lora_rank") for part in parts)
    if device == "cpu" and (experts or latent):
        kind = "a mixture of experts" if experts else "a model with latent attention (MLA)"
        return f"vLLM on a CPU must run a dense model, but this is {kind}; take `engine: transformers`, or a GPU."
    return None


def is_installed() -> bool:
    """Whether vLLM can be imported here."""
    return find_spec("vllm") is not None


def _is_count(value: object) -> bool:
    return value is None or isinstance(value, int)
