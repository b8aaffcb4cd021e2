"""Studies whose outcomes are known, for what reads outcomes: a real store and real suite files, values by a rule."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState, create_trial

from optimizer.baselines import starting_points
from optimizer.spec import Spec, load_spec
from optimizer.study import create_study
from search_spaces.recipe import Recipe
from storage.records import SPLITS, Marks, Measured
from storage.store import Store
from workers.scores import Aggregation
from workers.sheet import Objective
from workers.suites import Item
from workers.worker import Worker

Rule = Callable[[str, str, str, int, Item], float | None]
"""(trial's name, split, objective, the item's place, item) to the item's value."""


Says = Callable[[str, str, str, Item], tuple[str | None, str | None]]
"""(trial's name, split, objective, item) to the scorer's word for it and what the model wrote."""


def _nothing(_name: str, _split: str, _objective: str, _item: Item) -> tuple[None, None]:
    return None, None


@pytest.fixture
def worker(spec: Spec) -> Worker:
    """One for the test's own ``spec``."""
    return Worker(spec.setup(device="cpu"))


@pytest.fixture
def store(spec: Spec, storage: str) -> Iterator[Store]:
    """With the study of the test's own ``spec``, nothing measured yet."""
    store = Store.open(storage, create=True)
    create_study(store, spec, trials=spec.search.trials, fingerprints={})
    yield store
    store.close()


@pytest.fixture
def known_study(study_file: Callable[..., Path], storage: str) -> Iterator[Callable[..., Store]]:
    """Makes a study of the baselines and of some merges; a split has what ``asked`` says of (name, split)."""
    stores: list[Store] = []

    def make(
        rule: Rule,
        *,
        merges: Mapping[str, Mapping[str, float]] | None = None,
        asked: Callable[[str, str], bool] = lambda _name, _split: True,
        says: Says = _nothing,
        **changes: object,
    ) -> Store:
        path = study_file(**changes)
        for suite in (path.parent / "suites").glob("*.jsonl"):
            _multiply(suite)
        spec = load_spec(path)
        store = Store.open(storage, create=True)
        stores.append(store)
        create_study(store, spec, trials=20, fingerprints={})
        loaded = {plan.name: plan.load() for plan in spec.setup(device="cpu").objectives}
        named = {s.name or "": s.recipe for s in starting_points(spec)}
        named |= {
            name: Recipe(method="linear", weights={c: (w,) for c, w in m.items()}) for name, m in (merges or {}).items()
        }
        optuna_study = store.optuna_study(spec.study, RandomSampler())
        watched = {o.name for o in spec.objectives if o.role == "watch"}
        for number, (name, recipe) in enumerate(named.items()):
            for split in [s for s in SPLITS if asked(name, s)]:
                there = [o[split] for n, o in loaded.items() if split != "search" or n not in watched]
                store.add_measured(spec.study, _measured(number, name, recipe, split, there, rule, says))
            scores = store.measured(spec.study)[number].scores
            attrs = {"recipe": recipe.to_json(), "stderr": [scores[o.name].stderr for o in spec.optimised]}
            if name not in (merges or {}):
                attrs["baseline"] = name
            values = [scores[o.name].mean for o in spec.optimised]
            limits = {k: v for o in spec.optimised for k, v in o.violations(scores[o.name].mean).items()}
            optuna_study.add_trial(
                create_trial(state=TrialState.COMPLETE, values=values, user_attrs=attrs, constraints=limits or None)
            )
        return store

    yield make
    for store in stores:
        store.close()


def _multiply(suite: Path) -> None:
    """Ten times as many items: nothing is shown by twelve."""
    items = [json.loads(line) for line in suite.read_text().splitlines()]
    copies = []
    for turn in range(10):
        for item in items:
            prompt = [m | {"content": f"{m['content']} {turn}"} for m in item["prompt"]]
            copies.append(item | {"id": f"{item['id']}-{turn}", "group": f"{item['group']}-{turn}", "prompt": prompt})
    suite.write_text("".join(json.dumps(item) + "\n" for item in copies))


def _measured(
    number: int, name: str, recipe: Recipe, split: str, objectives: list[Objective], rule: Rule, says: Says
) -> Measured:
    scores, breakdown, marks = {}, {}, {}
    for objective in objectives:
        items = [(suite.key, item) for suite in objective.suites for item in suite.items]
        values = [rule(name, split, objective.name, place, item) for place, (_, item) in enumerate(items)]
        scores[objective.name] = Aggregation(items, objective.across, objective.bounds).score(values)
        breakdown[objective.name] = {
            f"lang:{lang}": Aggregation([(s, i) for s, i in items if i.lang == lang], "mean", objective.bounds).score(
                [v for (_, i), v in zip(items, values, strict=True) if i.lang == lang]
            )
            for lang in sorted({i.lang for _, i in items})
        }
        for suite in objective.suites:
            mine = [(i, v) for (key, i), v in zip(items, values, strict=True) if key == suite.key]
            said = [says(name, split, objective.name, i) for i, _ in mine]
            marks[suite.key] = Marks(
                ids=tuple(i.id for i, _ in mine),
                values=tuple(v for _, v in mine),
                verdicts=tuple(verdict for verdict, _ in said),
                outputs=tuple(output for _, output in said),
            )
    return Measured(
        number=number,
        recipe=recipe,
        split=split,
        scores=scores,
        breakdown=breakdown,
        marks=marks,
        digest=f"{number:064x}",
    )
