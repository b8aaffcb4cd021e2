"""Whether the gold answer's likelihood may stand for the metric on the first rung of a race.

Every merge of the study in the family's directory answers the general items of the search split twice: by their metric,
and by the likelihood of the gold answer. Fresh items tell which of two merges is truly better by the metric. For each
pair of merges the race's own test then asks, on the items of the first rung, whether the first is worse than the
second: once by the metric, once by the likelihood.

- *wrongly worse*: of the pairs whose first is truly at least as good, the share that the test calls worse. A race
  promises that this is at most its level, also for those that are better by a point at most (*the close ones*), as
  neighbours on a front are.
- *found*: of the pairs whose first is truly worse by five points and more, the share that the test calls worse.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from measuring_parts.calibration import fresh_items, measured
from optimizer.api import open_store
from optimizer.results import results
from optimizer.spec import Spec, from_document
from search_spaces.recipe import Recipe
from storage.records import Measured
from workers.racing import RUNGS, Gap, Rules, behind, lay_rungs
from workers.scores import Aggregation
from workers.setup import Setup
from workers.sheet import Objective
from workers.worker import Worker

FRESH = 4_000
FAR, CLOSE = 0.05, 0.01
LEVEL = 0.1 / len(RUNGS)
"""Of one look, at the confidence of .9 that studies race with."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One objective's items with every merge's values ``(merges, items)``."""

    objective: Objective
    values: Array


def table(family: Path) -> list[dict[str, Any]]:
    """A row for the metric and one for the likelihood."""
    with open_store(f"sqlite:///{family}/mergefront.db") as store:
        found = results(store, "demo")
    recipes = [row.recipe for row in found.rows]
    with tempfile.TemporaryDirectory() as directory:
        spec = _by_both(fresh_items(found.spec, Path(directory), FRESH))
        searched, fresh = _answers(spec, recipes, "search"), _answers(spec, recipes, "report")
    truth = fresh["metric"].values.mean(axis=1)
    apart = truth[:, None] - truth[None, :]
    pairs = ~np.eye(len(truth), dtype=bool)
    return [_row(name, p_values(answers), apart, pairs) for name, answers in searched.items()]


def p_values(answers: Answers) -> Array:
    """``(merges, merges)``: of "the first is at least as good as the second", on the first rung's items."""
    items = [(suite.key, item) for suite in answers.objective.suites for item in suite.items]
    rung = lay_rungs({s.key: s.items for s in answers.objective.suites}, Rules(confidence=0.9))[0]
    starts = np.cumsum([0, *(len(suite.items) for suite in answers.objective.suites)])
    asked = [s + p for s, suite in zip(starts, answers.objective.suites, strict=False) for p in rung[suite.key]]
    aggregation = Aggregation([items[p] for p in asked], "mean", answers.objective.bounds)
    sign = 1.0 if answers.objective.maximise else -1.0
    found = [aggregation.contributions((sign * row[asked]).tolist()) for row in answers.values]
    means, parts = np.array([mean for mean, _ in found]), np.stack([part for _, part in found])
    kinds = np.unique([str(kind) for kind in aggregation.clusters], return_inverse=True)[1]
    pseudo = None if answers.objective.bounds is None else (0.0, 1.0)
    return np.stack([behind(Gap(mean=m - means, parts=p - parts, kinds=kinds, pseudo=pseudo)) for m, p in found])


def _row(name: str, found: Array, apart: Array, pairs: npt.NDArray[np.bool_]) -> dict[str, Any]:
    worse = found <= LEVEL
    good, bad = pairs & (apart >= 0.0), pairs & (apart <= -FAR)
    close = good & (apart <= CLOSE)
    return {
        "first rung by": name,
        "level": f"{LEVEL:.1%}",
        "pairs, first at least as good": int(good.sum()),
        "wrongly worse": f"{worse[good].mean():.1%}",
        "of the close ones": f"{worse[close].mean():.1%} of {int(close.sum())}",
        "pairs, first worse by 5 points": int(bad.sum()),
        "found": f"{worse[bad].mean():.1%}",
    }


def _by_both(spec: Spec) -> Spec:
    """The general objective once by its own scorers and once by the gold answers' likelihood."""
    document = spec.document()
    (general,) = [o for o in document["objectives"] if o["name"] == "general"]
    kept = ("path", "validation", "report")
    likely = [{k: s[k] for k in kept if k in s} | {"scorer": "gold_nll"} for s in general["suites"]]
    objectives: Sequence[Mapping[str, Any]] = [general | {"name": "metric"}, {"name": "likelihood", "suites": likely}]
    return from_document(document | {"objectives": list(objectives)})


def _answers(spec: Spec, recipes: Sequence[Recipe], split: str) -> dict[str, Answers]:
    setup: Setup = spec.setup(device="cpu")
    worker = Worker(setup)
    objectives = {plan.name: plan.load()[split] for plan in setup.objectives}
    found = [measured(worker, recipe, split) for recipe in recipes]
    return {
        name: Answers(
            objective=objective,
            values=np.array([_row_of(objective, one) for one in found], dtype=float),
        )
        for name, objective in objectives.items()
    }


def _row_of(objective: Objective, found: Measured) -> list[float | None]:
    return [value for suite in objective.suites for value in found.marks[suite.key].values]
