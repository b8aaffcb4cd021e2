"""The driver's books, with a real store, a real worker and every crash between two writes."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from optimizer import api, loop
from optimizer import study as study_module
from optimizer.spec import BASE, BEST_SLIDER, GREEDY_SOUP, MODEL_STOCK, UNIFORM, Spec, load_spec
from optimizer.study import DriverStudy, create_study
from search_spaces.errors import InputError
from search_spaces.recipe import only
from storage.ledger import Ledger
from storage.records import FURTHER, Assignment, Failed, Measured, Outcome
from storage.store import Store
from workers.pool import LocalPool
from workers.worker import Worker

SEARCH = {"trials": 12, "sampler": "random", "seed": 3}


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture
def spec(study_file: Callable[..., Path]) -> Spec:
    return load_spec(study_file(references=[{"name": "other", "model": "models/other"}], search=SEARCH))


def run(store: Store, worker: Worker) -> DriverStudy:
    study = DriverStudy(store, "tiny")
    loop.search(study, LocalPool(lambda: worker), lambda _: None)
    return study


def trials(store: Store) -> list[optuna.trial.FrozenTrial]:
    return store.optuna_study("tiny", optuna.samplers.RandomSampler()).get_trials()


def test_a_study_begins_with_uniform_corners_base_and_references(store: Store, worker: Worker) -> None:
    run(store, worker)
    labels = [t.user_attrs.get("baseline") for t in trials(store)]
    assert labels[:7] == [UNIFORM, "alpha", "beta", "gamma", BASE, "other", MODEL_STOCK]
    assert labels[7:] == [None] * 5
    measured = store.measured("tiny")
    assert measured[1].recipe.digest == only("alpha").digest
    assert measured[4].recipe.digest == only(BASE).digest


def test_the_checkpoints_losses_give_one_more_starting_point(store: Store, worker: Worker) -> None:
    pool = LocalPool(lambda: worker)
    loop.search(DriverStudy(store, "tiny"), pool, lambda _: None, lambda: len(store.measured("tiny")) >= 8)
    run(store, worker)
    measured = store.measured("tiny")
    losses = [
        np.mean([parts["gold_nll"].mean for parts in measured[n].breakdown.values() if "gold_nll" in parts])
        for n in (1, 2, 3)
    ]
    assert len(set(losses)) == 3
    weights = np.exp(-np.array(losses)) / np.exp(-np.array(losses)).sum()
    found = [t.number for t in trials(store) if np.allclose(_weights(t), weights, atol=5e-5)]
    assert found == [7], "right after the starting points that the study file gives, and once"


def _weights(trial: optuna.trial.FrozenTrial) -> list[float]:
    return [w for values in trial.user_attrs["recipe"]["weights"].values() for w in values]


def test_a_study_ends_at_its_planned_number(store: Store, worker: Worker) -> None:
    study = run(store, worker)
    assert study.counts() == (12, 0, 12)
    assert set(store.measured("tiny")) == set(range(12))
    store.set_planned("tiny", 15)
    assert run(store, worker).counts() == (15, 0, 15)


class Expensive:
    """The worker, as if it held a GPU for six minutes a trial."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def run(self, assignment: Assignment) -> Outcome:
        outcome = self._worker.run(assignment)
        assert isinstance(outcome, Measured)
        return replace(outcome, seconds={**outcome.seconds, "gpu": 360.0})


def test_a_budget_of_gpu_hours_ends_a_study_and_more_trials_can_be_bought(
    study_file: Callable[..., Path], storage: str
) -> None:
    search = {"trials": 40, "sampler": "random", "seed": 3, "budget": {"gpu_hours": 0.95}}
    spec = load_spec(study_file(search=search))
    store = Store.open(storage, create=True)
    create_study(store, spec, trials=40, fingerprints={})
    expensive: Any = Expensive(Worker(spec.setup(device="cpu")))
    run(store, expensive)
    labels = [t.user_attrs.get("baseline") for t in trials(store)]
    # A tenth of an hour each, but for merges that were measured before. What runs at the end is still measured.
    measured = {m.recipe.digest for m in store.measured("tiny").values()}
    late = 1 + len({GREEDY_SOUP, BEST_SLIDER} & set(labels))
    assert 10 <= len(measured) <= 10 + late
    assert store.seconds("tiny")["gpu"] == pytest.approx(360.0 * len(measured))
    assert re.fullmatch(r"ended after \d+ trials: 1 of 0.95 GPU hours spent", api.early_end("tiny"))
    run(store, expensive)
    assert len(trials(store)) == len(labels)
    store.set_planned("tiny", len(labels) + 2)
    run(store, expensive)
    assert len(trials(store)) == len(labels) + 2
    store.close()


