"""What a study has found: one row a trial, the front among them, and the pick."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any

import numpy as np
import optuna
from optuna.study import StudyDirection

from optimizer.features import Array
from optimizer.front import ENOUGH_TRIALS, Estimate, knee, posterior, spread
from optimizer.picks import Knee, Pick
from optimizer.samplers import AGAIN
from optimizer.spec import ObjectiveSpec, Spec, from_document
from search_spaces.errors import InputError
from search_spaces.recipe import Recipe
from storage.records import FURTHER, Measured, Score
from storage.store import Store

_NEAREST = 5
"""How many trials are shown where none keeps the constraints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chances:
    """How likely a trial is on the front, and how likely it keeps the constraints, by the model."""

    on_front: float
    feasible: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured trial. ``objectives`` are raw, ``posterior`` is the model's (mean, standard error).

    ``stopped`` says why a race ended it early; such a trial is never on the front. ``further`` are the scores of a
    second look, on items that other trials were not asked; the posterior knows of them.
    """

    trial: int
    recipe: Recipe
    objectives: Mapping[str, Score]
    posterior: Mapping[str, tuple[float, float]]
    feasible: bool
    baseline: str | None
    on_front: bool
    stopped: str = ""
    further: Mapping[str, Score] = field(default_factory=dict)
    chances: Chances | None = None

    def to_json(self) -> dict[str, Any]:
        """The row as the command line prints it; ``stopped``, ``chances`` and ``further`` are there where they were."""
        more: dict[str, Any] = {"stopped": self.stopped} if self.stopped else {}
        if self.chances is not None:
            more["chances"] = {"on_front": self.chances.on_front, "feasible": self.chances.feasible}
        if self.further:
            more["further"] = {name: score.to_json() for name, score in self.further.items()}
        return {
            "trial": self.trial,
            "recipe": self.recipe.to_json(),
            "weights": self.recipe.mean_weights(),
            "objectives": {name: score.to_json() for name, score in self.objectives.items()},
            "posterior": {name: {"mean": mean, "stderr": stderr} for name, (mean, stderr) in self.posterior.items()},
            "feasible": self.feasible,
            "baseline": self.baseline,
            "on_front": self.on_front,
        } | more


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Every measured trial of a study by number, and why its front is by raw means where it is (else None)."""

    spec: Spec
    rows: tuple[Row, ...]
    fallback: str | None

    @property
    def front(self) -> list[Row]:
        """The rows on the front, best first by the first objective."""
        first = self.spec.optimised[0]
        sign = -1.0 if first.maximise else 1.0
        return sorted((r for r in self.rows if r.on_front), key=lambda r: sign * r.posterior[first.name][0])

    @property
    def merges(self) -> list[Row]:
        """The rows of merges (checkpoints as they are included), without the base and the references."""
        names = {c.name for c in self.spec.checkpoints}
        return [r for r in self.rows if set(r.recipe.weights) <= names]

    @property
    def slider(self) -> list[Row]:
        """The merges on the front, best first by the first objective: what can be exported of it."""
        merges = {r.trial for r in self.merges}
        return [r for r in self.front if r.trial in merges]

    @property
    def constant(self) -> list[str]:
        """Objectives that have told no merge from another: all of several scored the same."""
        if len(self.rows) < ENOUGH_TRIALS:
            return []
        found = {o.name: {r.objectives[o.name].mean for r in self.rows} for o in self.spec.optimised}
        return [name for name, means in found.items() if len(means) == 1]

    @property
    def nearest(self) -> list[Row]:
        """The trials that break the constraints least, the least first; empty where one keeps them all."""
        if any(r.feasible for r in self.rows):
            return []
        whole = [r for r in self.rows if not r.stopped]
        return sorted(whole, key=self._violation)[:_NEAREST]

    def _violation(self, row: Row) -> float:
        means = {name: mean for name, (mean, _) in row.posterior.items()}
        return sum(max(v, 0.0) for o in self.spec.optimised for v in o.violations(means[o.name]).values())

    @property
    def knee(self) -> Row | None:
        """The merge where the front bulges most; None where it has none."""
        return self.slider[knee(*self.means(self.slider))] if self.slider else None

    def stops(self, count: int) -> list[Row]:
        """That many merges spread evenly along the front, best first by the first objective.

        Raises: InputError where ``count`` is below 2 or above the number of merges on the front.
        """
        if not 2 <= count <= len(self.slider):
            raise InputError(
                f"a slider must have from 2 points to as many as the front has merges ({len(self.slider)}), "
                f"but got {count}."
            )
        return [self.slider[i] for i in spread(*self.means(self.slider), count)]

    def means(self, rows: Sequence[Row]) -> tuple[Array, list[StudyDirection]]:
        """Posterior means ``(rows, objectives)``, and the objectives' directions."""
        objectives = self.spec.optimised
        means = np.array([[r.posterior[o.name][0] for o in objectives] for r in rows])
        return means, [direction(o) for o in objectives]

    @property
    def baselines(self) -> list[Row]:
        """The baselines' rows."""
        return [r for r in self.rows if r.baseline is not None]

    def row(self, trial: int) -> Row:
        """The row of one trial; raises InputError where it is not measured."""
        for row in self.rows:
            if row.trial == trial:
                return row
        numbers = ", ".join(str(r.trial) for r in self.rows) or "none"
        raise InputError(f"the trial must be a measured one ({numbers}), but got {trial}.")


