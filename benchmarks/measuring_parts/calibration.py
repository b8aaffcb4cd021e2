"""Do the 95 % intervals hold? Of finalists' report scores and of their differences, the share that covers the truth.

1. The finalists (front by posterior mean, and every baseline) of the study in the family's directory answer some 20,000
   items of the demo's language that no search and no training has seen: the report split of its generator, half of them
   requests, half of them questions of the five skills. (Addition has only some 200 problems there; all are taken.)
   A finalist's score on all of these items is the truth.
2. Report sets as large as the demo's (136 requests and 42 problems a skill, each in three languages) are drawn from
   these items, problem by problem with replacement: every set is an independent sample, the truth is exact for it.
3. Each set gives the figures that users see: `Score.interval` of every finalist, and the paired interval of every pair
   of finalists (`optimizer.statistics.Pairing`). Counted is how often they cover the truth. Beside them stand the
   normal interval (mean and 1.96 standard errors) and the bootstrap's quantiles as they are.
"""

import itertools
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from optimizer.api import open_store
from optimizer.demo import language
from optimizer.demo.family import default_plan
from optimizer.results import results
from optimizer.spec import ObjectiveSpec, Spec, from_document
from optimizer.statistics import Pairing, resamples
from search_spaces.recipe import Recipe
from storage.records import Assignment, Failed, Measured
from workers.scores import Aggregation
from workers.suites import Item
from workers.worker import Worker

FRESH = 20_000
SETS = 300
Items = list[tuple[str, Item]]
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Population:
    """One objective's fresh items with every finalist's values ``(finalists, items)``."""

    objective: ObjectiveSpec
    items: Items
    values: npt.NDArray[np.float64]

    def scoring(self, items: Items) -> Aggregation:
        """The objective on some items."""
        return Aggregation(items, self.objective.across, self.objective.bounds, maximise=self.objective.maximise)

    @property
    def truths(self) -> list[float]:
        """Each finalist's score on all items."""
        whole = self.scoring(self.items)
        return [whole.score(values).mean for values in self.values.tolist()]


def table(family: Path, *, sets: int = SETS, fresh: int = FRESH) -> list[dict[str, Any]]:
    """A row an objective: coverage of the intervals of scores and of paired differences."""
    return [
        {"objective": p.objective.name, "finalists": len(p.values), "fresh items": len(p.items), "sets": sets}
        | coverage(p, sets=sets)
        for p in populations(family, fresh)
    ]


def populations(family: Path, fresh: int) -> list[Population]:
    """Every finalist's outcome of every fresh item, by objective."""
    with open_store(f"sqlite:///{family}/mergefront.db") as store:
        found = results(store, "demo")
    recipes = {r.trial: r.recipe for r in [*found.front, *found.baselines]}
    with tempfile.TemporaryDirectory() as directory:
        return _measured(fresh_items(found.spec, Path(directory), fresh), list(recipes.values()))


def coverage(population: Population, *, sets: int, seed: int = 0) -> dict[str, str]:
    """Shares of the intervals that cover the truth, over ``sets`` drawn report sets."""
    truths = population.truths
    apart = [a - b for a, b in itertools.combinations(truths, 2)]
    hits: dict[str, list[list[bool]]] = defaultdict(list)
    for items, places in _report_sets(population.items, sets, seed):
        values = population.values[:, places].tolist()
        for kind, intervals in _scores(population, items, values).items():
            hits[kind].append([low <= t <= high for (low, high), t in zip(intervals, truths, strict=True)])
        for kind, intervals in _differences(population, items, values).items():
            hits[kind].append([low <= d <= high for (low, high), d in zip(intervals, apart, strict=True)])
    shares = {kind: np.mean(rows, axis=0) for kind, rows in hits.items()}
    return {kind: f"{share.mean():.1%} (worst {share.min():.0%})" for kind, share in shares.items()}


