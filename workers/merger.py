"""The resident merger: every checkpoint opened once, each merge written straight into the live weights."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from search_spaces.groups import Groups, layer_of
from search_spaces.recipe import Recipe, digest_of
from storage.checkpoints import tensor_digest
from workers import methods
from workers.errors import MergeError

Tensors = Mapping[str, Tensor]

_CHUNK = 1 << 20
"""Elements at a time for element-wise methods: a few float32 temporaries of this size stay in the cache."""


class Merger:
    """Builds recipes out of opened checkpoints.

    Args:
        sources: checkpoint name to its tensors, in the study file's order (the order in which sums run).
        base: the name of the base among them, needed by task-vector methods.
    """

    def __init__(self, sources: Mapping[str, Tensors], base: str) -> None:
        self._sources = sources
        self._base = base
        layers = [layer for name in sources[base] if (layer := layer_of(name)) is not None]
        self._layers = max(layers, default=-1) + 1

    @torch.inference_mode()
    def merge_into(self, recipe: Recipe, targets: Tensors) -> str:
        """Write the merge into ``targets`` (name to tensor, any device and float type); returns its digest.

        Tensors that are no floats are copied from the base. Raises MergeError with the tensor's name.
        """
        _check(recipe, self._sources)
        for name, target in targets.items():
            try:
                self._merge_tensor(recipe, name, target)
            except MergeError as e:
                raise MergeError(f"{name}: {e}") from e
        return merge_digest(targets)

    def merged(self, recipe: Recipe, like: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The same tensors one by one in new memory, with the types and shapes of ``like``."""
        _check(recipe, self._sources)
        for name, shape in like.items():
            tensor = torch.empty(shape.shape, dtype=shape.dtype)
            with torch.inference_mode():
                self._merge_tensor(recipe, name, tensor)
            yield name, tensor

    def _merge_tensor(self, recipe: Recipe, name: str, target: Tensor) -> None:
        if not target.is_floating_point():
            target.copy_(self._tensor(self._base, name))
            return
        weights = self._weights(recipe, name)
        used = [self._tensor(checkpoint, name) for checkpoint in weights]
        merge = _METHODS[recipe.method]
        base = self._tensor(self._base, name) if recipe.method in _NEEDS_BASE else None
        if recipe.method in _WHOLE_TENSOR:
            target.copy_(merge(base, used, list(weights.values())))
            return
        flat = target.view(-1)
        for start in range(0, flat.numel(), _CHUNK):
            cut = slice(start, start + _CHUNK)
            parts = [t.view(-1)[cut] for t in used]
            part = None if base is None else base.view(-1)[cut]
            flat[cut].copy_(merge(part, parts, list(weights.values())))

    def _weights(self, recipe: Recipe, name: str) -> dict[str, float]:
        """Checkpoint to weight for one tensor, in the sources' order; simplex methods leave out zeros."""
        groups = Groups.parse(recipe.groups)
        found = {
            checkpoint: groups.weight(recipe.weights[checkpoint], name, self._layers)
            for checkpoint in self._sources
            if checkpoint in recipe.weights
        }
        if recipe.method == "linear":
            return {checkpoint: w for checkpoint, w in found.items() if w != 0.0}
        return found

    def _tensor(self, checkpoint: str, name: str) -> Tensor:
        tensors = self._sources[checkpoint]
        if name not in tensors:
            raise MergeError(f"every checkpoint must have the tensor, but {checkpoint} has not.")
        return tensors[name]


def merge_digest(tensors: Tensors) -> str:
    """SHA-256 (hex) over the digests of every tensor by name: equal digests are equal weights, bit for bit."""
    return digest_of({name: tensor_digest(tensor) for name, tensor in tensors.items()})


def _check(recipe: Recipe, sources: Mapping[str, Tensors]) -> None:
    if recipe.method not in _METHODS:
        raise MergeError(f"the method must be one of {', '.join(_METHODS)}, but got {recipe.method!r}.")
    unknown = [name for name in recipe.weights if name not in sources]
    if unknown:
        raise MergeError(f"a recipe must name opened checkpoints ({', '.join(sources)}), but names {unknown[0]}.")


def _linear(_base: Tensor | None, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return methods.linear(tensors, weights)


def _task_arithmetic(base: Tensor | None, tensors: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    if base is None:
        raise MergeError("task_arithmetic needs the base.")
    return methods.task_arithmetic(base, tensors, scales)


def _slerp(_base: Tensor | None, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return methods.slerp(tensors, weights)


_METHODS: dict[str, Callable[[Tensor | None, Sequence[Tensor], Sequence[float]], Tensor]] = {
    "linear": _linear,
    "task_arithmetic": _task_arithmetic,
    "slerp": _slerp,
}
_NEEDS_BASE = ("task_arithmetic",)
_WHOLE_TENSOR = ("slerp",)
