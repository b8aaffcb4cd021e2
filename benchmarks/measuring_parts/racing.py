"""What racing saves, and what it costs: searches of the demo's family with and without it.

Every seed is searched by each sampler once in full and once with racing, with the same trials and items. The front of
each search is then measured on fresh items of the toy languages that no search has seen, and its hypervolume compared
with that of the full search's front, twice: from the origin, and from what the worst of the baselines truly scores in
each objective, the box where merges differ (there the same losses are several times larger).

Baselines are never raced, and no trial of the final front may have stopped: "must answer all" is the share of trials in
the full search that are one or the other, below which no race could come that keeps this front whole.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import optuna

from optimizer import loop
from optimizer.demo.language import DEMO
from optimizer.front import hypervolume
from optimizer.results import Results, results
from optimizer.spec import Spec, load_spec
from optimizer.study import DriverStudy, create_study
from storage.records import Assignment, Measured
from storage.store import Store
from workers.pool import LocalPool
from workers.setup import ObjectivePlan
from workers.worker import Worker

TRIALS = 60
SAMPLERS = ("auto", "nsga2", "random")

GENERAL_GROUPS, SAFETY_GROUPS = 160, 534
"""Groups of fresh items for each general skill and for safety, each in three languages: 4,002 items a front member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One finished search: how many items each trial answered, and the true values of its front.

    ``whole`` counts the trials on the front and the baselines. ``corner`` is the worst that a baseline truly scores.
    """

    items: Mapping[int, int]
    baselines: int
    stopped: int
    whole: int
    front: np.ndarray
    corner: np.ndarray


def table(family: Path, seeds: int = 10, trials: int = TRIALS) -> list[dict[str, Any]]:
    """One row a sampler: medians over seeds; the loss with its range."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pairs: dict[str, list[tuple[Search, Search]]] = {sampler: [] for sampler in SAMPLERS}
    with tempfile.TemporaryDirectory() as scratch:
        spec = load_spec(family / "study.yaml")
        truth = Truth(spec, Path(scratch))
        for seed in range(seeds):
            for sampler, found in pairs.items():
                chosen = _with(spec, seed=seed, trials=trials, sampler=sampler)
                found.append((_search(_raced(chosen, False), truth), _search(_raced(chosen, True), truth)))
                print(f"seed {seed}", _row(sampler, found[-1:]), file=sys.stderr, flush=True)
    return [_row(sampler, found) for sampler, found in pairs.items()]


class Truth:
    """What a merge scores on fresh items."""

    def __init__(self, spec: Spec, directory: Path) -> None:
        setup = spec.setup(device="cpu")
        self._worker = Worker(replace(setup, objectives=tuple(_fresh(plan, directory) for plan in setup.objectives)))
        self._names = [objective.name for objective in spec.optimised]
        self._known: dict[str, np.ndarray] = {}

    def of(self, found: Results, trials: Sequence[int]) -> np.ndarray:
        """True values ``(trials, objectives)``."""
        return np.array([self._one(found, trial) for trial in trials]).reshape(-1, len(self._names))

    def _one(self, found: Results, trial: int) -> np.ndarray:
        recipe = found.row(trial).recipe
        if recipe.digest not in self._known:
            outcome = self._worker.run(Assignment(number=trial, recipe=recipe, split="report"))
            if not isinstance(outcome, Measured):
                raise RuntimeError(outcome.reason)
            self._known[recipe.digest] = np.array([outcome.scores[name].mean for name in self._names])
        return self._known[recipe.digest]


def _with(spec: Spec, **search: Any) -> Spec:
    return spec.model_copy(update={"search": spec.search.model_copy(update=search)})


def _raced(spec: Spec, racing: bool) -> Spec:
    return _with(spec, evaluation=spec.search.evaluation.model_copy(update={"racing": racing}))


def _search(spec: Spec, truth: Truth) -> Search:
    with tempfile.TemporaryDirectory() as scratch:
        store = Store.open(f"sqlite:///{scratch}/study.db", create=True)
        create_study(store, spec, trials=spec.search.trials, fingerprints={})
        items: dict[int, int] = {}
        pool = LocalPool(lambda: Worker(spec.setup(device="cpu")))
        loop.search(DriverStudy(store, spec.study), pool, lambda o: items.update({o.number: _answered(o)}))
        found = results(store, spec.study)
        store.close()
    return Search(
        items=items,
        baselines=len(found.baselines),
        stopped=sum(bool(row.stopped) for row in found.rows),
        whole=sum(row.on_front or row.baseline is not None for row in found.rows),
        front=truth.of(found, [row.trial for row in found.rows if row.on_front]),
        corner=truth.of(found, [row.trial for row in found.baselines]).min(axis=0),
    )


def _answered(outcome: Any) -> int:
    return sum(len(marks.ids) for marks in outcome.marks.values()) if isinstance(outcome, Measured) else 0


def _row(sampler: str, pairs: Sequence[tuple[Search, Search]]) -> dict[str, Any]:
    loss = [1.0 - _volume(raced) / _volume(full) for full, raced in pairs]
    origin = [1.0 - _volume(raced, origin=True) / _volume(full, origin=True) for full, raced in pairs]
    return {
        "sampler": sampler,
        "seeds": len(pairs),
        "items answered": f"{median(_share(full, raced) for full, raced in pairs):.0%}",
        "baselines apart": f"{median(_share(full, raced, full.baselines) for full, raced in pairs):.0%}",
        "must answer all": f"{median(full.whole / len(full.items) for full, _ in pairs):.0%}",
        "trials stopped": f"{median(raced.stopped for _, raced in pairs):.0f}",
        "on the front": f"{median(len(raced.front) for _, raced in pairs):.0f}",
        "in full": f"{median(len(full.front) for full, _ in pairs):.0f}",
        "hypervolume lost, origin": _spread(origin),
        "worst baseline": _spread(loss),
    }


def _spread(shares: Sequence[float]) -> str:
    return f"{median(shares):+.2%} ({min(shares):+.2%} to {max(shares):+.2%})"


def _share(full: Search, raced: Search, skip: int = 0) -> float:
    """Items answered against the full search, without the first ``skip`` trials."""
    counts = [[n for trial, n in search.items.items() if trial >= skip] for search in (raced, full)]
    return sum(counts[0]) / sum(counts[1])


def _volume(search: Search, origin: bool = False) -> float:
    corner = np.zeros(search.front.shape[1]) if origin else search.corner
    return hypervolume(search.front, corner.tolist(), [optuna.study.StudyDirection.MAXIMIZE] * len(corner))


def _fresh(plan: ObjectivePlan, directory: Path) -> ObjectivePlan:
    """The objective with fresh items in place of its report split."""
    suites = []
    for suite in plan.suites:
        name = suite.files.path.name.partition(".")[0]
        skill, groups = ("request", SAFETY_GROUPS) if name == "safety" else (name, GENERAL_GROUPS)
        path = directory / f"{name}.jsonl"
        path.write_text("".join(json.dumps(item) + "\n" for item in DEMO.make_items(skill, "report", groups, seed=77)))
        suites.append(replace(suite, files=replace(suite.files, report=path)))
    return replace(plan, suites=tuple(suites))