def results(store: Store, name: str) -> Results:
    """Read a study: measurements as they are, the front by posterior mean."""
    spec = from_document(dict(store.study(name).spec))
    study = store.optuna_study(name, optuna.samplers.RandomSampler(seed=0))
    measured = store.measured(name)
    believed = posterior(study)
    trials = study.get_trials(deepcopy=False)
    labels = {t.number: t.user_attrs.get("baseline") for t in trials}
    looks = {n: m.scores for n, m in store.measured(name, FURTHER).items()}
    further = {t.user_attrs[AGAIN]: looks[t.number] for t in trials if t.number in looks}
    rows = []
    for number, estimate in believed.trials.items():
        if number not in measured:
            continue
        scores = {o.name: measured[number].scores[o.name] for o in spec.optimised}
        means = _believed(spec, scores, estimate)
        rows.append(
            Row(
                trial=number,
                recipe=measured[number].recipe,
                objectives=scores,
                posterior=means,
                feasible=is_feasible(spec, {o: mean for o, (mean, _) in means.items()}),
                baseline=labels[number],
                on_front=number in believed.front,
                stopped=measured[number].stopped,
                further=further.get(number, {}),
                chances=Chances(on_front=estimate.on_front, feasible=estimate.feasible),
            )
        )
    return Results(spec=spec, rows=tuple(sorted(rows, key=lambda r: r.trial)), fallback=believed.fallback)


def direction(objective: ObjectiveSpec) -> StudyDirection:
    """Optuna's word for whether more is better."""
    return StudyDirection.MAXIMIZE if objective.maximise else StudyDirection.MINIMIZE


def is_feasible(spec: Spec, means: Mapping[str, float]) -> bool:
    """Whether every constraint of the measured objectives holds at these means."""
    return all(v <= 0 for o in spec.objectives if o.name in means for v in o.violations(means[o.name]).values())


def scores_of(measured: Mapping[int, Measured], rows: Sequence[Row]) -> dict[int, dict[str, float]]:
    """Means by trial and objective for picking: of a split where it was measured, else the posterior's."""
    return {
        r.trial: {name: score.mean for name, score in measured[r.trial].scores.items()}
        if r.trial in measured
        else {name: mean for name, (mean, _) in r.posterior.items()}
        for r in rows
    }


def choose(found: Results, validated: Mapping[int, Measured], pick: str) -> int:
    """The trial that a pick expression chooses: among validated finalists where there are any, else among all merges.

    What breaks a constraint of the study is left out, unless the expression has a bound of its own on that objective.
    Where every merge breaks one, the best of an objective is taken among all; a knee there is none.
    """
    ordered = sorted(found.spec.objectives, key=lambda o: o.role == "watch")
    expression = Pick.parse(pick, {o.name: o.maximise for o in ordered}, [o.name for o in found.spec.optimised])
    of_front = isinstance(expression.goal, Knee)
    rows = [r for r in found.merges if r.trial in validated]
    means = scores_of(validated, rows or (found.slider if of_front else [r for r in found.merges if not r.stopped]))
    bounded = {name for name, _, _ in expression.conditions}
    kept = {
        number: values
        for number, values in means.items()
        if is_feasible(found.spec, {o: mean for o, mean in values.items() if o not in bounded})
    }
    return expression.choose(kept if kept or of_front else means)


def to_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV: one column a checkpoint's weight and six an objective."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([cell(v) if isinstance(v, str) else v for v in row] for row in to_rows(rows))
    return out.getvalue()


def to_rows(rows: Sequence[Row]) -> list[list[Any]]:
    """The heading, then one list a trial: what it is, its weights, and every number of every objective."""
    objectives = list(rows[0].objectives) if rows else []
    checkpoints = list(dict.fromkeys(name for r in rows for name in r.recipe.weights))
    parts = ("mean", "stderr", "n", "unscored")
    header = ["trial", "baseline", "on_front", "feasible", "method", *(f"weight.{c}" for c in checkpoints)]
    header += [f"{o}.{p}" for o in objectives for p in parts]
    header += [f"{o}.posterior_{p}" for o in objectives for p in ("mean", "stderr")]
    return [header, *(_cells_of(r, objectives, checkpoints, parts) for r in rows)]


def _cells_of(row: Row, objectives: Sequence[str], checkpoints: Sequence[str], parts: Sequence[str]) -> list[Any]:
    weights = row.recipe.mean_weights()
    return [
        *(row.trial, row.baseline or "", row.on_front, row.feasible, row.recipe.method),
        *(weights.get(c, 0.0) for c in checkpoints),
        *(row.objectives[o].to_json()[p] for o in objectives for p in parts),
        *(v for o in objectives for v in row.posterior[o]),
    ]


def cell(text: str) -> str:
    """A text of a CSV file that no spreadsheet takes for a formula: what begins like one gets an apostrophe."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def _believed(spec: Spec, scores: Mapping[str, Score], estimate: Estimate) -> dict[str, tuple[float, float]]:
    """The model's means, within the bounds that it does not know of, and its standard errors where it has any."""
    believed = {}
    for objective, mean, stderr in zip(spec.optimised, estimate.mean, estimate.stderr, strict=True):
        low, high = objective.bounds or (-inf, inf)
        known = stderr if isfinite(stderr) else scores[objective.name].stderr
        believed[objective.name] = (min(max(mean, low), high), known)
    return believed
