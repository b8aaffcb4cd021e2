"""Preflight: is this family mergeable, does it fit, how long will it take. Nothing is spent before it passes."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from optimizer.baselines import starting_points
from optimizer.spec import BASE, Spec
from search_spaces.errors import InputError
from storage.checkpoints import Checkpoint
from storage.records import Assignment, Failed
from workers.prompts import load_tokenizer
from workers.setup import ObjectivePlan
from workers.suites import Item, Prompt
from workers.worker import Worker, pick_device

Progress = Callable[[str, int, int], None]

_CHUNK = 1 << 22
_PROBES = 50
_TIMED_ITEMS = 64
_DUPLICATE = 0.999
_STRANGER = 1.0
_HEAD = "lm_head.weight"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
_BUFFERS = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """Task vectors against the base, by checkpoint name in order.

    Attributes:
        relative_norm: norm of (checkpoint - base) over the norm of the base. cosine: (k, k), between task vectors.
        rounding: how far rounding the uniform merge to the study's dtype moves it, over its distance to the base.
    """

    names: tuple[str, ...]
    relative_norm: tuple[float, ...]
    cosine: tuple[tuple[float, ...], ...]
    rounding: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What ``check`` found. ``problems`` make the merge impossible, ``warnings`` are worth a look."""

    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    facts: Mapping[str, str] = field(default_factory=dict)
    vectors: Vectors | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)


def check(spec: Spec, *, timed: bool, progress: Progress) -> Report:
    """Look at a whole study before anything is spent.

    Args:
        timed: also build one merge and ask a few items, to estimate a trial's and the study's time.
    """
    checkpoints, problems = _open(spec)
    if problems:
        return Report(problems=tuple(problems), warnings=())
    problems = [*_differences(spec, checkpoints), *_suite_problems(spec, checkpoints)]
    if problems:
        return Report(problems=tuple(problems), warnings=())
    vectors, not_finite = _vectors(spec, checkpoints, progress)
    if not_finite:
        return Report(problems=tuple(not_finite), warnings=())
    memory, short = _memory(spec, checkpoints)
    facts = _family_facts(checkpoints) | memory
    problems = [] if short is None else [short]
    if timed and not problems:
        timing, problems = _timing(spec, progress)
        facts |= timing
    return Report(
        problems=tuple(problems),
        warnings=(*_tokenizer_warnings(spec, checkpoints), *_vector_warnings(vectors), *_spec_warnings(spec)),
        facts=facts,
        vectors=vectors,
        fingerprints=_fingerprints(checkpoints, progress),
    )


def worker_count(spec: Spec) -> int:
    """How many workers a study starts on one machine: as told, else one a GPU or one a core."""
    if isinstance(spec.workers.count, int):
        wanted = spec.workers.count
    elif pick_device(spec.workers.device) == "cuda":
        wanted = max(torch.cuda.device_count(), 1)
    else:
        wanted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parallel = spec.search.parallel
    return min(wanted, parallel) if isinstance(parallel, int) else wanted


def _open(spec: Spec) -> tuple[dict[str, Checkpoint], list[str]]:
    checkpoints, problems = {}, []
    for source in spec.sources:
        try:
            checkpoints[source.name] = Checkpoint(source)
        except InputError as e:
            problems.append(f"{source.name}: {e}")
    return checkpoints, problems


def _differences(spec: Spec, checkpoints: Mapping[str, Checkpoint]) -> Iterator[str]:
    """Every way in which a checkpoint is not of the base's shape."""
    from workers.transformers_engine import empty_weights

    base = checkpoints[BASE]
    try:
        wanted = empty_weights(base.path, spec.workers.dtype)
    except (ValueError, OSError, KeyError, ImportError) as e:
        yield f"the base must be a causal language model that transformers knows, but {base.path} is not: {e}"
        return
    missing = [name for name in wanted if name not in base.tensors]
    if missing:
        yield (
            "tensors must be stored under the names that the model class uses, but the base does not hold "
            f"{_some(missing)}; loading it in transformers and save_pretrained() may write them so."
        )
    for name, checkpoint in checkpoints.items():
        if checkpoint.architecture != base.architecture:
            yield (
                "checkpoints must share one architecture, but got "
                f"{base.architecture} ({BASE}) and {checkpoint.architecture} ({name})."
            )
        else:
            yield from _tensor_differences(name, base.tensors, checkpoint.tensors, wanted)
    if not missing:
        yield from _without_direction(spec, checkpoints, wanted)


