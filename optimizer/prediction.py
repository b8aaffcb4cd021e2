"""How long a trial will take: a swap by bytes and bandwidths, the answers by asking a share of the items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from optimizer import bandwidths
from optimizer.baselines import starting_points
from optimizer.family import Progress
from optimizer.planner import Plan, Rates
from optimizer.spec import BASE, Spec
from search_spaces.errors import InputError
from storage.checkpoints import Checkpoint
from storage.records import Assignment, Failed
from workers.setup import ObjectivePlan, Setup
from workers.transformers_engine import empty_weights
from workers.worker import Worker, pick_device

_TIMED_ITEMS = 64
"""Items that are asked of a suite, on average."""

_LEAST_ITEMS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One trial of the uniform merge that answers ``items``: wall seconds by what they are spent on (merge, digest,
    disk, answers), and the bandwidths that this was reckoned with.
    """

    seconds: Mapping[str, float]
    items: int
    rates: Rates

    @property
    def total(self) -> float:
        """Wall seconds in all."""
        return sum(self.seconds.values())


def predict(
    spec: Spec, checkpoints: Mapping[str, Checkpoint], plan: Plan, *, workers: int, progress: Progress
) -> Prediction:
    """Measure this machine and reckon up a trial. Raises InputError where the uniform merge cannot be measured."""
    progress("one trial", 0, 2)
    before = torch.get_num_threads()
    try:
        items, answers = _answers(spec)
        progress("one trial", 1, 2)
        rates = _rates(spec, checkpoints, plan, workers)
    finally:
        torch.set_num_threads(before)
    progress("one trial", 2, 2)
    return Prediction(seconds=plan.seconds(rates) | {"answers": answers}, items=items, rates=rates)


def _rates(spec: Spec, checkpoints: Mapping[str, Checkpoint], plan: Plan, workers: int) -> Rates:
    base, setup, processes = checkpoints[BASE], spec.setup(device="cpu"), spec.workers.tensor_parallel
    one = bandwidths.measure(
        setup.family,
        {name: checkpoint.tensors for name, checkpoint in checkpoints.items()},
        empty_weights(base.path, spec.workers.dtype, trust_remote_code=base.trust_remote_code),
        starting_points(spec)[0].recipe,
        device=pick_device(spec.workers.device),
        workers=workers * processes if pick_device(spec.workers.device) == "cpu" else 1,
        threads=setup.threads,
        resident=1 - plan.streamed / plan.read if plan.on_gpu else 0.0,
        from_disk=plan.from_disk,
    )
    # Each process of an engine merges and hashes its share. What they exchange is not in it.
    return replace(one, merge=one.merge * processes, digest=one.digest * processes)


def _answers(spec: Spec) -> tuple[int, float]:
    """How many items a trial answers, and in how many seconds, by a share of every suite."""
    setup = spec.setup(device=spec.workers.device)
    searched = tuple(plan for plan in setup.objectives if not plan.watched)
    counts = [len(suite.items) for plan in searched for suite in plan.load()["search"].suites]
    share = min(_TIMED_ITEMS * len(counts) / sum(counts), 1.0)
    worker = Worker(_asking(setup, searched, [max(round(n * share), min(n, _LEAST_ITEMS)) for n in counts]))
    start = Assignment(number=0, recipe=starting_points(spec)[0].recipe)
    worker.run(start)  # the first trial warms up and prepares what later ones reuse
    outcome = worker.run(start)
    if isinstance(outcome, Failed):
        raise InputError(f"the uniform merge must be measurable, but it failed: {outcome.reason}")
    asked = sum(len(m.ids) for m in outcome.marks.values())
    seconds = outcome.seconds["total"] - outcome.seconds["merge"]
    return sum(counts), seconds * sum(counts) / asked


def _asking(setup: Setup, objectives: Sequence[ObjectivePlan], items: Sequence[int]) -> Setup:
    """The setup with these objectives alone, and at most so many items of each of their suites."""
    left = iter(items)
    fewer = [replace(o, suites=tuple(replace(s, items=next(left)) for s in o.suites)) for o in objectives]
    return replace(setup, objectives=tuple(fewer))
