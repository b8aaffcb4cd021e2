"""The element-wise passes that every merge method comes down to, and the two ways to run them.

Both ways give the same bits: float32, one rounding an operation (a weighted sum uses fused multiply-adds, a sum of
task vectors does not), in the order given, one rounding to the type of the target. So a merge that was scored compiled
is exported exactly by the loop.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

Operand = TypeVar("Operand", Tensor, str)
"""A tensor, or the name of the checkpoint whose tensor it is."""

_CHUNK = 1 << 17
"""Elements at a time in the loop: its few float32 temporaries stay in the cache."""

_CHUNK_GPU = 1 << 24
"""There a launch has to pay, and there is no cache to stay in."""

_PLACES = 1 << 31
"""Draws repeat after so many elements of one tensor."""

_SMALL = 1 << 14
"""Tensors of fewer elements (norms, biases) are not worth calling compiled code, nor another compilation."""

_WORTH = 1 << 27
"""A model of fewer elements merges in the loop before the compiler has started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass(Generic[Operand]):
    """One element-wise pass: all that a merge of one tensor is, once the numbers that need whole tensors are known.

    Over names it is plain values that travel to any process; over tensors it can be run.

    Attributes:
        kernel: a name in :data:`KERNELS`. tensors: k tensors of one shape, any float type. base: the base's.
        ranks: k float32 tensors of that shape, for ``ranked_election`` only. factors: rows of k numbers.
        integers: rows of k numbers in the range of int32. arity: the most tensors that the same method reads with
            other weights, 0 for what is not worth compiling. first: index of the first element in its whole tensor.
    """

    kernel: str
    tensors: tuple[Operand, ...]
    base: Operand | None = None
    ranks: tuple[Operand, ...] = ()
    factors: Sequence[Sequence[float]] = ((),)
    integers: Sequence[Sequence[int]] = ((),)
    arity: int = 0
    first: int = 0


class Runner(Protocol):
    """A way to run a pass."""

    def write(self, todo: Pass[Tensor], out: Tensor) -> None:
        """Write the merge of (n,) tensors into ``out`` (n,), on the same device, of any float type."""
        ...


class Loop:
    """A plain loop over pieces that stay in the cache. Works everywhere."""

    def write(self, todo: Pass[Tensor], out: Tensor) -> None:
        """See :class:`Runner`."""
        kernel, x = KERNELS[todo.kernel], _operands(todo)
        chunk = _CHUNK if out.device.type == "cpu" else _CHUNK_GPU
        for start in range(-(x.first % chunk), out.numel(), chunk):  # no piece goes over the place where draws repeat
            first = max(start, 0)
            cut = slice(first, start + chunk)
            tensors, ranks = [t[cut] for t in x.tensors], [r[cut] for r in x.ranks]
            kernel(out[cut], Operands(x.base[cut], tensors, ranks, x.factors, x.integers, x.first + first))


class Compiled:
    """One fused pass that reads every source once and writes into the target (torch.compile).

    Weights are an input and lengths are dynamic: a kernel is compiled once for a number of checkpoints and a type.
    Weights of zero do not change the number of inputs: a tensor that is read anyway takes their place, with the factor
    0. What is small or of mixed types goes through the loop.
    """

    def __init__(self) -> None:
        self._loop = Loop()
        self._works = True

    def write(self, todo: Pass[Tensor], out: Tensor) -> None:
        """See :class:`Runner`."""
        if not self._works or not _suits(todo):
            self._loop.write(todo, out)
            return
        try:
            _compiled(todo.kernel)(out, _operands(_padded(todo)))
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            self._loop.write(todo, out)  # one form more than are compiled; the others still are
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError, OSError) as e:
            _log.warning("merging in a plain loop, the compiler failed: %s", str(e).strip().split("\n")[0])
            self._works = False
            self._loop.write(todo, out)


