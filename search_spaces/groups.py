"""Which weight a tensor gets: one for the model, one by depth, by block of layers, or by kind of module."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from search_spaces.errors import InputError

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
_FINAL = re.compile(r"(?:^|\.)(?:norm|ln_f|final_layer_norm|final_layernorm|lm_head|score|classifier)(?:\.|$)")
_ATTENTION = re.compile(r"(?:^|\.)(?:self_attn|attn|attention|self_attention)\.")
_MLP = re.compile(r"(?:^|\.)(?:mlp|feed_forward|block_sparse_moe|ffn)\.")
_MODULES = ("attention", "mlp", "rest")


@dataclass(frozen=True, slots=True)
class Groups:
    """A parsed ``groups`` value: ``model``, ``depth:K``, ``layers:K`` or ``modules``."""

    kind: str
    count: int

    @classmethod
    def parse(cls, text: str) -> "Groups":
        """Read ``groups``; raises :class:`InputError` for anything else than the four forms."""
        kind, colon, number = text.partition(":")
        if text in ("model", "modules"):
            return cls(text, 1 if text == "model" else len(_MODULES))
        least = {"depth": 2, "layers": 1}.get(kind)
        if least is not None and colon and number.isdecimal() and least <= int(number) <= 64:
            return cls(kind, int(number))
        raise InputError(
            "groups must be model, depth:K (2 <= K <= 64 control points), layers:K (1 <= K <= 64 blocks) or modules, "
            f"but got {text!r}."
        )

    def labels(self) -> tuple[str, ...]:
        """One name a group, as it stands in parameter names; a single empty one for ``model``."""
        if self.kind == "model":
            return ("",)
        return _MODULES if self.kind == "modules" else tuple(str(i) for i in range(self.count))

    def weight(self, values: Sequence[float], tensor_name: str, layers: int) -> float:
        """The weight of one tensor.

        Args:
            values: one number a group. tensor_name: the tensor's name in the checkpoint.
            layers: how many layers the model has.
        """
        if self.kind == "model":
            return values[0]
        if self.kind == "modules":
            return values[_module(tensor_name)]
        if self.kind == "layers":
            return values[_block(tensor_name, layers, self.count)]
        return _interpolate(values, _depth(tensor_name, layers))


def layer_of(tensor_name: str) -> int | None:
    """The layer a tensor belongs to, None for embeddings, final norm and head."""
    found = _LAYER.search(tensor_name)
    return int(found.group(1)) if found else None


def _depth(tensor_name: str, layers: int) -> float:
    """Depth in [0, 1]: embeddings 0, first layer 0, last layer 1, final norm and head 1."""
    layer = layer_of(tensor_name)
    if layer is None:
        return 1.0 if _FINAL.search(tensor_name) else 0.0
    return layer / (layers - 1) if layers > 1 else 0.0


def _block(tensor_name: str, layers: int, count: int) -> int:
    """Which of ``count`` equal blocks of layers; embeddings go with the first, final norm and head with the last."""
    layer = layer_of(tensor_name)
    if layer is None:
        return count - 1 if _FINAL.search(tensor_name) else 0
    return layer * count // max(layers, 1)


def _interpolate(values: Sequence[float], depth: float) -> float:
    position = depth * (len(values) - 1)
    left = min(int(position), len(values) - 2)
    share = position - left
    # Equal control points must give exactly that number, whatever the share.
    return values[left] + (values[left + 1] - values[left]) * share


def _module(tensor_name: str) -> int:
    if _ATTENTION.search(tensor_name):
        return 0
    return 1 if _MLP.search(tensor_name) else 2
