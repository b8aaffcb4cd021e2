"""Second looks and early ends: what the sampler foretells, and a driver that acts on it and survives every crash."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from optimizer import api, loop
from optimizer.baselines import starting_points
from optimizer.board import Board
from optimizer.front import posterior, posterior_front
from optimizer.outlook import STOPPED, SecondLooks, end_of, end_text
from optimizer.results import results
from optimizer.samplers import AGAIN, OUTLOOK, make_sampler
from optimizer.spec import BEST_SLIDER, GREEDY_SOUP, Spec, load_spec
from optimizer.study import DriverStudy, create_study
from search_spaces.errors import InputError
from storage.ledger import Ledger
from storage.records import FURTHER, Assignment, Measured, Score
from storage.store import Store
from tests.conftest import Counting
from workers.worker import Worker

ITEMS = 8
SPACE = {f"w.{name}": FloatDistribution(-0.5, 1.0) for name in "abc"}


def foretold(number: int = 30, **look: Any) -> FrozenTrial:
    known = {"gain": 0.01, "noise": 0.02, "worth": 0.01, "again": 7, "worth_again": 0.02} | look
    trial = create_trial(values=[0.0], system_attrs={OUTLOOK: known})
    trial.number = number
    return trial


@pytest.fixture
def spec(study_file: Callable[..., Path]) -> Spec:
    return load_spec(study_file(search={"trials": 10, "sampler": "random", "seed": 3, "evaluation": {"items": ITEMS}}))


def books(store: Store) -> list[FrozenTrial]:
    found = store.optuna_study("tiny", optuna.samplers.RandomSampler()).get_trials()
    return [t for t in found if "recipe" in t.user_attrs]


def searched(truth: Callable[[np.ndarray], np.ndarray], stderr: Callable[[int], float], count: int) -> optuna.Study:
    study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler("auto", seed=0))
    rng = np.random.default_rng(0)
    for number in range(count):
        trial = study.ask(SPACE)
        x = np.maximum(list(trial.params.values()), 0.0)
        w = x / x.sum() if x.sum() > 0 else np.eye(3)[0]
        error = stderr(number)
        trial.set_user_attr("stderr", [error, error])
        study.tell(trial, (truth(w) + error * rng.normal(size=2)).tolist())
    return study


def test_auto_leaves_behind_what_it_foretells_and_gains_shrink() -> None:
    study = searched(lambda w: np.array([np.sqrt(w[0]), np.sqrt(w[1])]), lambda _: 0.01, 24)
    looks = [t.system_attrs[OUTLOOK] for t in study.trials if OUTLOOK in t.system_attrs]
    assert len(looks) == 24 - 7
    assert all(look["gain"] >= 0 and look["noise"] > 0 for look in looks)
    assert np.mean([look["gain"] for look in looks[-5:]]) < np.mean([look["gain"] for look in looks[:5]])
    numbers = {t.number for t in study.trials}
    assert all(look["again"] in numbers for look in looks)


def test_noise_makes_a_second_look_worth_more() -> None:
    def worth(error: float) -> float:
        study = searched(lambda w: np.array([w[0], w[1]]), lambda _: error, 16)
        return float(np.mean([t.system_attrs[OUTLOOK]["worth_again"] for t in study.trials[-5:]]))

    assert worth(0.1) > worth(0.003)


def test_a_second_look_is_due_where_it_promises_more_than_a_new_merge(spec: Spec) -> None:
    looks = SecondLooks(spec)
    assert looks.due(foretold(), [], 60) == 7
    assert looks.due(foretold(worth=0.03), [], 60) is None
    assert looks.due(foretold(again=None), [], 60) is None
    assert looks.due(create_trial(values=[0.0]), [], 60) is None


def test_second_looks_keep_to_their_share_and_look_once(spec: Spec) -> None:
    taken = [create_trial(values=[0.0], user_attrs={AGAIN: n}) for n in (7, 8)]
    looks = SecondLooks(spec)
    assert looks.due(foretold(again=9), taken, 20) == 9
    assert looks.due(foretold(again=9), taken, 19) is None
    assert looks.due(foretold(again=7), taken, 60) is None


@pytest.mark.parametrize("evaluation", [{}, {"items": 1000}, {"items": ITEMS, "remeasure": 0.0}])
def test_without_further_items_or_a_share_there_is_no_second_look(
    study_file: Callable[..., Path], evaluation: dict[str, Any]
) -> None:
    looks = SecondLooks(load_spec(study_file(search={"evaluation": evaluation})))
    assert looks.due(foretold(), [], 60) is None


def test_further_items_are_as_many_and_no_others_move(spec: Spec) -> None:
    plan = spec.setup(device="cpu").objectives[1].suites[0]
    loaded = plan.load()
    first, further = ([i.id for i in loaded[split].items] for split in ("search", FURTHER))
    assert len(first) == len(further) == ITEMS
    assert not set(first) & set(further)
    every = {i.id for i in load_spec_items(spec)}
    assert set(first) | set(further) <= every
    assert not {i.id for s in ("validation", "report") for i in loaded[s].items} & {*first, *further}


def load_spec_items(spec: Spec) -> list[Any]:
    document = spec.document()
    document["search"]["evaluation"]["items"] = None
    plan = Spec.model_validate(document).setup(device="cpu").objectives[1].suites[0]
    return list(plan.load()["search"].items)


class Always(SecondLooks):
    """A second look at the first searched merge, as soon as there is one."""

    def due(self, trial: FrozenTrial, trials: Any, planned: int) -> int | None:
        known = [t for t in trials if AGAIN in t.user_attrs]
        done = [t.number for t in trials if t.state == TrialState.COMPLETE and t.params]
        return done[0] if done and not known and self._items() else None


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimizer.study.SecondLooks", Always)


def run(store: Store, worker: Worker) -> Counting:
    pool = Counting(worker)
    loop.search(DriverStudy(store, "tiny"), pool, lambda _: None)
    return pool


def test_a_live_view_counts_a_second_look_but_puts_it_on_no_front(spec: Spec) -> None:
    score = {name: Score(mean=0.9, stderr=0.1, n=9) for name in ("safety", "general")}
    recipe = starting_points(spec)[0].recipe
    first = Measured(number=0, recipe=recipe, split="search", scores=score, breakdown={}, marks={}, digest="")
    lucky = replace(first, number=1, split=FURTHER, scores={n: replace(s, mean=1.0) for n, s in score.items()})
    board = Board(spec, planned=10, measured=[first], failed=0, workers=list)
    board.add(lucky)
    assert board.measured == 2
    figure = board.figure()
    assert figure is not None
    assert [(p.trial, p.on_front) for p in figure.points] == [(0, True)]


@pytest.mark.usefixtures("always")
def test_a_second_look_asks_further_items_and_is_a_trial_off_the_front(store: Store, worker: Worker) -> None:
    pool = run(store, worker)
    (second,) = [t for t in books(store) if AGAIN in t.user_attrs]
    assert [a.number for a in pool.asked if a.split == FURTHER] == [second.number]
    assert len(books(store)) == 10
    first = next(t for t in books(store) if t.number == second.user_attrs[AGAIN])
    assert second.params == first.params
    there = store.measured("tiny", FURTHER)[second.number]
    assert second.values == [s.mean for s in there.scores.values()]
    assert all(score.n <= ITEMS for score in there.scores.values())
    asked = [
        set(store.with_marks("tiny", n, s).marks["general/0:choice.jsonl"].ids)
        for n, s in ((first.number, "search"), (second.number, FURTHER))
    ]
    assert not asked[0] & asked[1]
    study = store.optuna_study("tiny", optuna.samplers.RandomSampler())
    assert second.number not in posterior_front(study)
    found = results(store, "tiny")
    assert second.number not in {r.trial for r in found.rows}
    assert found.row(first.number).to_json()["further"]["general"]["n"] == there.scores["general"].n


def test_the_model_learns_from_a_second_look() -> None:
    rng = np.random.default_rng(0)
    study = optuna.create_study(directions=["maximize"] * 2)
    for w in rng.dirichlet(np.ones(3), size=12):
        params = dict(zip(SPACE, w.tolist(), strict=True))
        study.add_trial(
            create_trial(params=params, distributions=SPACE, values=w[:2].tolist(), user_attrs={"stderr": [0.1, 0.1]})
        )
    before = posterior(study).trials[3]
    first = study.trials[3]
    study.add_trial(
        create_trial(
            params=first.params,
            distributions=SPACE,
            values=[v - 0.3 for v in first.values],
            user_attrs={"stderr": [0.1, 0.1], AGAIN: 3},
        )
    )
    after = posterior(study).trials[3]
    assert after.mean[0] < before.mean[0]
    assert after.stderr[0] < before.stderr[0]


WRITES = [
    (optuna.Study, "ask"),
    (optuna.Study, "add_trial"),
    (Trial, "set_user_attr"),
    (Store, "add_measured"),
    (optuna.Study, "tell"),
    (Ledger, "_write"),
]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name"), WRITES, ids=[name for _, name in WRITES])
def test_a_crash_around_a_second_look_loses_nothing_and_repeats_nothing(
    store: Store, worker: Worker, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool
) -> None:
    class Crash(BaseException):
        pass

    original = getattr(owner, name)
    # The second look follows the first merge of the sampler, which comes after the base and Model Stock.
    nth = {"ask": 5, "add_trial": 3, "set_user_attr": 11, "add_measured": 7, "tell": 7, "_write": 14}[name]
    calls = 0

    def crash(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        result = None if calls == nth and not after else original(*arguments, **options)
        if calls == nth:
            raise Crash
        return result

    monkeypatch.setattr(owner, name, crash)
    asked: list[Assignment] = []
    pool = Counting(worker)
    with pytest.raises(Crash):
        loop.search(DriverStudy(store, "tiny"), pool, lambda _: None)
    asked += pool.asked
    monkeypatch.setattr(owner, name, original)
    kept = set(store.measured("tiny")) | set(store.measured("tiny", FURTHER))
    asked += run(store, worker).asked
    again = [a.number for a in asked if a.number in kept]
    assert len(again) == len(set(again)), "a measured trial was handed out again"
    assert len(books(store)) == 10
    assert all(t.state == TrialState.COMPLETE for t in books(store))
    assert len([t for t in books(store) if AGAIN in t.user_attrs]) == 1
    assert len(store.measured("tiny", FURTHER)) == 1


def test_a_search_ends_when_its_gains_drown_in_noise() -> None:
    small = [foretold(gain=0.001)] * 5
    assert end_of(small, 30) is None
    end = end_of(small, 10)
    assert end is not None
    assert end.gain == pytest.approx(0.01)
    assert end_of([foretold(gain=0.5), *small[:4]], 10) is None
    assert end_of(small[:4], 10) is None
    assert end_of([create_trial(values=[0.0])] * 9, 10) is None
    assert end_text({STOPPED: end.to_json()}).startswith("stopped early after 5 trials: 10 more promised 1.0% of")
    assert end_text({}) == ""


@pytest.mark.parametrize("looks", [5, 1])
def test_an_early_end_is_noted_and_more_trials_can_be_bought(
    study_file: Callable[..., Path], storage: str, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    """However early: also one with fewer than ten trials beside its starting points is held against handmade merges."""
    monkeypatch.setattr("optimizer.outlook._LOOKS", looks)
    spec = load_spec(study_file(search={"trials": 40, "sampler": "auto", "seed": 3, "stop": 1}))
    store = Store.open(storage, create=True)
    create_study(store, spec, trials=40, fingerprints={})
    worker = Worker(spec.setup(device="cpu"))
    run(store, worker)
    ended = books(store)
    assert len(ended) < (40 if looks == 5 else 16)
    assert {t.user_attrs.get("baseline") for t in ended} >= {GREEDY_SOUP, BEST_SLIDER}
    assert store.study("tiny").planned == len(ended)
    assert api.early_end("tiny").startswith("stopped early after")
    assert run(store, worker).asked == []
    store.set_planned("tiny", len(ended) + 2)
    run(store, worker)
    assert len(books(store)) == len(ended) + 2
    store.close()


def test_stopping_needs_a_sampler_that_foretells(study_file: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="stop needs the sampler auto, which foretells gains, but the sampler is tpe"):
        load_spec(study_file(search={"sampler": "tpe", "stop": 10}))
