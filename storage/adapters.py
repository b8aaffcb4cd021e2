"""LoRA adapters (arXiv:2106.09685; PEFT's directory layout) as full checkpoints."""

import re
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storage.errors import CheckpointError
from storage.model_directory import pickle_reason, read_json
from storage.tensor_files import open_tensors

_REFUSED = ("use_dora", "modules_to_save", "trainable_token_indices", "lora_bias", "layer_replication")
_MOST_ALPHA = 1e9
_NAME = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")


def apply_adapter(base: Mapping[str, Tensor], directory: Path) -> dict[str, Tensor]:
    """The base's tensors with ``W + scale * B A`` in place of every adapted one, added in float32.

    The scale is ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with ``use_rslora``; ``rank_pattern`` and
    ``alpha_pattern`` override both by module. Tensors without an adapter stay views of the base's files.
    """
    config = _config(directory)
    pairs = _pairs(directory)
    merged = dict(base)
    for module, sides in pairs.items():
        name = f"{module}.weight"
        if name not in base:
            raise CheckpointError(
                f"an adapter must fit its base, but {directory} adapts {module} and the base has none."
            )
        if set(sides) != {"A", "B"}:
            raise CheckpointError(f"an adapter must hold A and B of a module, but {directory} lacks one of {module}.")
        merged[name] = _adapted(base[name], sides["A"], sides["B"], config, module, directory)
    return merged


def _adapted(weight: Tensor, a: Tensor, b: Tensor, config: Mapping[str, Any], module: str, directory: Path) -> Tensor:
    if (b.shape[0], a.shape[1]) != tuple(weight.shape) or a.shape[0] != b.shape[1]:
        raise CheckpointError(
            f"an adapter must fit its base's shapes, but {module} is {tuple(weight.shape)} there and "
            f"{tuple(b.shape)} x {tuple(a.shape)} in {directory}."
        )
    rank = max(a.shape[0], 1)  # an adapter of rank 0 adds nothing
    alpha = _by_pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", 8))
    scale = alpha / sqrt(rank) if config.get("use_rslora") else alpha / rank
    return (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)


def _by_pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?{pattern}", module):
            return float(value)
    return float(default)


def _config(directory: Path) -> dict[str, Any]:
    try:
        config = read_json(directory / "adapter_config.json")
    except CheckpointError as e:
        raise CheckpointError(
            f"an adapter must have an adapter_config.json, but {directory} has none that reads: {e}"
        ) from e
    if config.get("peft_type") != "LORA":
        raise CheckpointError(f"an adapter must be a LoRA, but {directory} is {config.get('peft_type')}.")
    used = [key for key in _REFUSED if config.get(key)]
    if used or config.get("bias", "none") != "none" or config.get("fan_in_fan_out"):
        what = ", ".join(used) or "bias or fan_in_fan_out"
        raise CheckpointError(
            f"an adapter must consist of LoRA matrices alone, but {directory} uses {what}; merge it with peft "
            "(merge_and_unload, save_pretrained) and give the result as a checkpoint."
        )
    _check_alphas(config, directory)
    return dict(config)


def _check_alphas(config: Mapping[str, Any], directory: Path) -> None:
    """lora_alpha and alpha_pattern must be numbers, and the patterns such as cannot run for ever."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"alpha_pattern must map patterns to numbers, but {directory} has {str(patterns)[:100]}.")
    alphas = [config.get("lora_alpha", 8), *patterns.values()]
    wrong = [v for v in alphas if isinstance(v, bool) or not isinstance(v, int | float) or not abs(v) < _MOST_ALPHA]
    if wrong:
        raise CheckpointError(f"an adapter's alphas must be numbers, but {directory} has {str(wrong[0])[:100]!r}.")
    strange = [p for p in patterns if not _is_simple(p)]
    if strange:
        raise CheckpointError(
            "an adapter's patterns must be plain regular expressions (200 characters, four repeats, no repeated "
            f"group), but {directory} has {strange[0][:100]!r}."
        )


def _is_simple(pattern: str) -> bool:
    """Whether it compiles and matches in short time: backtracking needs repeated groups or many repeats."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    repeats = len(re.findall(r"[*+?{]", pattern))
    return len(pattern) <= 200 and repeats <= 4 and not re.search(r"\)[*+?{]|\\\d", pattern)


def _pairs(directory: Path) -> dict[str, dict[str, Tensor]]:
    path = directory / "adapter_model.safetensors"
    if not path.is_file():
        raise CheckpointError(
            pickle_reason(directory) or f"an adapter must hold adapter_model.safetensors, but {directory} does not."
        )
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in open_tensors(path).items():
        found = _NAME.match(name)
        if found is None or tensor.ndim != 2:
            raise CheckpointError(f"an adapter must consist of LoRA matrices alone, but {path} holds {name}.")
        pairs.setdefault(found["module"], {})[found["side"]] = tensor.to(torch.float32)
    return pairs
