"""What a study needs of memory, on the host and on each GPU, against what there is."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig

from optimizer.spec import BASE, Spec
from search_spaces.errors import InputError
from search_spaces.methods import CATALOGUE
from storage.checkpoints import Checkpoint
from workers.placement import place
from workers.transformers_engine import empty_weights
from workers.vllm_plan import Cache, Needs, plan_gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """In words: what is needed and had, why it cannot be, and what will be slow."""

    fact: str
    problem: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """Bytes.

    Attributes:
        model: of the live weights. sources: of all checkpoints. read: of those that a trial may read. ranks: of the
            magnitudes' ranks, which della keeps on a host. host: free on this machine.
    """

    model: int
    sources: int
    read: int
    ranks: int
    host: int


def memory_of(spec: Spec, checkpoints: Mapping[str, Checkpoint], *, device: str, workers: int) -> Memory:
    """Look at a family on this machine; ``device`` is ``cpu`` or ``cuda``, where each worker has a GPU of its own."""
    sizes = _sizes(spec, checkpoints)
    if spec.workers.engine == "vllm" and (device == "cpu" or torch.cuda.is_available()):
        return _on_vllm(spec, checkpoints, sizes, device, workers)
    if device == "cuda" and not torch.cuda.is_available():
        return Memory(
            fact=f"live model {size_of(sizes.model)}, checkpoints {size_of(sizes.sources)}; there is no GPU here to "
            "measure: each worker finds out whether they fit on its own"
        )
    return _on_gpu(spec, sizes, workers) if device == "cuda" else _on_cpu(sizes, workers)


def size_of(count: float) -> str:
    """Bytes as a reader likes them."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def _sizes(spec: Spec, checkpoints: Mapping[str, Checkpoint]) -> _Sizes:
    base = checkpoints[BASE].tensors.values()
    methods, names = spec.search_space.methods, [c.name for c in spec.checkpoints]
    with_base = any(CATALOGUE[method].drawn != "simplex" for method in methods)
    floats = sum(t.numel() for t in base if t.is_floating_point())
    return _Sizes(
        model=sum(t.numel() for t in base) * getattr(torch, spec.workers.dtype).itemsize,
        sources=sum(c.nbytes for c in checkpoints.values()),
        read=sum(checkpoints[name].nbytes for name in [BASE] * with_base + names),
        ranks=torch.float32.itemsize * floats * len(names) if "della" in methods else 0,
        host=_available_memory(),
    )


def _on_cpu(sizes: _Sizes, workers: int) -> Memory:
    needed = (sizes.model + sizes.ranks) * workers
    fact = (
        f"{size_of(sizes.model)} a worker x {workers} for live models{_with_ranks(sizes)}; checkpoints "
        f"{size_of(sizes.sources)} mapped once, shared by all workers; available {size_of(sizes.host)}"
    )
    return Memory(
        fact=fact, problem=_too_little(needed, sizes.host), warnings=tuple(_from_disk(sizes, sizes.host - needed))
    )


def _on_gpu(spec: Spec, sizes: _Sizes, workers: int) -> Memory:
    free = _free_on_gpu()
    found = place(model=sizes.model, sources=sizes.sources, free=free)
    start = f"{size_of(found.needed)} of {size_of(free)} on each GPU: live model {size_of(sizes.model)}"
    if found.resident:
        fact = f"{start}, checkpoints {size_of(sizes.sources)} resident, room for forward passes"
        return Memory(fact=fact, problem=_too_little(found.needed, free))
    kept = sizes.ranks * workers
    return Memory(
        fact=f"{start}, buffers, room for forward passes; the checkpoints ({size_of(sizes.sources)}) do not fit beside "
        f"it and are streamed from the host, up to {size_of(sizes.read)} a trial{_with_ranks(sizes)}",
        problem=_too_little(found.needed, free) or _too_little(kept, sizes.host),
        warnings=(*_reselecting(spec), *_from_disk(sizes, sizes.host - kept)),
    )


def _on_vllm(spec: Spec, checkpoints: Mapping[str, Checkpoint], sizes: _Sizes, device: str, workers: int) -> Memory:
    base, processes = checkpoints[BASE], spec.workers.tensor_parallel
    config = AutoConfig.from_pretrained(base.path, local_files_only=True, trust_remote_code=base.trust_remote_code)
    cache = Cache.of(config, dtype=spec.workers.dtype, processes=processes, longest=spec.workers.max_model_len)
    if device == "cpu":
        kept = cache.on_host * processes
        needed = (sizes.model + sizes.ranks + kept) * workers
        fact = (
            f"{size_of(sizes.model)} a worker x {workers} for live models{_with_ranks(sizes)}, {size_of(kept)} for "
            f"keys and values; checkpoints {size_of(sizes.sources)} mapped once; available {size_of(sizes.host)}"
        )
        return Memory(fact=fact, problem=_too_little(needed, sizes.host))
    like = empty_weights(base.path, spec.workers.dtype, trust_remote_code=base.trust_remote_code)
    needs = Needs.of(like, cache, sources=sizes.sources, processes=processes)
    free, total = torch.cuda.mem_get_info()
    try:
        plan = plan_gpu(needs, total=total, free=free)
    except InputError as e:
        return Memory(fact=f"{size_of(free)} free on a GPU", problem=str(e))
    where = "resident" if plan.resident else "streamed from the host"
    return Memory(
        fact=f"{plan.utilization:.0%} of each GPU for vLLM: {size_of(needs.model)} of the model, keys and values; "
        f"checkpoints {size_of(sizes.sources)} {where}"
    )


def _too_little(needed: int, available: int) -> str | None:
    if needed <= available:
        return None
    return f"the live models must fit into memory, but they need {size_of(needed)} and {size_of(available)} is free."


def _with_ranks(sizes: _Sizes) -> str:
    return f" and {size_of(sizes.ranks)} of ranks that della keeps" if sizes.ranks else ""


def _from_disk(sizes: _Sizes, host: int) -> Iterator[str]:
    if sizes.read > host:
        yield (
            f"a trial reads up to {size_of(sizes.read)} of mapped files and {size_of(max(host, 0))} of memory is free "
            "for them: every trial will wait for the disk."
        )


def _reselecting(spec: Spec) -> Iterator[str]:
    """Thresholds are of whole tensors and are selected where the checkpoints lie."""
    space = spec.search_space
    trimming = [m for m in space.methods if m in ("ties", "breadcrumbs")]
    searched = [n for n in ("density", "gamma") if n in space.parameters and len(set(space.parameters[n])) > 1]
    if trimming and searched:
        yield (
            f"checkpoints are streamed, so {trimming[0]} with a searched {searched[0]} selects its thresholds on the "
            f"host in every trial: a fixed {searched[0]} does so once."
        )


def _free_on_gpu() -> int:
    return int(torch.cuda.mem_get_info()[0])


def _available_memory() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
