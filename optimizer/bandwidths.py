"""Bandwidths measured on the spot, on a family's own tensors, with as many at once as there will be workers."""

import mmap
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from threading import Barrier, Lock
from time import perf_counter

import torch
from torch import Tensor

from optimizer.planner import Rates
from search_spaces.methods import CATALOGUE
from search_spaces.recipe import Recipe
from workers.family import Family
from workers.merger import Merger, Tensors, merge_digest
from workers.placement import copied, sizes

_SAMPLE = 1 << 30
"""Bytes that a measured merge reads and writes, as far as a family has so many: more than caches hold."""

_TIMES = 3
_BLOCK = 8 << 20
_BLOCKS = 16


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
    disk: Path | None,
) -> Rates:
    """Merge a sample of the family as a trial does, and take its digest.

    Args:
        like: the live weights, on any device. resident: what share of the checkpoints is copied to the device first.
        workers: how many do so at once, each with so many ``threads``. disk: a weight file to read past the system's
            cache; None where no trial waits for it.
    """
    sample = _sample(like, len(recipe.weights) + 2)
    merge = digest = 0.0
    for part, room in ((resident, sum(sizes(sources, sample).values())), (1.0 - resident, 0)):
        if part:
            merger = family.merger(sources, copied(sources, sample, torch.device(device), room))
            whole, digest = _at_once(workers, threads, partial(_swap, merger, recipe, sample, device))
            merge += part * whole
    written = sum(t.nbytes for t in sample.values())
    names = [*recipe.weights, *([family.base] if reads_base(recipe.method) else [])]
    read = sum(sources[name][t].nbytes for name in names for t in sample)
    return Rates(
        merge=(read + written) / merge, digest=written / digest, disk=None if disk is None else disk_rate(disk)
    )


def reads_base(method: str) -> bool:
    """Whether a merge by this method reads the base beside the checkpoints."""
    return CATALOGUE[method].drawn != "simplex"


def disk_rate(path: Path) -> float | None:
    """Bytes a second of one reader of a file, past the system's cache; None where the file system does not allow it."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
    except OSError:
        return None
    try:
        buffer = mmap.mmap(-1, _BLOCK)  # a direct read wants memory that begins at a page
        started, read = perf_counter(), 0
        for _ in range(_BLOCKS):
            read += (got := os.readv(file, [buffer]))
            if got < _BLOCK:
                break
        return read / (perf_counter() - started)
    except OSError:
        return None
    finally:
        os.close(file)


def _sample(like: Tensors, operands: int) -> dict[str, Tensor]:
    """The first tensors of a model, as many as make a merge of so many operands move enough."""
    found: dict[str, Tensor] = {}
    for name, tensor in like.items():
        if found and operands * sum(t.nbytes for t in found.values()) >= _SAMPLE:
            break
        found[name] = tensor
    return found


def _swap(merger: Merger, recipe: Recipe, like: Tensors, device: str) -> tuple[Callable[[], object], ...]:
    """A merge and a digest of it, to be run again and again."""
    targets = {name: torch.empty(t.shape, dtype=t.dtype, device=device) for name, t in like.items()}

    def merge() -> None:
        merger.write(recipe, targets)
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    merge()  # compiles the pass, and reads the files
    return merge, lambda: merge_digest(targets)


def _at_once(workers: int, threads: int, prepare: Callable[[], tuple[Callable[[], object], ...]]) -> list[float]:
    """Median seconds of each of the calls, while all workers are at the same one."""
    one_by_one, together = Lock(), Barrier(workers)

    def run(_worker: int) -> list[list[float]]:
        torch.set_num_threads(threads)  # of this thread
        with one_by_one:
            calls = prepare()
        return [[_timed(call, together) for _ in range(_TIMES)] for call in calls]

    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(run, range(workers)))
    return [median(s for one in found for s in one[i]) for i in range(len(found[0]))]


def _timed(call: Callable[[], object], together: Barrier) -> float:
    together.wait()
    started = perf_counter()
    call()
    return perf_counter() - started
