"""Where checkpoints lie while live weights are merged of them: on the device, or on the host and streamed.

As many tensors as fit beside the live model are copied to the device once, each of all sources, so that a pass has its
operands on one side. The others stay mapped files on the host, and every merge moves what it reads of them: pieces go
through two pinned buffers on the host and two on the device, on a stream of their own, so that the next piece is under
way while the last one is merged. Numbers that need whole tensors (thresholds, inner products) or rows (ranks) are
computed where the sources lie, once; only the element-wise pass is cut into pieces.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from workers.kernels import Pass, Runner
from workers.shares import WHOLE, Share

BUFFER = 1 << 28
"""Bytes of one of the two buffers on each side."""

_ACTIVATIONS = 0.1
"""Share of a device's free memory that is left to forward passes."""

_ALIGNMENT = 256
"""Bytes to whose multiple every operand begins: enough for any vector load."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How a family lies beside a live model on a device.

    Attributes:
        resident: bytes of the checkpoints that are copied to the device. needed: bytes there in all, room for forward
            passes included. fits: whether that is no more than there is.
    """

    resident: int
    needed: int
    fits: bool


def place(*, model: int, sources: int, free: int) -> Placement:
    """As much resident as fits, the rest streamed.

    Args:
        model: bytes of the live model. sources: bytes of all checkpoints, and of what is kept beside them. free: bytes
            of the device, before any of both is there.
    """
    least = model + int(_ACTIVATIONS * free)
    resident = resident_bytes(sources, free - least)
    needed = least + resident + buffers(sources - resident)
    return Placement(resident=resident, needed=needed, fits=needed <= free)


def resident_bytes(sources: int, room: int) -> int:
    """Bytes of all checkpoints' that are copied into so much room: all, or what the buffers for the others leave."""
    return sources if sources <= room else max(room - buffers(sources), 0)


def buffers(streamed: int) -> int:
    """Bytes of the buffers on one side for so many that are streamed."""
    return 2 * BUFFER if streamed else 0


def placed(sources: Mapping[str, Tensors], targets: Tensors) -> dict[str, Tensors]:
    """Copies of the sources beside ``targets``, of what a merge into these reads; as many as fit."""
    device = next(iter(targets.values())).device
    if device.type == "cpu":
        return {}
    model = sum(t.nbytes for t in targets.values())
    free = torch.get_device_module(device).mem_get_info(device)[0]
    found = place(model=model, sources=sum(sizes(sources, targets).values()), free=free + model)
    return copied(sources, targets, device, found.resident)


def copied(
    sources: Mapping[str, Tensors], names: Iterable[str], device: torch.device, room: int, share: Share = WHOLE
) -> dict[str, Tensors]:
    """A share of every source on a device, of each the same tensors: of those that are named, as many as so many bytes
    have room for, the largest first.
    """
    chosen = set()
    for name, size in sorted(sizes(sources, names, share).items(), key=lambda named: -named[1]):
        if size <= room:
            chosen.add(name)
            room -= size
    return {
        c: {n: share.part(t).to(device) for n, t in tensors.items() if n in chosen} for c, tensors in sources.items()
    }


def sizes(sources: Mapping[str, Tensors], names: Iterable[str], share: Share = WHOLE) -> dict[str, int]:
    """Bytes of a share of each of these tensors, of all sources together."""
    return {n: sum(share.part(t[n]).nbytes for t in sources.values() if n in t) for n in names}


class Streamed:
    """Runs passes on a device, moving operands that lie on the host; a :class:`workers.kernels.Runner`.

    Args:
        inner: runs a pass once its operands are on the device. buffer: bytes of one buffer. always: move operands that
            are on the device already too, so that the path runs on a machine that has one device only.
    """

    def __init__(self, inner: Runner, *, buffer: int = BUFFER, always: bool = False) -> None:
        self._inner = inner
        self._buffer = buffer
        self._always = always
        self._slots: dict[torch.device, list[_Slot]] = {}

    def write(self, todo: Pass[Tensor], out: Tensor) -> None:
        """See :class:`workers.kernels.Runner`."""
        if todo.tensors[0].device == out.device and not self._always:
            self._inner.write(todo, out)
            return
        size = _piece(self._buffer, _operands(todo))
        for slot, first in zip(cycle(self._slots_on(out.device)), range(0, out.numel(), size), strict=False):
            cut = slice(first, first + size)
            held = slot.load([t[cut] for t in _operands(todo)])
            self._inner.write(_with(todo, held, first), out[cut])
            slot.release()

    def _slots_on(self, device: torch.device) -> "list[_Slot]":
        if device not in self._slots:
            side = torch.get_device_module(device).Stream()
            self._slots[device] = [_Slot(device, side, self._buffer) for _ in range(2)]
        return self._slots[device]


class _Slot:
    """One buffer on the host and one on the device, and what must be over before either is written again."""

    def __init__(self, device: torch.device, side: Any, size: int) -> None:
        self._module = torch.get_device_module(device)
        self._side = side
        self._host = torch.empty(size, dtype=torch.uint8, pin_memory=device.type != "cpu")
        self._there = torch.empty(size, dtype=torch.uint8, device=device)
        self._arrived, self._merged = self._module.Event(), self._module.Event()

    def load(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors (n,) on the device; work that is queued from now on waits for them."""
        self._arrived.synchronize()  # the copy out of the host's buffer
        starts = list(_starts(tensors))
        for tensor, start in zip(tensors, starts, strict=True):
            _view(self._host, start, tensor).copy_(tensor)
        end = starts[-1] + tensors[-1].nbytes
        with self._module.stream(self._side):
            self._side.wait_event(self._merged)  # the merge that reads the device's buffer
            self._there[:end].copy_(self._host[:end], non_blocking=True)
            self._arrived.record(self._side)
        self._module.current_stream().wait_event(self._arrived)
        return [_view(self._there, start, tensor) for tensor, start in zip(tensors, starts, strict=True)]

    def release(self) -> None:
        """What is queued so far is the last that reads the device's buffer."""
        self._merged.record(self._module.current_stream())


def _operands(todo: Pass[Tensor]) -> list[Tensor]:
    return [*todo.tensors, *todo.ranks, *([] if todo.base is None else [todo.base])]


def _with(todo: Pass[Tensor], operands: Sequence[Tensor], first: int) -> Pass[Tensor]:
    """The pass over a piece of its operands, from their element ``first`` on."""
    k, ranks = len(todo.tensors), len(todo.ranks)
    return replace(
        todo,
        tensors=tuple(operands[:k]),
        ranks=tuple(operands[k : k + ranks]),
        base=None if todo.base is None else operands[-1],
        first=todo.first + first,
    )


def _piece(buffer: int, operands: Sequence[Tensor]) -> int:
    """Elements at a time, so that a piece of every operand fits into one buffer."""
    size = buffer // sum(t.element_size() for t in operands)
    return max(size // _ALIGNMENT, 1) * _ALIGNMENT


def _starts(tensors: Sequence[Tensor]) -> Iterator[int]:
    start = 0
    for tensor in tensors:
        yield start
        start += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _view(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    return buffer[start : start + like.nbytes].view(like.dtype)
