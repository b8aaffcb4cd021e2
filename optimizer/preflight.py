"""Preflight: is this family mergeable, does it fit, how long will it take. Nothing is spent before it passes."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from optimizer.baselines import starting_points
from optimizer.engine_checks import engine_problems, length_problems
from optimizer.family import (
    Progress,
    Vectors,
    differences,
    facts_of,
    foreign_adapters,
    task_vectors,
    unused,
    warnings_of,
)
from optimizer.memory import memory_of
from optimizer.planner import Plan, size_of
from optimizer.prediction import predict
from optimizer.spec import BASE, Spec
from search_spaces.errors import InputError
from search_spaces.methods import takers
from storage.checkpoints import Checkpoint
from storage.file_records import FileRecords
from storage.records import FURTHER
from workers.chat_templates import template_problem
from workers.prompts import load_tokenizer
from workers.setup import ObjectivePlan
from workers.suites import Item, Prompt
from workers.worker import pick_device

_PROBES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What ``check`` found. ``problems`` make the merge impossible, ``warnings`` are worth a look."""

    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    facts: Mapping[str, str] = field(default_factory=dict)
    vectors: Vectors | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, FileRecords] = field(default_factory=dict)


def check(spec: Spec, *, timed: bool, progress: Progress) -> Report:
    """Look at a whole study before anything is spent.

    Args:
        timed: also build one merge and ask a few items, to estimate a trial's and the study's time.
    """
    checkpoints, problems = _open(spec)
    if problems:
        return Report(problems=tuple(problems), warnings=())
    problems = [*engine_problems(spec, checkpoints), *differences(spec, checkpoints)]
    problems += _suite_problems(spec, checkpoints)
    if problems:
        return Report(problems=tuple(problems), warnings=())
    vectors, not_finite = task_vectors(spec, checkpoints, progress)
    if not_finite:
        return Report(problems=tuple(not_finite), warnings=())
    memory = memory_of(spec, checkpoints, device=pick_device(spec.workers.device), workers=worker_count(spec))
    facts = facts_of(checkpoints) | {"memory": memory.fact}
    problems = [] if memory.problem is None else [memory.problem]
    if timed and not problems and memory.plan is not None:
        timing, problems = _timing(spec, checkpoints, memory.plan, progress)
        facts |= timing
    return Report(
        problems=tuple(problems),
        warnings=(
            *_tokenizer_warnings(spec, checkpoints),
            *unused(spec, checkpoints),
            *foreign_adapters(spec, checkpoints),
            *warnings_of(vectors),
            *_spec_warnings(spec),
            *memory.warnings,
        ),
        facts=facts,
        vectors=vectors,
        fingerprints=_fingerprints(checkpoints, progress),
        files={name: checkpoint.records for name, checkpoint in checkpoints.items()},
    )


def worker_count(spec: Spec) -> int:
    """How many workers a study starts on one machine: as told, else one a GPU or one a core, as far as these go round
    where an engine takes several.
    """
    if isinstance(spec.workers.count, int):
        wanted = spec.workers.count
    elif pick_device(spec.workers.device) == "cuda":
        wanted = max(torch.cuda.device_count(), 1)
    else:
        wanted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if spec.workers.count == "auto":
        wanted = max(wanted // spec.workers.tensor_parallel, 1)
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


def _suite_problems(spec: Spec, checkpoints: Mapping[str, Checkpoint]) -> list[str]:
    """Whatever would stop a worker from reading and tokenising its suites."""
    problems = []
    tokenizer: PreTrainedTokenizerBase | None = None
    try:
        tokenizer = _base_tokenizer(checkpoints)
    except InputError as e:
        problems.append(str(e))
    chats: list[Prompt] = []
    for plan in spec.setup(device="cpu").objectives:
        try:
            chats += _check_items(plan, tokenizer)
        except InputError as e:
            problems.append(str(e))
    if tokenizer is not None and not problems:
        problem = template_problem(tokenizer, chats)
        problems += [] if problem is None else [problem]
    if tokenizer is not None and not problems:
        problems += length_problems(spec, checkpoints[BASE], tokenizer)
    return problems


def _base_tokenizer(checkpoints: Mapping[str, Checkpoint]) -> PreTrainedTokenizerBase:
    base = checkpoints[BASE]
    return load_tokenizer(base.path, trust_remote_code=base.trust_remote_code)


def _check_items(plan: ObjectivePlan, tokenizer: PreTrainedTokenizerBase | None) -> list[Prompt]:
    """Refuse items that could not be asked or marked; returns the prompts that are chats."""
    chats: list[Prompt] = []
    languages: set[str] = set()
    for split, objective in plan.load().items():
        for suite in objective.suites:
            for item in suite.items:
                languages.add(item.lang)
                chats += [] if isinstance(item.prompt, str) else [item.prompt]
                lack = suite.scorer.check(item)
                if lack:
                    raise InputError(f"item {item.id} of {suite.key} ({split}): {suite.scorer.name} needs {lack}.")
                if tokenizer is not None and not isinstance(item.prompt, str) and tokenizer.chat_template is None:
                    raise InputError(
                        f"a chat prompt needs a chat template, but the base's tokenizer has none (item {item.id} of "
                        f"{suite.key})."
                    )
        here = {item.lang for suite in objective.suites for item in suite.items}
        if here or split != FURTHER:  # where trials answer every item, there are none for second looks
            _check_weights(plan, here, split)
    absent = sorted(set(plan.across) - languages) if not isinstance(plan.across, str) else []
    if absent:
        raise InputError(
            f"across_languages must name languages of the suites, but {plan.name} has no items in {absent[0]}."
        )
    return chats


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


def _timing(
    spec: Spec, checkpoints: Mapping[str, Checkpoint], plan: Plan, progress: Progress
) -> tuple[dict[str, str], list[str]]:
    """What a trial moves, and how long it and the study will take."""
    workers = worker_count(spec)
    try:
        found = predict(spec, checkpoints, plan, workers=workers, progress=progress)
    except InputError as e:
        return {}, [str(e)]
    study = found.total * spec.search.trials / workers
    disk = "" if found.rates.disk is None else f", the disk {size_of(found.rates.disk)}/s"
    swap = found.total - found.seconds["answers"]
    return {
        "a trial moves": f"{size_of(plan.read)} read and {size_of(plan.model)} written, measured at "
        f"{size_of(found.rates.merge)}/s; digest {size_of(found.rates.digest)}/s{disk}",
        "a trial": f"about {_duration(found.total)} for {found.items} items, {_duration(swap)} of it the merge",
        "the study": f"about {_duration(study)} of measuring for {spec.search.trials} trials on {workers} workers",
    }, []


def _tokenizer_warnings(spec: Spec, checkpoints: Mapping[str, Checkpoint]) -> Iterator[str]:
    base = _base_tokenizer(checkpoints)
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


def _spec_warnings(spec: Spec) -> Iterator[str]:
    for name in spec.search_space.idle:
        methods = ", ".join(spec.search_space.methods)
        yield f"{name} changes nothing: it is a parameter of {', '.join(takers(name))}, and the method is {methods}."
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


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
