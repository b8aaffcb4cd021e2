"""One merge made by several processes: each merges its rows of every tensor and gets the other rows from the others.

A tensor is taken as rows of its last dimension, because ranks are of rows and all else that a pass needs of a piece
is its place. Numbers that need whole tensors, and digests, are made by one process for all: each tensor has an owner.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Share:
    """A process's place among all that merge together, and so its part of the work.

    Attributes:
        rank: from 0. of: how many they are.
    """

    rank: int = 0
    of: int = 1

    def part(self, tensor: Tensor) -> Tensor:
        """A view of its rows (r, columns), which may be none; the tensor itself where all of it is its part."""
        if self._is_whole(tensor):
            return tensor
        first = self.rank * self._most_rows(tensor)
        return tensor.reshape(-1, tensor.shape[-1])[first : first + self._most_rows(tensor)]

    def first(self, tensor: Tensor) -> int:
        """Index in the whole tensor of its part's first element."""
        return 0 if self._is_whole(tensor) else self.rank * self._most_rows(tensor) * tensor.shape[-1]

    def joined(self, like: Tensor, device: torch.device, write: Callable[[Tensor], None]) -> Tensor:
        """A new tensor whose parts all processes write, each its own; they must do so for the same tensors in turn.

        Args:
            like: its shape and type. write: writes this process's part.
        """
        if self._is_whole(like):
            whole = torch.empty(like.shape, dtype=like.dtype, device=device)
            write(whole)
            return whole
        each = self._most_rows(like) * like.shape[-1]
        parts = torch.empty((self.of, each), dtype=like.dtype, device=device)
        flat = parts.view(-1)[: like.numel()]
        write(flat[self.rank * each : (self.rank + 1) * each])
        # As bytes: not every way to exchange knows every type.
        dist.all_gather_into_tensor(parts.view(-1).view(torch.uint8), parts[self.rank].view(torch.uint8))
        return flat.view(like.shape)

    def owned(self, like: Mapping[str, Tensor]) -> set[str]:
        """Tensors of which this process makes what one makes for all: they go in turn to whoever has least bytes."""
        loads, owned = [0] * self.of, set()
        for name, tensor in like.items():
            owner = loads.index(min(loads))
            loads[owner] += tensor.nbytes
            if owner == self.rank:
                owned.add(name)
        return owned

    def _is_whole(self, tensor: Tensor) -> bool:
        """Whether its part is all: also of what has fewer rows than there are processes. A tensor of one row (a norm,
        a bias) is sooner read from every checkpoint than exchanged.
        """
        return self.of == 1 or tensor.numel() == 0 or prod(tensor.shape[:-1]) < self.of

    def _most_rows(self, tensor: Tensor) -> int:
        return -(-prod(tensor.shape[:-1]) // self.of)


WHOLE = Share()
"""Of a process that merges alone."""
