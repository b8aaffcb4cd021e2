"""Finalists on fresh items: the validation split picks, the report split reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.study import StudyDirection

from optimizer.front import non_dominated
from optimizer.results import Results, Row, is_feasible, results
from optimizer.spec import ObjectiveSpec, Spec
from optimizer.watcher import Watcher
from storage.records import SPLITS, Assignment, Failed, Measured, Outcome, Score
from storage.store import Store
from workers.pool import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalist:
    """A trial on the front, or a baseline, with its scores by split and objective."""

    trial: int
    baseline: str | None
    splits: Mapping[str, Mapping[str, Score]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Finalists, and which of them the validation split picks: merges, feasible there and dominated by no other."""

    spec: Spec
    picked: tuple[int, ...]
    finalists: tuple[Finalist, ...]

    def to_json(self) -> dict[str, Any]:
        """The form that the command line prints; low and high are the 95 % interval."""
        bounds = {o.name: o.bounds for o in self.spec.objectives}
        return {
            "picked": list(self.picked),
            "finalists": [
                {
                    "trial": f.trial,
                    "baseline": f.baseline,
                    "splits": {
                        split: {name: _with_interval(s, bounds[name]) for name, s in scores.items()}
                        for split, scores in f.splits.items()
                    },
                }
                for f in self.finalists
            ],
        }


def finalists(found: Results) -> list[Row]:
    """The front and every baseline, each once."""
    chosen = {r.trial: r for r in [*found.front, *found.baselines]}
    return list(chosen.values())


def validate(store: Store, name: str, pool: Pool, watcher: Watcher) -> Validation:
    """Measure finalists on the validation split, then picks and baselines on the report split; nothing twice."""
    found = results(store, name)
    rows = finalists(found)
    _measure(store, name, pool, rows, "validation", watcher)
    merges = {r.trial for r in found.merges}
    picked = _picked(found.spec, [r.trial for r in rows if r.trial in merges], store.measured(name, "validation"))
    reported = [r for r in rows if r.trial in picked or r.baseline is not None]
    _measure(store, name, pool, reported, "report", watcher)
    return _validation(store, name, found.spec, rows, picked, reported)


def _measure(store: Store, name: str, pool: Pool, rows: Sequence[Row], split: str, watcher: Watcher) -> None:
    there = store.measured(name, split)
    waiting = [Assignment(number=r.trial, recipe=r.recipe, split=split) for r in rows if r.trial not in there]
    done, running, total = 0, 0, len(waiting)
    while waiting or running:
        while waiting and pool.room:
            pool.submit(waiting.pop(0))
            running += 1
        for outcome in pool.finished():
            done, running = done + 1, running - 1
            _keep(store, name, outcome)
            watcher.outcome(outcome)
            watcher.stage(f"{split} split", done, total)


def _keep(store: Store, name: str, outcome: Outcome) -> None:
    if isinstance(outcome, Failed):
        store.add_failed(name, outcome)
    else:
        store.add_measured(name, outcome)


def _picked(spec: Spec, merges: Sequence[int], measured: Mapping[int, Measured]) -> tuple[int, ...]:
    """Merges that meet the constraints on the validation split and are dominated by no other that does."""
    means = {n: {o.name: measured[n].scores[o.name].mean for o in spec.optimised} for n in merges if n in measured}
    able = [n for n, values in means.items() if is_feasible(spec, values)]
    if not able:
        return ()
    values = np.array([[means[n][o.name] for o in spec.optimised] for n in able])
    return tuple(able[i] for i in non_dominated(values, [_direction(o) for o in spec.optimised]))


def _direction(objective: ObjectiveSpec) -> StudyDirection:
    return optuna.study.StudyDirection.MAXIMIZE if objective.maximise else optuna.study.StudyDirection.MINIMIZE


def _validation(
    store: Store, name: str, spec: Spec, rows: Sequence[Row], picked: tuple[int, ...], reported: Sequence[Row]
) -> Validation:
    measured = {split: store.measured(name, split) for split in SPLITS}
    shown = {r.trial for r in reported}
    return Validation(
        spec=spec,
        picked=picked,
        finalists=tuple(
            Finalist(
                trial=r.trial,
                baseline=r.baseline,
                splits={
                    split: measured[split][r.trial].scores
                    for split in SPLITS
                    if r.trial in measured[split] and (split != "report" or r.trial in shown)
                },
            )
            for r in rows
        ),
    )


def _with_interval(score: Score, bounds: tuple[float, float] | None) -> dict[str, float | int]:
    low, high = score.interval(bounds)
    return {"mean": score.mean, "stderr": score.stderr, "n": score.n, "low": low, "high": high}
