"""What a study needs of memory, on the host and on each GPU, against what there is."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from optimizer.bandwidths import reads_base
from optimizer.planner import Plan, Way, size_of, ways_out
from optimizer.spec import BASE, Spec
from search_spaces.errors import InputError
from storage.checkpoints import Checkpoint
from workers.placement import buffers, place
from workers.transformers_engine import context_of, empty_weights
from workers.vllm_plan import Cache, Needs, plan_gpu, streamed_needs


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """In words: what is needed and had, why it cannot be, and what will be slow; and one worker's plan in bytes, None
    where it cannot be known here.
    """

    fact: str
    problem: str | None = None
    warnings: tuple[str, ...] = ()
    plan: Plan | None = None


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
    return _on_gpu(spec, sizes, workers) if device == "cuda" else _on_cpu(spec, sizes, workers)


def _sizes(spec: Spec, checkpoints: Mapping[str, Checkpoint]) -> _Sizes:
    base = checkpoints[BASE].tensors.values()
    methods, names = spec.search_space.methods, [c.name for c in spec.checkpoints]
    with_base = any(reads_base(method) for method in methods)
    floats = sum(t.numel() for t in base if t.is_floating_point())
    return _Sizes(
        model=sum(t.numel() for t in base) * getattr(torch, spec.workers.dtype).itemsize,
        sources=sum(c.nbytes for c in checkpoints.values()),
        read=sum(checkpoints[name].nbytes for name in [BASE] * with_base + names),
        ranks=torch.float32.itemsize * floats * len(names) if "della" in methods else 0,
        host=_available_memory(),
    )


def _on_cpu(spec: Spec, sizes: _Sizes, workers: int) -> Memory:
    each = sizes.model + sizes.ranks
    left = sizes.host - each * workers
    fact = (
        f"{size_of(sizes.model)} a worker x {workers} for live models{_with_ranks(sizes.ranks)}; checkpoints "
        f"{size_of(sizes.sources)} mapped once, shared by all workers; available {size_of(sizes.host)}"
    )
    plan = Plan(model=sizes.model, read=sizes.read, own=each, mapped=sizes.sources, from_disk=sizes.read > left)
    ways = [*_fewer_workers(each, workers, sizes.host), *_finer(spec, each * workers, sizes.host)]
    ways += [*_fewer_ranks(spec, sizes, sizes.model, workers)]
    return Memory(
        fact=fact,
        problem=_too_little(each * workers, sizes.host, ways),
        warnings=tuple(_from_disk(sizes.read, left)),
        plan=plan,
    )


def _on_gpu(spec: Spec, sizes: _Sizes, workers: int) -> Memory:
    free = _free_on_gpu()
    found = place(model=sizes.model, sources=sizes.sources, free=free)
    plan = _plan_on_gpus(sizes, found.resident, gpus=1, workers=workers)
    ways = [*_finer(spec, found.needed, free, sizes.model), *_over_more_gpus(sizes, free)]

    def holds(sources: int) -> bool:
        return place(model=sizes.model, sources=sources, free=free).resident == sources

    return Memory(
        fact=f"{size_of(found.needed)} of {size_of(free)} on each GPU: live model {size_of(sizes.model)}, room for "
        f"forward passes; {_where(sizes, plan)}",
        problem=_too_little(found.needed, free, ways) or _too_little_for_ranks(spec, sizes, plan, workers),
        warnings=tuple(_slow(spec, sizes, plan, workers, holds)),
        plan=plan,
    )


def _on_vllm(spec: Spec, checkpoints: Mapping[str, Checkpoint], sizes: _Sizes, device: str, workers: int) -> Memory:
    base, processes = checkpoints[BASE], spec.workers.tensor_parallel
    config = AutoConfig.from_pretrained(base.path, local_files_only=True, trust_remote_code=base.trust_remote_code)
    cache = Cache.of(config, dtype=spec.workers.dtype, processes=processes, longest=spec.workers.max_model_len)
    if device == "cpu":
        return _on_vllm_of_processors(sizes, cache.on_host * processes, workers)
    like = empty_weights(base.path, spec.workers.dtype, trust_remote_code=base.trust_remote_code)
    sources = {name: checkpoint.tensors for name, checkpoint in checkpoints.items()}
    needs = Needs.of(like, cache, sources=sources, processes=processes)
    free, total = torch.cuda.mem_get_info()
    try:
        found = plan_gpu(needs, total=total, free=free)
    except InputError as e:
        ways = ways_out(vllm_ways(config, like, spec, free=free))
        return Memory(fact=f"{size_of(free)} free on a GPU", problem=str(e).rstrip(".") + ways + ".")
    resident = sizes.sources * found.resident // needs.sources
    plan = _plan_on_gpus(sizes, resident, gpus=processes, workers=workers)

    def holds(sources: int) -> bool:
        less = replace(needs, sources=-(-sources // processes))
        return plan_gpu(less, total=total, free=free).resident == less.sources

    each = f" shared out among {processes} GPUs," if processes > 1 else ""
    return Memory(
        fact=f"{found.utilization:.0%} of each GPU for vLLM: {size_of(needs.model)} of the model, keys and values;"
        f"{each} {_where(sizes, plan)}",
        problem=_too_little_for_ranks(spec, sizes, plan, workers),
        warnings=tuple(_slow(spec, sizes, plan, workers, holds)),
        plan=plan,
    )


def _plan_on_gpus(sizes: _Sizes, resident: int, *, gpus: int, workers: int) -> Plan:
    """One worker, of whose checkpoints so many bytes are resident."""

    def rest(of: int) -> int:
        return of - of * resident // sizes.sources

    pinned, own = gpus * buffers(rest(sizes.sources)), rest(sizes.ranks)
    return Plan(
        model=sizes.model,
        read=sizes.read,
        streamed=rest(sizes.read),
        on_gpu=sizes.model + resident,
        pinned=pinned,
        own=own,
        mapped=rest(sizes.sources),
        from_disk=rest(sizes.read) > sizes.host - workers * (pinned + own),
    )


def _where(sizes: _Sizes, plan: Plan) -> str:
    """Where checkpoints lie, in words."""
    if not plan.streamed:
        return f"checkpoints {size_of(sizes.sources)} resident"
    resident = plan.on_gpu - plan.model
    part = f"{size_of(resident)} of them resident and the others " if resident else ""
    return (
        f"checkpoints {size_of(sizes.sources)}, {part}streamed from the host through {size_of(plan.pinned)} of pinned "
        f"memory, up to {size_of(plan.streamed)} a trial{_with_ranks(plan.own)}"
    )


def _on_vllm_of_processors(sizes: _Sizes, kept: int, workers: int) -> Memory:
    each = sizes.model + sizes.ranks + kept
    needed = each * workers
    fact = (
        f"{size_of(sizes.model)} a worker x {workers} for live models{_with_ranks(sizes.ranks)}, {size_of(kept)} for "
        f"keys and values; checkpoints {size_of(sizes.sources)} mapped once; available {size_of(sizes.host)}"
    )
    plan = Plan(
        model=sizes.model,
        read=sizes.read,
        own=each,
        mapped=sizes.sources,
        from_disk=sizes.read > sizes.host - needed,
    )
    return Memory(
        fact=fact,
        problem=_too_little(needed, sizes.host, [*_fewer_workers(each, workers, sizes.host)]),
        warnings=tuple(_from_disk(sizes.read, sizes.host - needed)),
        plan=plan,
    )


def vllm_ways(config: Any, like: Mapping[str, Tensor], spec: Spec, *, free: int, most: int = 8) -> Iterator[Way]:
    """What would make one process of a vLLM engine fit into ``free`` bytes: shorter texts, then more GPUs.

    Args:
        most: GPUs of one machine.
    """
    dtype, processes = spec.workers.dtype, spec.workers.tensor_parallel
    longest = spec.workers.max_model_len or context_of(config)
    for length in (n for n in (32768, 16384, 8192, 4096, 2048, 1024) if n < longest):
        cache = Cache.of(config, dtype=dtype, processes=processes, longest=length)
        needs = Needs.of(like, cache, sources={}, processes=processes)
        if streamed_needs(needs, free) <= free:
            yield Way(change=f"workers.max_model_len: {length}", needed=streamed_needs(needs, free), free=free)
            break
    while (processes := 2 * processes) <= most:
        cache = Cache.of(config, dtype=dtype, processes=processes, longest=longest)
        needs = Needs.of(like, cache, sources={}, processes=processes)
        yield Way(change=f"workers.tensor_parallel: {processes}", needed=streamed_needs(needs, free), free=free)


def _fewer_workers(each: int, workers: int, free: int) -> Iterator[Way]:
    fitting = min(free // each, workers - 1)
    if fitting > 0:
        yield Way(change=f"workers.count: {fitting}", needed=each * fitting, free=free)


def _finer(spec: Spec, needed: int, free: int, model: int | None = None) -> Iterator[Way]:
    """Half the bytes a weight; ``model`` is what of the needed bytes the live weights are, all of them by default."""
    if spec.workers.dtype == "float32":
        yield Way(
            change="workers.dtype: bfloat16", needed=needed - (needed if model is None else model) // 2, free=free
        )


def _too_little_for_ranks(spec: Spec, sizes: _Sizes, plan: Plan, workers: int) -> str | None:
    return _too_little(plan.own * workers, sizes.host, _fewer_ranks(spec, sizes, 0, workers))


def _fewer_ranks(spec: Spec, sizes: _Sizes, model: int, workers: int) -> Iterator[Way]:
    """della keeps ranks of each checkpoint: of fewer, or of none. ``model`` is what of live weights the host holds."""
    if not sizes.ranks:
        return
    count = len(spec.checkpoints)
    needs = {kept: (model + sizes.ranks * kept // count) * workers for kept in range(count - 1, 1, -1)}
    most = next((kept for kept, needed in needs.items() if needed <= sizes.host), None)
    if most is not None:
        yield Way(change=f"{most} checkpoints", needed=needs[most], free=sizes.host)
    yield Way(change="another method than della", needed=model * workers, free=sizes.host)


def _over_more_gpus(sizes: _Sizes, free: int) -> Iterator[Way]:
    """vLLM can spread a model, transformers cannot; keys and values come on top."""
    for processes in (2, 4, 8):
        needed = place(model=sizes.model // processes, sources=0, free=free).needed + buffers(sizes.sources)
        yield Way(change=f"workers: {{engine: vllm, tensor_parallel: {processes}}}", needed=needed, free=free)


def _slow(spec: Spec, sizes: _Sizes, plan: Plan, workers: int, holds: Callable[[int], bool]) -> Iterator[str]:
    """What checkpoints that are not all on one GPU cost; ``holds`` says whether so many bytes of them would be."""
    if plan.streamed:
        yield from _streaming(spec, sizes, plan, holds)
    if plan.streamed or spec.workers.tensor_parallel > 1:
        yield from _reselecting(spec)
    yield from _from_disk(plan.streamed, sizes.host - workers * (plan.own + plan.pinned))


def _streaming(spec: Spec, sizes: _Sizes, plan: Plan, holds: Callable[[int], bool]) -> Iterator[str]:
    """How few checkpoints would be resident, where not all are."""
    each = sizes.sources // (1 + len(spec.checkpoints) + len(spec.references))
    fitting = next((n for n in range(len(spec.checkpoints) - 1, 1, -1) if holds(each * (n + 1))), 0)
    if fitting:
        yield (
            f"up to {size_of(plan.streamed)} of checkpoints are streamed a trial; base and {fitting} checkpoints would "
            "be resident as a whole."
        )


def _too_little(needed: int, available: int, ways: Iterable[Way]) -> str | None:
    if needed <= available:
        return None
    return (
        f"the live models must fit into memory, but they need {size_of(needed)} and {size_of(available)} is "
        f"free{ways_out(ways)}."
    )


def _with_ranks(ranks: int) -> str:
    return f" and {size_of(ranks)} of ranks that della keeps" if ranks else ""


def _from_disk(read: int, host: int) -> Iterator[str]:
    if read > host:
        yield (
            f"a trial reads up to {size_of(read)} of mapped files and {size_of(max(host, 0))} of memory is free "
            "for them: every trial will wait for the disk."
        )


def _reselecting(spec: Spec) -> Iterator[str]:
    """Thresholds are of whole tensors and are selected where these lie."""
    space = spec.search_space
    trimming = [m for m in space.methods if m in ("ties", "breadcrumbs")]
    searched = [n for n in ("density", "gamma") if n in space.parameters and len(set(space.parameters[n])) > 1]
    if trimming and searched:
        yield (
            f"no GPU holds the checkpoints, so {trimming[0]} with a searched {searched[0]} selects its thresholds on "
            f"the host in every trial: a fixed {searched[0]} does so once."
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