def test_a_budget_that_is_spent_with_the_last_trial_does_not_end_what_is_bought_later(
    study_file: Callable[..., Path], storage: str
) -> None:
    spec = load_spec(study_file(search={"trials": 6, "sampler": "random", "seed": 3, "budget": {"gpu_hours": 0.6}}))
    store = Store.open(storage, create=True)
    create_study(store, spec, trials=6, fingerprints={})
    expensive: Any = Expensive(Worker(spec.setup(device="cpu")))
    run(store, expensive)
    assert store.seconds("tiny")["gpu"] == pytest.approx(0.6 * 3600)
    store.set_planned("tiny", 20)
    assert run(store, expensive).counts() == (20, 0, 20)
    store.close()


def test_a_study_runs_and_resumes_on_postgresql(spec: Spec, worker: Worker, postgresql_url: str) -> None:
    for trials in (7, 9):
        store = Store.open(postgresql_url, create=True)
        if trials == 7:
            create_study(store, spec, trials=7, fingerprints={})
        store.set_planned("tiny", trials)
        assert run(store, worker).counts() == (trials, 0, trials)
        store.close()


def test_optuna_is_told_finite_floats_with_stderr_and_constraints(store: Store, worker: Worker) -> None:
    run(store, worker)
    for trial in trials(store):
        measured = store.measured("tiny")[trial.number]
        assert trial.state == TrialState.COMPLETE
        assert trial.values == [s.mean for s in measured.scores.values()]
        assert trial.user_attrs["stderr"] == [s.stderr for s in measured.scores.values()]


def test_a_constraint_is_told_by_optunas_own_means(
    study_file: Callable[..., Path], storage: str, tmp_path: Path
) -> None:
    path = study_file()
    path.write_text(path.read_text().replace("- name: safety", "- name: safety\n  at_least: 0.9"))
    spec = load_spec(path)
    store = Store.open(f"sqlite:///{tmp_path}/c.db", create=True)
    create_study(store, spec, trials=5, fingerprints={})
    run(store, Worker(spec.setup(device="cpu")))
    for trial in trials(store):
        (violation,) = (v for k, v in trial.system_attrs.items() if "safety at_least 0.9" in k)
        assert violation == pytest.approx(0.9 - trial.values[0])
    store.close()


def test_a_recipe_that_was_measured_is_not_measured_again(store: Store, worker: Worker) -> None:
    study = DriverStudy(store, "tiny")
    (first,) = study.propose()
    study.record([worker.run(first)])
    study._start.insert(0, study._start[0].__class__(name=None, recipe=first.recipe))
    assert study.propose() == []
    measured = store.measured("tiny")
    assert measured[1].scores == measured[0].scores
    assert trials(store)[1].values == trials(store)[0].values


def test_a_recipe_that_is_out_is_recorded_for_both_trials(store: Store, worker: Worker) -> None:
    study = DriverStudy(store, "tiny")
    (first,) = study.propose()
    study._start.insert(0, study._start[0].__class__(name=None, recipe=first.recipe))
    assert study.propose() == []
    study.record([worker.run(first)])
    assert [t.state for t in trials(store)] == [TrialState.COMPLETE] * 2


def test_scores_that_are_not_finite_fail_the_trial(store: Store, worker: Worker) -> None:
    from dataclasses import replace

    study = DriverStudy(store, "tiny")
    (first,) = study.propose()
    outcome = worker.run(first)
    assert isinstance(outcome, Measured)
    bad = replace(outcome.scores["safety"], mean=float("inf"))
    study.record([replace(outcome, scores=dict(outcome.scores) | {"safety": bad})])
    assert trials(store)[0].state == TrialState.FAIL
    assert store.failures("tiny") == {
        0: ["scores must be finite, but safety is inf with standard error " + f"{bad.stderr}."]
    }
    assert store.measured("tiny") == {}


