"""The resident merger: every checkpoint opened once, each merge written straight into the live weights."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import cycle

import torch
from torch import Tensor

from search_spaces.groups import Groups, layer_of
from search_spaces.methods import CATALOGUE
from search_spaces.recipe import Recipe, digest_of
from storage.checkpoints import tensor_digest
from workers.errors import MergeError
from workers.kernels import runner
from workers.methods import Inputs, flat, plan
from workers.placement import Streamed

Tensors = Mapping[str, Tensor]


class Merger:
    """Builds recipes out of opened checkpoints.

    Args:
        sources: checkpoint name to its tensors, in the study file's order (the order in which sums run).
        base: the name of the base among them. seed: the study's, from which the masks of DARE and DELLA are drawn.
        compiled: whether to compile the element-wise passes; None does so where it pays. The bits are the same.
    """

    def __init__(
        self, sources: Mapping[str, Tensors], base: str, *, seed: int = 0, compiled: bool | None = None
    ) -> None:
        self._sources = sources
        self._base = base
        self._seed = seed
        self._layers = layer_count(sources[base])
        self._runner = Streamed(runner(sum(t.numel() for t in sources[base].values()), compiled))
        self._inputs: dict[tuple[str, ...], Inputs] = {}

    def merge_into(self, recipe: Recipe, targets: Tensors) -> str:
        """Write the merge into ``targets`` and return its digest; see :meth:`write`."""
        self.write(recipe, targets)
        return merge_digest(targets)

    @torch.inference_mode()
    def write(self, recipe: Recipe, targets: Tensors) -> None:
        """Write the merge into ``targets`` (name to tensor, any float type; the sources are there or on the host).

        Tensors that are no floats are copied from the base. Raises MergeError with the tensor's name.
        """
        self._check(recipe)
        for name, target in targets.items():
            try:
                self._write_tensor(recipe, name, target)
            except MergeError as e:
                raise MergeError(f"{name}: {e}") from e

    def require(self, recipe: Recipe, like: Tensors) -> None:
        """Raises MergeError for a recipe that :meth:`write` would refuse, before anything is written."""
        self._check(recipe)
        for name, tensor in like.items():
            try:
                self._require_tensor(recipe, name, tensor)
            except MergeError as e:
                raise MergeError(f"{name}: {e}") from e

    def merged(
        self, recipe: Recipe, like: Tensors, *, reuse: bool = False, device: torch.device | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """The same tensors one by one in new memory, with the types and shapes of ``like``.

        Args:
            device: where they shall lie; the host by default.
            reuse: in two buffers that take turns instead, so that each tensor is overwritten by the next but one: to
                the system new memory is as much work as a merge.
        """
        most = max((t.nbytes for t in like.values()), default=0) if reuse else 0
        buffers = cycle([torch.empty(most, dtype=torch.uint8, device=device) for _ in range(2)])
        for (name, shape), buffer in zip(like.items(), buffers, strict=False):
            if reuse:
                tensor = buffer[: shape.nbytes].view(shape.dtype).view(shape.shape)
            else:
                tensor = torch.empty(shape.shape, dtype=shape.dtype, device=device)
            self.write(recipe, {name: tensor})
            yield name, tensor

    def _write_tensor(self, recipe: Recipe, name: str, target: Tensor) -> None:
        base = self._tensor(self._base, name)
        if not target.is_floating_point():
            target.copy_(base)
            return
        if target.numel() == 0:
            return
        todo = plan(recipe.method, self._inputs_of(recipe, name), self._weights(recipe, name), recipe.parameters)
        if target.is_contiguous():
            self._runner.write(flat(todo), target.view(-1))
        else:
            whole = torch.empty(target.shape, dtype=target.dtype, device=target.device)
            self._runner.write(flat(todo), whole.view(-1))
            target.copy_(whole)

    def _require_tensor(self, recipe: Recipe, name: str, tensor: Tensor) -> None:
        base = self._tensor(self._base, name)
        if base.shape != tensor.shape:
            raise MergeError(f"the base must have the model's shape {tuple(tensor.shape)}, not {tuple(base.shape)}.")
        if tensor.is_floating_point():
            self._inputs_of(recipe, name)

    def _weights(self, recipe: Recipe, name: str) -> dict[str, float]:
        """Checkpoint to weight for one tensor, in the sources' order."""
        groups = Groups.parse(recipe.groups)
        return {
            checkpoint: groups.weight(recipe.weights[checkpoint], name, self._layers)
            for checkpoint in self._sources
            if checkpoint in recipe.weights
        }

    def _inputs_of(self, recipe: Recipe, name: str) -> Inputs:
        checkpoints = [checkpoint for checkpoint in self._sources if checkpoint in recipe.weights]
        key = (name, *checkpoints)
        if key not in self._inputs:
            tensors = {checkpoint: self._tensor(checkpoint, name) for checkpoint in checkpoints}
            base = self._tensor(self._base, name)
            wrong = [c for c, t in tensors.items() if t.shape != base.shape]
            if wrong:
                raise MergeError(
                    f"shapes must be the base's, but it is {tuple(tensors[wrong[0]].shape)} in {wrong[0]} and "
                    f"{tuple(base.shape)} in the base."
                )
            self._inputs[key] = Inputs(name, base, tensors, self._seed)
        return self._inputs[key]

    def _tensor(self, checkpoint: str, name: str) -> Tensor:
        tensors = self._sources[checkpoint]
        if name not in tensors:
            raise MergeError(f"every checkpoint must have the tensor, but {checkpoint} has not.")
        return tensors[name]

    def _check(self, recipe: Recipe) -> None:
        if recipe.method not in CATALOGUE:
            raise MergeError(f"the method must be one of {', '.join(CATALOGUE)}, but got {recipe.method!r}.")
        unknown = [name for name in recipe.weights if name not in self._sources]
        if unknown:
            raise MergeError(f"a recipe must name opened checkpoints ({', '.join(self._sources)}), not {unknown[0]}.")


def layer_count(names: Iterable[str]) -> int:
    """How many layers a model has, by the names of its tensors."""
    return max((layer for name in names if (layer := layer_of(name)) is not None), default=-1) + 1


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    # What is not finite stays so in a sum, which is one pass without memory, many times faster than a mask. The sum of
    # finite numbers may overflow: only then are they looked at one by one.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def merge_digest(tensors: Tensors) -> str:
    """SHA-256 (hex) over the digests of every tensor by name: equal digests are equal weights, bit for bit."""
    return digest_of({name: tensor_digest(tensor) for name, tensor in tensors.items()})
