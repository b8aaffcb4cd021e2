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
from workers.kernels import Pass, runner
from workers.methods import BASE, Inputs, bound, copy_of, plan
from workers.placement import Streamed
from workers.shares import WHOLE, Share

Tensors = Mapping[str, Tensor]


class Merger:
    """Builds recipes out of opened checkpoints.

    Args:
        sources: checkpoint name to its tensors, in the study file's order (the order in which sums run).
        base: the name of the base among them. seed: the study's, from which the masks of DARE and DELLA are drawn.
        near: copies of the sources' tensors on the device of the live weights, of each its ``share``, for all
            sources or none of a name. share: what this process merges of every tensor.
        compiled: whether to compile the element-wise passes; None does so where it pays. The bits are the same.
    """

    def __init__(
        self,
        sources: Mapping[str, Tensors],
        base: str,
        *,
        seed: int = 0,
        near: Mapping[str, Tensors] | None = None,
        share: Share = WHOLE,
        compiled: bool | None = None,
    ) -> None:
        self._sources = sources
        self._near = near or {}
        self._share = share
        self._base = base
        self._seed = seed
        self._layers = layer_count(sources[base])
        self._runner = Streamed(runner(sum(t.numel() for t in sources[base].values()), compiled))
        self._inputs: dict[tuple[str, ...], Inputs] = {}
        self._parts: dict[str, Inputs] = {}

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
        for name, target in targets.items():  # one by one: what is read for numbers is still in memory for the pass
            self.run(name, self.plan(recipe, {name: target})[name], target)

    @torch.inference_mode()
    def plan(self, recipe: Recipe, like: Tensors) -> dict[str, Pass[str]]:
        """What is to be done for every tensor: all of it that takes whole tensors to be known.

        Args:
            like: the merge's tensors, on any device.
        Raises: MergeError with the tensor's name for what cannot be merged.
        """
        self._check(recipe)
        plans = {}
        for name, tensor in like.items():
            try:
                plans[name] = self._plan(recipe, name, tensor)
            except MergeError as e:
                raise MergeError(f"{name}: {e}") from e
        return plans

    @torch.inference_mode()
    def run(self, name: str, todo: Pass[str], out: Tensor) -> None:
        """Write this process's share of a tensor into ``out``, of that many elements."""
        if out.numel() == 0:
            return
        parts, source = self._parts_of(name), self._sources[self._base][name]
        whole = out if out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype, device=out.device)
        self._runner.write(bound(todo, parts, first=self._share.first(source)), whole.view(-1))
        if whole is not out:
            out.copy_(whole)

    def merged(self, recipe: Recipe, like: Tensors, *, reuse: bool = False) -> Iterator[tuple[str, Tensor]]:
        """The same tensors one by one in new memory on the host, with the types and shapes of ``like``.

        Args:
            reuse: in two buffers that take turns instead, so that each tensor is overwritten by the next but one: to
                the system new memory is as much work as a merge.
        """
        most = max((t.nbytes for t in like.values()), default=0) if reuse else 0
        buffers = cycle([torch.empty(most, dtype=torch.uint8) for _ in range(2)])
        for (name, shape), buffer in zip(like.items(), buffers, strict=False):
            if reuse:
                tensor = buffer[: shape.nbytes].view(shape.dtype).view(shape.shape)
            else:
                tensor = torch.empty(shape.shape, dtype=shape.dtype)
            self.write(recipe, {name: tensor})
            yield name, tensor

    def _plan(self, recipe: Recipe, name: str, tensor: Tensor) -> Pass[str]:
        base = self._tensor(self._base, name)
        if base.shape != tensor.shape:
            raise MergeError(f"the base must have the model's shape {tuple(tensor.shape)}, not {tuple(base.shape)}.")
        if not tensor.is_floating_point() or tensor.numel() == 0:
            return copy_of(BASE)
        return plan(recipe.method, self._inputs_of(recipe, name), self._weights(recipe, name), recipe.parameters)

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

    def _parts_of(self, name: str) -> Inputs:
        """This process's share of a tensor of every checkpoint, where the pass shall read it."""
        if name not in self._parts:
            parts = {c: self._part(c, name) for c, tensors in self._sources.items() if name in tensors}
            self._parts[name] = Inputs(name, parts[self._base], parts, self._seed)
        return self._parts[name]

    def _part(self, checkpoint: str, name: str) -> Tensor:
        near = self._near.get(checkpoint, {})
        return near[name] if name in near else self._share.part(self._sources[checkpoint][name])

    def _tensor(self, checkpoint: str, name: str) -> Tensor:
        """The nearest copy of the whole tensor."""
        tensors = self._sources[checkpoint]
        if name not in tensors:
            raise MergeError(f"every checkpoint must have the tensor, but {checkpoint} has not.")
        part = self._part(checkpoint, name)
        return part if part.shape == tensors[name].shape else tensors[name]

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