def test_a_failed_trial_counts_and_the_study_goes_on(store: Store, worker: Worker) -> None:
    class OneFails(LocalPool):
        def finished(self) -> list[Outcome]:
            return [
                Failed(number=o.number, recipe=o.recipe, split=o.split, reason="a reason") if o.number == 2 else o
                for o in super().finished()
            ]

    study = DriverStudy(store, "tiny")
    loop.search(study, OneFails(lambda: worker), lambda _: None)
    assert study.counts() == (11, 1, 12)
    assert store.failures("tiny") == {2: ["a reason"]}


# Every write of the driver, in the order in which a trial makes them. A crash before or after any of them must lose
# nothing and measure nothing twice.
WRITES = [
    (optuna.Study, "ask"),
    (optuna.Study, "enqueue_trial"),
    (optuna.Study, "add_trial"),
    (optuna.trial.Trial, "suggest_float"),
    (optuna.trial.Trial, "set_user_attr"),
    (Store, "add_measured"),
    (optuna.Study, "tell"),
    (Ledger, "_write"),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name"), WRITES, ids=[name for _, name in WRITES])
@pytest.mark.parametrize("nth", [1, 7])
def test_a_crash_at_any_write_loses_nothing(
    store: Store, worker: Worker, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: bool, nth: int
) -> None:
    original = getattr(owner, name)
    calls = 0

    def crash(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth and not after:
            raise Crash
        result = original(*arguments, **options)
        if calls == nth:
            raise Crash
        return result

    asked: list[Assignment] = []

    class Counting(LocalPool):
        def submit(self, assignment: Assignment) -> None:
            asked.append(assignment)
            super().submit(assignment)

    monkeypatch.setattr(owner, name, crash)
    try:
        loop.search(DriverStudy(store, "tiny"), Counting(lambda: worker), lambda _: None)
        assert calls < nth, "the crash must have come"
    except Crash:
        pass
    monkeypatch.undo()
    kept = store.measured("tiny")
    study = DriverStudy(store, "tiny")
    loop.search(study, Counting(lambda: worker), lambda _: None)
    assert study.counts() == (12, 0, 12)
    assert {n: m.scores for n, m in store.measured("tiny").items() if n in kept} == {
        n: m.scores for n, m in kept.items()
    }
    again = [a.number for a in asked if a.number in kept]
    assert len(again) == len(set(again)), "a measured trial was handed out again"
    labels = [t.user_attrs.get("baseline") for t in trials(store) if t.state == TrialState.COMPLETE]
    assert sorted(x for x in labels if x) == sorted([UNIFORM, "alpha", "beta", "gamma", BASE, "other", MODEL_STOCK])


def test_a_changed_search_space_is_refused(store: Store, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    from search_spaces import space

    monkeypatch.setattr(space, "digest_of", lambda _: "0" * 64)
    with pytest.raises(InputError, match="a study keeps its search space for life"):
        DriverStudy(store, "tiny")


def test_nobody_waits_for_a_slow_trial(store: Store, worker: Worker) -> None:
    """Two workers, one of which holds its first trial until the study has nothing else to hand out."""

    class OneSlow:
        def __init__(self) -> None:
            self.held: Assignment | None = None
            self.waiting: list[Assignment] = []
            self.done_while_held = 0
            self.submitted = 0

        @property
        def room(self) -> int:
            return 2 - len(self.waiting) - (self.held is not None)

        def submit(self, assignment: Assignment) -> None:
            self.submitted += 1
            if self.held is None and self.done_while_held == 0:
                self.held = assignment
            else:
                self.waiting.append(assignment)

        def finished(self) -> list[Outcome]:
            if self.waiting:
                self.done_while_held += 1
                return [worker.run(self.waiting.pop(0))]
            assert self.held is not None
            held, self.held = self.held, None
            return [worker.run(held)]

        def close(self) -> None: ...

    pool = OneSlow()
    study = DriverStudy(store, "tiny")
    loop.search(study, pool, lambda _: None)
    assert pool.done_while_held == pool.submitted - 1
    assert study.counts() == (12, 0, 12)


def test_a_resumed_study_proposes_what_an_uninterrupted_one_does(
    study_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Past its random start, where proposals come from the model; paused twice, each time with one drawn ahead."""
    spec = load_spec(study_file(search={"trials": 15, "sampler": "auto", "seed": 3, "evaluation": {"items": 12}}))
    worker = Worker(spec.setup(device="cpu"))

    def recipes(name: str, pauses: list[int]) -> list[dict[str, Any]]:
        store = Store.open(f"sqlite:///{tmp_path}/{name}.db", create=True)
        create_study(store, spec, trials=15, fingerprints={})
        for pause in [*pauses, 99]:
            done: list[Outcome] = []
            loop.search(
                DriverStudy(store, "tiny"),
                LocalPool(lambda: worker),
                done.append,
                lambda done=done, pause=pause: len(done) >= pause,  # type: ignore[misc]
            )
        found = [t.user_attrs["recipe"] for t in trials(store)]
        store.close()
        return found

    through = recipes("through", [])
    assert len(through) == 15
    assert recipes("paused", [9, 3]) == through


class Many:
    """Many workers that all end at once, but for one that ends when there is nothing else to do."""

    def __init__(self, worker: Worker, count: int) -> None:
        self._worker = worker
        self._count = count
        self.out: list[Assignment] = []
        self.asked: list[Assignment] = []

    @property
    def room(self) -> int:
        return self._count - len(self.out)

    def submit(self, assignment: Assignment) -> None:
        assert self.room
        self.out.append(assignment)
        self.asked.append(assignment)

    def finished(self) -> list[Outcome]:
        slow, others = self.out[:1], self.out[1:]
        self.out = slow if others else []
        return [self._worker.run(assignment) for assignment in others or slow]

    def close(self) -> None: ...


@pytest.fixture
def many(study_file: Callable[..., Path], storage: str) -> Iterator[tuple[Store, Many]]:
    spec = load_spec(study_file(search={"trials": 70, "sampler": "auto", "seed": 3}))
    store = Store.open(storage, create=True)
    create_study(store, spec, trials=70, fingerprints={})
    yield store, Many(Worker(spec.setup(device="cpu")), 32)
    store.close()


def test_many_workers_are_fed_from_few_models_and_nobody_waits_for_a_slow_one(
    many: tuple[Store, Many], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, pool = many
    models: list[int] = []
    drawn_together = study_module.drawn_together

    def counting(study: optuna.Study, count: int) -> list[optuna.trial.FrozenTrial]:
        found = drawn_together(study, count)
        models.append(len(found))
        return found

    monkeypatch.setattr(study_module, "drawn_together", counting)
    study = DriverStudy(store, "tiny")
    loop.search(study, pool, lambda _: None)
    assert study.counts() == (70, 0, 70)
    assert len({a.number for a in pool.asked}) == len(pool.asked)
    assert sum(models) >= 20
    assert max(models) == 4  # an eighth of the workers
    assert all(t.state == TrialState.COMPLETE for t in trials(store))
    assert {t.user_attrs.get("baseline") for t in trials(store)} >= {UNIFORM, GREEDY_SOUP, BEST_SLIDER}
    # The first was measured last.
    assert max(trials(store), key=lambda t: t.datetime_complete).number == pool.asked[0].number  # type: ignore[arg-type,return-value]


def test_few_workers_get_proposals_of_a_model_of_their_own(
    many: tuple[Store, Many], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, pool = many
    asked: list[int] = []
    propose = DriverStudy.propose

    def counting(study: DriverStudy, count: int = 1) -> list[Assignment]:
        asked.append(count)
        return propose(study, count)

    monkeypatch.setattr(DriverStudy, "propose", counting)
    store.set_planned("tiny", 24)
    loop.search(DriverStudy(store, "tiny"), Many(pool._worker, 15), lambda _: None)
    assert set(asked) == {1}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name", "nth"), [(Ledger, "_write", 14), (Store, "add_measured", 2)])
def test_a_crash_amid_a_batch_loses_nothing(
    many: tuple[Store, Many], monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, nth: int, after: bool
) -> None:
    store, pool = many
    original, calls = getattr(owner, name), 0

    def crash(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != nth or after:
            original(*arguments, **options)
        if calls == nth:
            raise Crash

    monkeypatch.setattr(owner, name, crash)
    with pytest.raises(Crash):
        loop.search(DriverStudy(store, "tiny"), pool, lambda _: None)
    monkeypatch.undo()
    kept = set(store.measured("tiny"))
    again = Many(pool._worker, 32)
    study = DriverStudy(store, "tiny")
    loop.search(study, again, lambda _: None)
    assert study.counts() == (70, 0, 70)
    assert not kept & {a.number for a in again.asked if a.split == "search"}
    assert len(store.measured("tiny")) + len(store.measured("tiny", FURTHER)) == 70
