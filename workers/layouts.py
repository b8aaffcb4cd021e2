"""Live weights under the names and shapes that checkpoints have on disk.

transformers keeps the experts of a mixture in one tensor and stores them one by one, and it stores the parts of a
vision-language model under other names than the live model has. The views made here let a merge read mapped files and
write straight into the live tensor, and let an export store what every other program reads.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming


def as_stored(weights: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """The weights of a model by their names on disk, stacked experts as views of one expert each.

    Where transformers converts in another way than by stacking experts and renaming, names stay as they are.

    Args:
        model: the transformers model that they are the weights of; it may be on the meta device.
    """
    # Legacy names are read but never written, and neither is a prefix that only some files carry.
    mapping = [
        c for c in get_model_conversion_mapping(model, add_legacy=False) or [] if type(c).__name__ != "PrefixChange"
    ]
    stacks = [c for c in mapping if isinstance(c, WeightConverter)]
    renamings = [c.reverse_transform() for c in reversed(mapping) if isinstance(c, WeightRenaming)]
    if len(stacks) + len(renamings) < len(mapping) or not all(map(_is_stack, stacks)):
        return dict(weights)
    return {
        _renamed(part, renamings): view
        for name, tensor in weights.items()
        for part, view in _parts(name, tensor, stacks)
    }


def _renamed(name: str, renamings: Sequence[Any]) -> str:
    for renaming in renamings:
        name, _ = renaming.rename_source_key(name)
    return name


def _is_stack(converter: WeightConverter) -> bool:
    """Whether it stacks one tensor an expert, or several of equal shape end to end."""
    first, *rest = converter.operations
    joined = len(rest) == 1 and isinstance(rest[0], Concatenate) and rest[0].dim == 1
    stacked = isinstance(first, MergeModulelist) and first.dim == 0 and (not rest or joined)
    return stacked and len(converter.target_patterns) == 1 and (joined or len(converter.source_patterns) == 1)


def _parts(name: str, tensor: Tensor, stacks: list[WeightConverter]) -> Iterator[tuple[str, Tensor]]:
    for converter in stacks:
        target, sources = converter.target_patterns[0], converter.source_patterns
        if name.endswith(target):
            for i, expert in enumerate(tensor.unbind(0)):
                for source, view in zip(sources, expert.chunk(len(sources)), strict=True):
                    yield name.removesuffix(target) + source.replace("*", str(i)), view
            return
    yield name, tensor