def _scores(population: Population, items: Items, values: Sequence[Sequence[float]]) -> dict[str, list[Interval]]:
    scoring = population.scoring(items)
    scores = [scoring.score(v) for v in values]
    return {
        "scores": [s.interval(population.objective.bounds) for s in scores],
        "(normal)": [s.interval() for s in scores],
    }


def _differences(population: Population, items: Items, values: Sequence[Sequence[float]]) -> dict[str, list[Interval]]:
    objective = population.objective
    pairing = Pairing(items, objective.across, objective.bounds, maximise=objective.maximise)
    found = [pairing.difference(a, b) for a, b in itertools.combinations(values, 2)]
    scoring = population.scoring(items)
    times = resamples(scoring.clusters)
    drawn = [scoring.resampled(v, times) for v in values]
    plain = [np.quantile(a - b, [0.025, 0.975]) for a, b in itertools.combinations(drawn, 2)]
    return {
        "differences": [(d.low, d.high) for d in found],
        "(bootstrap as it is)": [(float(low), float(high)) for low, high in plain],
    }


def fresh_items(spec: Spec, directory: Path, fresh: int) -> Spec:
    """The study with fresh items in the place of its report files."""
    document = spec.document()
    every = [language.Problem(skill="addition", parts=p) for p in itertools.product(language.NUMBERS, repeat=3)]
    additions = sum(language.split_of(p) == "report" for p in every)
    said = len(language.DEMO.languages)
    others = (fresh // 2 - said * additions) // (said * (len(language.GENERAL_SKILLS) - 1))
    groups = dict.fromkeys(language.GENERAL_SKILLS, others) | {
        "addition": additions,
        "request": fresh // 2 // said // 2 * 2,
    }
    for suite in (s for objective in document["objectives"] for s in objective["suites"]):
        name = Path(suite["report"]).name.partition(".")[0]
        skill = "request" if name == "safety" else name
        path = directory / f"{name}.jsonl"
        items = language.DEMO.make_items(skill, "report", groups[skill], seed=1)
        path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
        suite["report"] = str(path)
    return from_document(document)


def _measured(spec: Spec, recipes: Sequence[Recipe]) -> list[Population]:
    setup = spec.setup(device="cpu")
    worker = Worker(setup)
    loaded = {plan.name: plan.load()["report"] for plan in setup.objectives}
    columns: dict[str, list[list[float | None]]] = defaultdict(list)
    for recipe in recipes:
        outcome = measured(worker, recipe, "report")
        for name, objective in loaded.items():
            columns[name].append([v for suite in objective.suites for v in outcome.marks[suite.key].values])
    return [
        Population(
            objective=o,
            items=[(suite.key, item) for suite in loaded[o.name].suites for item in suite.items],
            values=np.array(columns[o.name], dtype=float),
        )
        for o in spec.objectives
    ]


def measured(worker: Worker, recipe: Recipe, split: str) -> Measured:
    """What the worker finds; ends the program where it cannot."""
    outcome = worker.run(Assignment(number=0, recipe=recipe, split=split))
    if isinstance(outcome, Failed):
        raise SystemExit(f"every merge must be measurable, but one is not: {outcome.reason}")
    return outcome


def _report_sets(items: Items, sets: int, seed: int) -> Iterator[tuple[Items, list[int]]]:
    """Items and their places in the population; a problem that is drawn twice counts as two problems."""
    strata: dict[tuple[str, str | None], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, (suite, item) in enumerate(items):
        strata[suite, item.label][item.group].append(place)
    plan = default_plan()
    rng = np.random.default_rng(seed)
    for _ in range(sets):
        chosen: Items = []
        places: list[int] = []
        for (suite, label), groups in strata.items():
            members = list(groups.values())
            count = plan.general_groups["report"] if label is None else plan.safety_groups["report"] // 2
            for turn, drawn in enumerate(rng.integers(0, len(members), count)):
                places += members[drawn]
                chosen += [(suite, replace(items[p][1], group=f"{label} {turn}")) for p in members[drawn]]
        yield chosen, places