def runner(elements: int, compiled: bool | None = None) -> Runner:
    """The way to run passes over a model, chosen once a worker.

    Args:
        elements: of the whole model. compiled: True or False decides; None compiles where it pays and there is a
            compiler.
    """
    if compiled is None:
        compiled = elements >= _WORTH and _has_compiler()
    _log.info("merging with %s", "a compiled pass" if compiled else "a plain loop")
    return Compiled() if compiled else Loop()


class Operands(NamedTuple):
    """What a kernel reads; see :class:`Pass`. ``first`` is the index of the first element in its tensor."""

    base: Tensor
    tensors: list[Tensor]
    ranks: list[Tensor]
    factors: Tensor
    integers: Tensor
    first: int


def copy(out: Tensor, x: Operands) -> None:
    """out = theta_0, bit for bit where the types are one."""
    out.copy_(x.tensors[0])


def weighted_sum(out: Tensor, x: Operands) -> None:
    """out = sum_i f_i theta_i, a chain of fused multiply-adds that starts from zero. Factors: f."""
    total = torch.zeros_like(x.tensors[0], dtype=torch.float32)
    for i, tensor in enumerate(x.tensors):
        total.addcmul_(tensor.float(), x.factors[0, i])
    out.copy_(total)


def plain_sum(out: Tensor, x: Operands) -> None:
    """out = base + lambda sum_i s_i delta_i. Factors: s, lambda."""
    base = x.base.float()
    vectors = [(t.float() - base) * x.factors[0, i] for i, t in enumerate(x.tensors)]
    out.copy_(base + _sum(vectors) * x.factors[1, 0])


def trimmed_sum(out: Tensor, x: Operands) -> None:
    """``plain_sum`` of what lies in low_i <= abs(delta_i) <= high_i. Factors: s, lambda, low, high."""
    base = x.base.float()
    vectors = [_trimmed(t.float() - base, x, i) for i, t in enumerate(x.tensors)]
    out.copy_(base + _sum(vectors) * x.factors[1, 0])


def trimmed_election(out: Tensor, x: Operands) -> None:
    """``trimmed_sum`` of the vectors whose sign is that of their sum. Factors: s, lambda, low, high."""
    base = x.base.float()
    vectors = [_trimmed(t.float() - base, x, i) for i, t in enumerate(x.tensors)]
    out.copy_(base + _elected(vectors) * x.factors[1, 0])


def dropped_sum(out: Tensor, x: Operands) -> None:
    """``plain_sum`` of what a draw keeps. Factors: s, lambda, density. Integers: two seeds, the last draw kept."""
    base, places = x.base.float(), _places(out, x.first)
    vectors = [_dropped(t.float() - base, places, x, i) for i, t in enumerate(x.tensors)]
    out.copy_(base + _sum(vectors) * x.factors[1, 0])


def dropped_election(out: Tensor, x: Operands) -> None:
    """``dropped_sum`` of the vectors whose sign is that of their sum. Factors and integers: as there."""
    base, places = x.base.float(), _places(out, x.first)
    vectors = [_dropped(t.float() - base, places, x, i) for i, t in enumerate(x.tensors)]
    out.copy_(base + _elected(vectors) * x.factors[1, 0])


def ranked_election(out: Tensor, x: Operands) -> None:
    """``dropped_election``, the density rising with the rank. Factors: s, lambda, lowest, step. Integers: two seeds."""
    base, places = x.base.float(), _places(out, x.first)
    vectors = [_ranked(t.float() - base, places, x, i) for i, t in enumerate(x.tensors)]
    out.copy_(base + _elected(vectors) * x.factors[1, 0])


KERNELS: dict[str, Callable[[Tensor, Operands], None]] = {
    "copy": copy,
    "weighted_sum": weighted_sum,
    "plain_sum": plain_sum,
    "trimmed_sum": trimmed_sum,
    "trimmed_election": trimmed_election,
    "dropped_sum": dropped_sum,
    "dropped_election": dropped_election,
    "ranked_election": ranked_election,
}
"""Every kernel writes into ``out`` (n,)."""


