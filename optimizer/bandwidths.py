"""Bandwidths measured on the spot, on a family's own tensors, with as many at once as there will be workers."""

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from statistics import median
from threading import Barrier
from time import perf_counter

import torch
from torch import Tensor

from optimizer.planner import Rates
from search_spaces.methods import CATALOGUE
from search_spaces.recipe import Recipe
from workers.family import Family
from workers.merger import Merger, Tensors, merge_digest
from workers.placement import copied, sizes

_PART = 1 << 30
"""Bytes that a measured merge reads and writes, as far as a family has so many."""

_TIMES = 3
"""Parts of a family that are merged in turn, so that no cache holds one when it is merged again."""

_PAGE_OUT = 21
"""MADV_PAGEOUT, of Linux."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Some tensors: what they are merged from and into."""

    sources: Sequence[Tensor]
    targets: Tensors

    @property
    def read(self) -> int:
        """Bytes of the sources."""
        return sum(t.nbytes for t in self.sources)

    @property
    def written(self) -> int:
        """Bytes of the targets."""
        return sum(t.nbytes for t in self.targets.values())


def measure(
    family: Family,
    sources: Mapping[str, Tensors],
    like: Tensors,
    recipe: Recipe,
    *,
    device: str,
    workers: int,
    threads: int,
    resident: float,
    from_disk: bool,
) -> Rates:
    """Merge parts of the family as a trial does, and take their digests; then read them as all workers at once.

    A merge runs at its own rate or at its share of the memory's bandwidth, whichever is less. Merges by threads of one
    process would not tell: a compiled pass keeps the interpreter's lock, and workers are processes.

    Args:
        like: the live weights, on any device. resident: what share of the checkpoints is copied to the device first.
            workers: how many there will be, each with so many ``threads``. from_disk: whether a trial waits for the
            disk; then each part is merged and read once more, when none of it is in memory.
    """
    names = [*recipe.weights, *([family.base] if reads_base(recipe.method) else [])]
    shares = _shares(like, len(names) + 1)
    parts = [_part([sources[name] for name in names], {t: like[t] for t in share}, device) for share in shares]
    torch.set_num_threads(threads)
    wanted, found = {name for share in shares for name in share}, list[tuple[float, Rates]]()
    for weight, room in ((resident, sum(sizes(sources, wanted).values())), (1.0 - resident, 0)):
        if weight:
            merger = family.merger(sources, copied(sources, wanted, torch.device(device), room))
            found.append((weight, _alone(merger, recipe, parts, device, from_disk and not room)))
    alone = replace(found[-1][1], merge=1.0 / sum(weight / rates.merge for weight, rates in found))
    return alone if workers == 1 else _among(alone, parts, workers, threads, from_disk)


def reads_base(method: str) -> bool:
    """Whether a merge by this method reads the base beside the checkpoints."""
    return CATALOGUE[method].drawn != "simplex"


def page_out(tensors: Iterable[Tensor]) -> None:
    """Have the system forget pages of mapped files that no other process has touched; where it cannot, they stay."""
    if sys.platform != "linux":
        return
    system = ctypes.CDLL(None)
    for tensor in tensors:
        start, end = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE, tensor.data_ptr() + tensor.nbytes
        system.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _PAGE_OUT)


def _shares(like: Tensors, operands: int) -> list[list[str]]:
    """Names of tensors that follow each other, as many as make a merge of so many operands move a part's bytes, and the
    next ones; of a small model the same come again.
    """
    names, shares, taken = list(like), list[list[str]](), 0
    for _ in range(_TIMES):
        share, size = list[str](), 0
        while len(share) < len(names) and operands * size < _PART:
            share.append(names[taken % len(names)])
            size += like[share[-1]].nbytes
            taken += 1
        shares.append(share)
    return shares


def _part(sources: Sequence[Tensors], like: Tensors, device: str) -> _Part:
    read = [tensors[name] for tensors in sources for name in like]
    targets = {name: torch.empty(t.shape, dtype=t.dtype, device=device) for name, t in like.items()}
    return _Part(sources=read, targets=targets)


def _alone(merger: Merger, recipe: Recipe, parts: Sequence[_Part], device: str, from_disk: bool) -> Rates:
    def merge(part: _Part) -> None:
        merger.write(recipe, part.targets)
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    for part in parts:
        merge(part)  # compiles the pass, and reads the files
    merged = [_seconds(merge, part) for part in parts]
    digested = [_seconds(lambda part: merge_digest(part.targets), part) for part in parts]
    waited: list[float] = []
    for part, warm in zip(parts if from_disk else (), merged, strict=False):
        page_out(part.sources)
        waited.append(_seconds(merge, part) - warm)
    return Rates(
        merge=median((part.read + part.written) / s for part, s in zip(parts, merged, strict=True)),
        digest=median(part.written / s for part, s in zip(parts, digested, strict=True)),
        disk=sum(part.read for part in parts) / sum(waited) if sum(waited) > 0.0 else None,
    )


def _among(alone: Rates, parts: Sequence[_Part], workers: int, threads: int, from_disk: bool) -> Rates:
    """What is left of the rates of one worker when all use memory and disk."""
    together = Barrier(workers)

    def run(worker: int) -> list[float]:
        torch.set_num_threads(threads)  # of this thread
        mine = parts[worker % len(parts)]
        together.wait()
        found = [mine.read / _seconds(_read, mine)]
        if from_disk:
            together.wait()
            page_out(mine.sources)
            together.wait()
            found.append(mine.read / _seconds(_read, mine))
        return found

    with ThreadPoolExecutor(workers) as pool:
        memory, *disk = (median(rates) for rates in zip(*pool.map(run, range(workers)), strict=True))
    return Rates(
        merge=min(alone.merge, memory),
        digest=min(alone.digest, memory),
        disk=min(alone.disk, *disk) if alone.disk is not None else None,
    )


def _read(part: _Part) -> None:
    """Bring every byte of the sources to a processor, without the interpreter's lock."""
    for tensor in part.sources:
        if tensor.numel():
            tensor.reshape(-1).view(torch.uint8).max()


def _seconds(call: Callable[[_Part], object], part: _Part) -> float:
    started = perf_counter()
    call(part)
    return perf_counter() - started