def _tensor_differences(
    name: str, base: Mapping[str, Tensor], other: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> Iterator[str]:
    """What the model class uses must be in both; what it does not use may be in both, or be a buffer."""
    missing = sorted(t for t in base if t not in other and not _is_buffer(t, wanted))
    extra = sorted(t for t in other if t not in base and not _is_buffer(t, wanted) and not _is_tied_copy(t, other))
    if missing or extra:
        found = [f"{name} lacks {_some(missing)}"] * bool(missing) + [f"{name} has also {_some(extra)}"] * bool(extra)
        tied = _HEAD in (*missing, *extra)
        hint = "; one ties its head to its embeddings and the other does not: untie it in transformers and save it"
        yield f"checkpoints must have the same tensors as the base, but {' and '.join(found)}{hint * tied}."
    both = [t for t in base if t in other]
    shapes = [t for t in both if other[t].shape != base[t].shape]
    if shapes:
        found = [f"{t} is {tuple(other[t].shape)} in {name} and {tuple(base[t].shape)} in the base" for t in shapes]
        padded = all(other[t].shape[1:] == base[t].shape[1:] for t in shapes) and len(shapes) <= 2
        hint = "; if only the vocabulary is padded differently, resize_token_embeddings() in transformers and save it"
        yield f"checkpoints must have the base's shapes, but {_some(found)}{hint * padded}."
    kinds = [t for t in both if other[t].is_floating_point() != base[t].is_floating_point()]
    if kinds:
        yield f"a tensor must hold floats in all checkpoints or in none, but {_some(kinds)} of {name} differs."


def _is_buffer(name: str, wanted: Mapping[str, Tensor]) -> bool:
    """Whether it is one of the constants that older versions of transformers stored beside the weights."""
    return name not in wanted and name.endswith(_BUFFERS)


def _is_tied_copy(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether it is the head of a model that stores its tied embeddings twice."""
    embeddings = [t for n, t in tensors.items() if n.endswith(_EMBEDDINGS)]
    return name == _HEAD and any(torch.equal(tensors[name], e) for e in embeddings)


def _without_direction(
    spec: Spec, checkpoints: Mapping[str, Checkpoint], wanted: Mapping[str, Tensor]
) -> Iterator[str]:
    """Tensors that are zero in some checkpoints but not in all: there is no angle between them."""
    spherical = [m for m in spec.search_space.methods if m in ("slerp", "multislerp")]
    names = [c.name for c in spec.checkpoints]
    for tensor in wanted if spherical else ():
        holders = [n for n in names if tensor in checkpoints[n].tensors]
        zero = [n for n in holders if not checkpoints[n].tensors[tensor].any()]
        if zero and len(zero) < len(holders):
            yield f"{spherical[0]} needs tensors with a direction, but {tensor} is all zero in {zero[0]}."


def _suite_problems(spec: Spec, checkpoints: Mapping[str, Checkpoint]) -> list[str]:
    """Whatever would stop a worker from reading and tokenising its suites."""
    problems = []
    tokenizer: PreTrainedTokenizerBase | None = None
    try:
        tokenizer = load_tokenizer(checkpoints[BASE].path)
    except InputError as e:
        problems.append(str(e))
    for plan in spec.setup(device="cpu").objectives:
        try:
            _check_items(plan, tokenizer)
        except InputError as e:
            problems.append(str(e))
    return problems


def _check_items(plan: ObjectivePlan, tokenizer: PreTrainedTokenizerBase | None) -> None:
    languages: set[str] = set()
    for split, objective in plan.load().items():
        for suite in objective.suites:
            for item in suite.items:
                languages.add(item.lang)
                lack = suite.scorer.check(item)
                if lack:
                    raise InputError(f"item {item.id} of {suite.key} ({split}): {suite.scorer.name} needs {lack}.")
                if tokenizer is not None and not isinstance(item.prompt, str) and tokenizer.chat_template is None:
                    raise InputError(
                        f"a chat prompt needs a chat template, but the base's tokenizer has none (item {item.id} of "
                        f"{suite.key})."
                    )
        here = {item.lang for suite in objective.suites for item in suite.items}
        _check_weights(plan, here, split)
    absent = sorted(set(plan.across) - languages) if not isinstance(plan.across, str) else []
    if absent:
        raise InputError(
            f"across_languages must name languages of the suites, but {plan.name} has no items in {absent[0]}."
        )


def _check_weights(plan: ObjectivePlan, languages: set[str], split: str) -> None:
    if isinstance(plan.across, str):
        return
    missing = sorted(languages - set(plan.across))
    empty = sorted(lang for lang, w in plan.across.items() if w > 0 and lang not in languages)
    if missing:
        raise InputError(f"across_languages must weigh every language, but {plan.name} gives none to {missing[0]}.")
    if empty or not any(plan.across.values()):
        raise InputError(
            f"every language with a weight must have items, but {plan.name} has none in {empty[0] if empty else 'any'} "
            f"({split})."
        )


def _vectors(spec: Spec, checkpoints: Mapping[str, Checkpoint], progress: Progress) -> tuple[Vectors, list[str]]:
    """Norms and cosines in one pass over every tensor, and every tensor that is not finite."""
    base = checkpoints[BASE].tensors
    names = [c.name for c in spec.checkpoints]
    others = [n for n in checkpoints if n not in names]
    gram = torch.zeros(len(names), len(names), dtype=torch.float64)
    sums = torch.zeros(3, dtype=torch.float64)  # squared: of the base, of the rounding, of the uniform task vector
    not_finite: list[str] = []
    dtype = getattr(torch, spec.workers.dtype)
    floats = [name for name, tensor in base.items() if tensor.is_floating_point()]
    for done, name in enumerate(floats):
        progress("reading weights", done, len(floats))
        bad = [n for n in [*names, *others] if not _finite(checkpoints[n].tensors[name])]
        not_finite += [f"weights must be finite, but {name} of {n} holds NaN or infinity." for n in bad]
        for start in range(0, base[name].numel(), _CHUNK):
            cut = slice(start, start + _CHUNK)
            origin = base[name].reshape(-1)[cut].float()
            stack = torch.stack([checkpoints[n].tensors[name].reshape(-1)[cut].float() for n in names]) - origin
            gram += (stack @ stack.T).double()
            uniform = stack.mean(0) + origin
            sums += torch.stack(
                [
                    origin.square().sum().double(),
                    (uniform.to(dtype).float() - uniform).square().sum().double(),
                    (uniform - origin).square().sum().double(),
                ]
            )
    progress("reading weights", len(floats), len(floats))
    norms = gram.diagonal().clamp(min=0).sqrt()
    scale = torch.outer(norms, norms)
    cosine = torch.where(scale > 0, gram / scale, torch.zeros_like(gram))
    size, rounding, distance = sums.sqrt().tolist()
    found = Vectors(
        names=tuple(names),
        relative_norm=tuple((norms / size).tolist()),
        cosine=tuple(tuple(row) for row in cosine.tolist()),
        rounding=rounding / distance if distance > 0 else 0.0,
    )
    return found, not_finite


def _finite(tensor: Tensor) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in tensor.reshape(-1).split(_CHUNK))


def _family_facts(checkpoints: Mapping[str, Checkpoint]) -> dict[str, str]:
    base = checkpoints[BASE]
    dtypes = {
        n: ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in c.tensors.values()}))
        for n, c in checkpoints.items()
    }
    count = sum(t.numel() for t in base.tensors.values())
    return {
        "architecture": f"{base.architecture}, {count / 1e6:,.2f} million parameters, {len(base.tensors)} tensors",
        "stored as": ", ".join(sorted(set(dtypes.values())))
        + ("" if len(set(dtypes.values())) == 1 else " (" + ", ".join(f"{n}: {d}" for n, d in dtypes.items()) + ")"),
    }


def _memory(spec: Spec, checkpoints: Mapping[str, Checkpoint]) -> tuple[dict[str, str], str | None]:
    """What a worker needs against what there is, and the refusal where that is too little."""
    itemsize = getattr(torch, spec.workers.dtype).itemsize
    model = sum(t.numel() for t in checkpoints[BASE].tensors.values()) * itemsize
    sources = sum(c.nbytes for c in checkpoints.values())
    workers = worker_count(spec)
    on_gpu = pick_device(spec.workers.device) == "cuda"
    if on_gpu:
        needed, available = model + sources, torch.cuda.mem_get_info()[0]
        text = f"{_size(needed)} on each GPU (live model {_size(model)}, checkpoints {_size(sources)})"
    else:
        needed, available = model * workers, _available_memory()
        text = (
            f"{_size(model)} a worker x {workers} for live models; checkpoints {_size(sources)} mapped once, "
            "shared by all workers"
        )
    facts = {"memory": f"{text}; available {_size(available)}"}
    if needed > available:
        return (
            facts,
            f"the live models must fit into memory, but they need {_size(needed)} and {_size(available)} is free.",
        )
    return facts, None


def _available_memory() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _timing(spec: Spec, progress: Progress) -> tuple[dict[str, str], list[str]]:
    """Measure the uniform merge on a few items and reckon up a trial and the study."""
    few = _TIMED_ITEMS
    asked = spec.search.evaluation.items
    small = spec.search.evaluation.model_copy(update={"items": min(few, asked or few)})
    setup = spec.model_copy(update={"search": spec.search.model_copy(update={"evaluation": small})}).setup(
        device=spec.workers.device
    )
    threads = torch.get_num_threads()
    progress("one trial", 0, 1)
    try:
        worker = Worker(setup)
        start = Assignment(number=0, recipe=starting_points(spec)[0].recipe)
        worker.run(start)  # the first trial warms up and prepares what later ones reuse
        outcome = worker.run(start)
    finally:
        torch.set_num_threads(threads)
    progress("one trial", 1, 1)
    if isinstance(outcome, Failed):
        return {}, [f"the uniform merge must be measurable, but it failed: {outcome.reason}"]
    items = sum(
        len(s.items)
        for plan in spec.setup(device="cpu").objectives
        if not plan.watched
        for s in plan.load()["search"].suites
    )
    measured = sum(len(m.ids) for m in outcome.marks.values())
    trial = outcome.seconds["merge"] + (outcome.seconds["total"] - outcome.seconds["merge"]) * items / measured
    workers = worker_count(spec)
    study = trial * spec.search.trials / workers
    return {
        "a trial": f"about {_duration(trial)} for {items} items, {_duration(outcome.seconds['merge'])} of it the merge",
        "the study": f"about {_duration(study)} of measuring for {spec.search.trials} trials on {workers} workers",
    }, []


def _tokenizer_warnings(spec: Spec, checkpoints: Mapping[str, Checkpoint]) -> Iterator[str]:
    base = load_tokenizer(checkpoints[BASE].path)
    probes = _probes(spec, base)
    for name, checkpoint in checkpoints.items():
        if name == BASE or checkpoint.adapter is not None:
            continue
        try:
            tokenizer = load_tokenizer(checkpoint.path)
        except InputError:
            continue
        differing = [p for p in probes if tokenizer.encode(p) != base.encode(p)]
        if differing:
            yield (
                f"{name} tokenizes {len(differing)} of {len(probes)} prompts differently from the base, "
                f"the first being {differing[0][:60]!r}; merges are asked with the base's tokenizer."
            )
        if tokenizer.chat_template != base.chat_template:
            yield f"{name} has another chat template than the base; merges are asked with the base's."


def _probes(spec: Spec, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    plans = spec.setup(device="cpu").objectives
    items: list[Item] = [i for plan in plans for s in plan.load()["search"].suites for i in s.items[:_PROBES]]
    return [_text(item.prompt) for item in items]


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _vector_warnings(vectors: Vectors) -> Iterator[str]:
    for name, norm in zip(vectors.names, vectors.relative_norm, strict=True):
        if norm == 0.0:
            yield f"{name} equals the base: its task vector is zero."
        elif norm > _STRANGER:
            yield f"{name} is {norm:.1f} times as far from the base as the base is from zero: is it of this family?"
    for (i, left), (j, right) in combinations(enumerate(vectors.names), 2):
        if vectors.cosine[i][j] > _DUPLICATE:
            yield f"{left} and {right} point the same way (cosine {vectors.cosine[i][j]:.4f}): are they duplicates?"
    if vectors.rounding > 0.1:
        yield f"rounding moves the uniform merge by {vectors.rounding:.0%} of its way from the base: use a finer dtype."


def _spec_warnings(spec: Spec) -> Iterator[str]:
    if spec.search.evaluation.racing:
        yield "racing is not available in this version: every trial answers all its items."
    starts = len(starting_points(spec))
    if spec.search.trials <= starts:
        yield f"{spec.search.trials} trials are no more than the {starts} that every search starts with."


def _fingerprints(checkpoints: Mapping[str, Checkpoint], progress: Progress) -> dict[str, str]:
    found = {}
    for done, (name, checkpoint) in enumerate(checkpoints.items()):
        progress("fingerprints", done, len(checkpoints))
        found[name] = checkpoint.fingerprint
    progress("fingerprints", len(checkpoints), len(checkpoints))
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return ""


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