def _sum(vectors: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(vectors[0])
    for vector in vectors:
        total = total + vector
    return total


def _elected(vectors: Sequence[Tensor]) -> Tensor:
    up = _sum(vectors) >= 0
    return _sum([torch.where((vector >= 0) == up, vector, 0.0) for vector in vectors])


def _trimmed(delta: Tensor, x: Operands, i: int) -> Tensor:
    size = delta.abs()
    return torch.where((size >= x.factors[2, i]) & (size <= x.factors[3, i]), delta, 0.0) * x.factors[0, i]


def _dropped(delta: Tensor, places: Tensor, x: Operands, i: int) -> Tensor:
    kept = _draws(places, x.integers, i) <= x.integers[2, i]
    return torch.where(kept, delta / x.factors[2, i], 0.0) * x.factors[0, i]


def _ranked(delta: Tensor, places: Tensor, x: Operands, i: int) -> Tensor:
    density = x.factors[2, i] + x.ranks[i] * x.factors[3, i]
    draw = (_draws(places, x.integers, i).float() + 2147483648.0) * 2.0**-32
    return torch.where(draw <= density, delta / density, 0.0) * x.factors[0, i]


def _places(out: Tensor, first: int) -> Tensor:
    first %= _PLACES
    return torch.arange(first, first + out.shape[0], dtype=torch.int32, device=out.device)


def _draws(places: Tensor, integers: Tensor, i: int) -> Tensor:
    """One int32 an element, uniform: a hash of its place and two seeds (the mixer "lowbias32" by C. Wellons).

    A hash needs no memory, gives every trial and every device the same mask, and does not mind how a tensor is cut.
    """
    x = places + integers[0, i]
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x21F0AAAD
    x = x ^ ((x >> 15) & 0x1FFFF) ^ integers[1, i]
    x = x * 0x735A2D97
    return x ^ ((x >> 15) & 0x1FFFF)


def _suits(todo: Pass[Tensor]) -> bool:
    count = todo.tensors[0].numel()
    types = {t.dtype for t in todo.tensors} | (set() if todo.base is None else {todo.base.dtype})
    drawn = any(todo.integers)
    last = todo.first + count
    return len(types) == 1 and len(todo.tensors) <= todo.arity and count >= _SMALL and not (drawn and last > _PLACES)


def _operands(todo: Pass[Tensor]) -> Operands:
    device = todo.tensors[0].device
    return Operands(
        base=todo.tensors[0] if todo.base is None else todo.base,
        tensors=list(todo.tensors),
        ranks=list(todo.ranks),
        factors=torch.tensor(todo.factors, dtype=torch.float32, device=device),
        integers=torch.tensor(todo.integers, dtype=torch.int32, device=device),
        first=todo.first if any(todo.integers) else 0,
    )


def _padded(todo: Pass[Tensor]) -> Pass[Tensor]:
    """The pass with its full number of tensors: the last one again, with the factor 0."""
    more = todo.arity - len(todo.tensors)
    _, *others = ([*row, *row[-1:] * more] for row in map(list, todo.factors))
    return replace(
        todo,
        tensors=todo.tensors + _again(todo.tensors, more),
        ranks=todo.ranks + _again(todo.ranks, more),
        factors=[[*todo.factors[0], *[0.0] * more], *others],
        integers=[[*row, *row[-1:] * more] for row in map(list, todo.integers)],
    )


def _again(tensors: Sequence[Tensor], times: int) -> tuple[Tensor, ...]:
    """The last tensor as new objects: the compiler makes another kernel where one object stands twice."""
    return tuple(t.view_as(t) for t in tensors[-1:] for _ in range(times))


@cache
def _compiled(kernel: str) -> Callable[..., Any]:
    # Contraction makes the weighted sum a chain of fused multiply-adds, as addcmul is; GPUs fuse unless told not to.
    fused = kernel == "weighted_sum"
    options: dict[str, Any] = {
        "cpp.enable_floating_point_contract_flag": "fast" if fused else "off",
        "emulate_precision_casts": not fused,
    }
    return torch.compile(KERNELS[kernel], dynamic=True, fullgraph=True, options=options)


def _has_compiler() -> bool:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True
