"""LoRA adapters (arXiv:2106.09685; PEFT's directory layout) as full checkpoints."""

import json
import re
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from storage.errors import CheckpointError

_REFUSED = ("use_dora", "modules_to_save", "trainable_token_indices", "lora_bias", "layer_replication")
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
    rank = a.shape[0]
    alpha = float(_by_pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", 8)))
    scale = alpha / sqrt(rank) if config.get("use_rslora") else alpha / rank
    return (weight.float() + scale * (b.float() @ a.float())).to(weight.dtype)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?{pattern}", module):
            return value
    return default


def _config(directory: Path) -> dict[str, Any]:
    path = directory / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise CheckpointError(
            f"an adapter must have an adapter_config.json, but {directory} has none that reads: {e}."
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
    return dict(config)


def _pairs(directory: Path) -> dict[str, dict[str, Tensor]]:
    path = directory / "adapter_model.safetensors"
    if not path.is_file():
        raise CheckpointError(f"an adapter must hold adapter_model.safetensors, but {directory} does not.")
    pairs: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping, has no __iter__)
                found = _NAME.match(name)
                if found is None:
                    raise CheckpointError(f"an adapter must consist of LoRA matrices alone, but {path} holds {name}.")
                pairs.setdefault(found["module"], {})[found["side"]] = file.get_tensor(name).to(torch.float32)
    except SafetensorError as e:
        raise CheckpointError(f"a weight file must be whole safetensors, but {path} is not: {e}.") from e
    return pairs
