"""A study that races, with a real store and a real worker."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from optimizer import api, loop
from optimizer.front import posterior
from optimizer.results import Results, results
from optimizer.rivals import Rivals
from optimizer.spec import Spec, load_spec
from optimizer.study import DriverStudy, create_study
from search_spaces.errors import InputError
from storage.records import Assignment, Outcome
from storage.store import Store
from workers.pool import LocalPool
from workers.worker import Worker

SUITE = "nll/0:choice.jsonl"
OBJECTIVE = {"name": "nll", "suites": [{"path": "suites/choice.jsonl", "scorer": "gold_nll"}]}
SEARCH = {"trials": 20, "sampler": "random", "seed": 3, "evaluation": {"racing": True}}


class Watched(LocalPool):
    """Keeps what it is handed."""

    def __init__(self, make: Callable[[], Worker]) -> None:
        super().__init__(make)
        self.handed: dict[int, Assignment] = {}

    def submit(self, assignment: Assignment) -> None:
        self.handed[assignment.number] = assignment
        super().submit(assignment)


@pytest.fixture
def spec(study_file: Callable[..., Path], tmp_path: Path) -> Spec:
    """One objective, so that one trial leads and most others are surely behind it."""
    file = study_file(objectives=[OBJECTIVE], search=SEARCH)
    lines = [
        {"id": f"{i}", "prompt": f"w{i // 40} w{i % 40}", "lang": "aa", "choices": ["w1", "w2 w3"], "gold": i % 2}
        for i in range(400)
    ]
    (tmp_path / "suites" / "choice.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return load_spec(file)


@pytest.fixture
def store(spec: Spec, storage: str) -> Iterator[Store]:
    store = Store.open(storage, create=True)
    create_study(store, spec, trials=spec.search.trials, fingerprints={})
    yield store
    store.close()


@pytest.fixture
def pool(spec: Spec) -> Watched:
    return Watched(lambda: Worker(spec.setup(device="cpu")))


def race(store: Store, pool: Watched, seen: Callable[[Outcome], None] = lambda _: None) -> Results:
    loop.search(DriverStudy(store, "tiny"), pool, seen)
    return results(store, "tiny")


def books(store: Store) -> list[FrozenTrial]:
    return store.optuna_study("tiny", optuna.samplers.RandomSampler()).get_trials()


def test_a_stopped_trial_is_told_with_what_it_measured(store: Store, pool: Watched) -> None:
    race(store, pool)
    measured = store.measured("tiny")
    stopped = [t for t in books(store) if "stopped" in t.user_attrs]
    assert stopped
    for trial in stopped:
        score = measured[trial.number].scores["nll"]
        assert trial.state == TrialState.COMPLETE
        assert trial.values == [score.mean]
        assert trial.user_attrs["stderr"] == [score.stderr]
        assert trial.user_attrs["stopped"] == measured[trial.number].stopped
        assert score.n == len(store.with_marks("tiny", trial.number).marks[SUITE].ids)
        assert measured[trial.number].stopped.endswith(f"after {score.n} of {len(pool_items(store))} items")


def pool_items(store: Store) -> tuple[str, ...]:
    """Ids of all items of the search split, as the uniform merge answered them."""
    return store.with_marks("tiny", 0).marks[SUITE].ids


def test_baselines_answer_everything_and_no_stopped_trial_is_on_the_front(store: Store, pool: Watched) -> None:
    found = race(store, pool)
    assert all(row.stopped == "" for row in found.baselines)
    # A greedy soup that is one checkpoint alone was measured already.
    handed = [pool.handed[row.trial] for row in found.baselines if row.trial in pool.handed]
    assert len(handed) >= 6
    assert all(assignment.rivals is None for assignment in handed)
    assert any(row.stopped for row in found.rows)
    assert all(row.stopped == "" for row in found.front)
    stopped = next(row for row in found.rows if row.stopped)
    assert stopped.to_json()["stopped"] == stopped.stopped


def test_rivals_are_the_front_with_the_values_of_its_items(store: Store, pool: Watched) -> None:
    race(store, pool)
    raced = [a for a in pool.handed.values() if a.rivals]
    assert raced
    for assignment in raced:
        for rival in assignment.rivals or ():
            assert rival.number < assignment.number
            assert rival.values[SUITE] == store.with_marks("tiny", rival.number).marks[SUITE].values
            assert len(rival.values[SUITE]) == len(pool_items(store))


def test_a_study_that_goes_on_races_against_what_it_had_found(store: Store, pool: Watched) -> None:
    """Stopped half-way and opened again: the front comes from the database, and a baseline is still no racer."""

    def stop(outcome: Outcome) -> None:
        if outcome.number == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        race(store, pool, stop)
    front = posterior(store.optuna_study("tiny", optuna.samplers.RandomSampler())).front
    again = Rivals(store, "tiny", store.optuna_study("tiny", optuna.samplers.RandomSampler()))
    assert again.against(0) is None
    assert [rival.number for rival in again.against(12) or ()] == list(front)
    race(store, pool)
    assert len(store.measured("tiny")) == SEARCH["trials"]


def test_without_racing_nothing_is_stopped(study_file: Callable[..., Path], storage: str) -> None:
    plain = load_spec(study_file(objectives=[OBJECTIVE], search=SEARCH | {"trials": 8, "evaluation": {}}))
    store = Store.open(storage, create=True)
    create_study(store, plain, trials=8, fingerprints={})
    found = race(store, Watched(lambda: Worker(plain.setup(device="cpu"))))
    store.close()
    assert [row.stopped for row in found.rows] == [""] * 8


def test_a_stopped_trial_is_never_picked(store: Store, pool: Watched) -> None:
    """Not even where its few items make it look best."""
    found = race(store, pool)
    whole = {row.trial for row in found.merges if not row.stopped}
    assert api.choose(store, "tiny", found, "min nll") in whole
    assert api.choose(store, "tiny", found, "max nll") in whole


@pytest.mark.parametrize("trials", [4, 20], ids=["raw means", "the model"])
def test_the_best_trial_is_not_on_the_front_if_it_was_stopped(trials: int) -> None:
    study = optuna.create_study(directions=["maximize", "maximize"])
    range_ = optuna.distributions.FloatDistribution(-0.5, 1.0)
    for i in range(trials):
        x = i / trials
        attrs = {"stderr": [0.01, 0.01]} | ({"stopped": "dominated by trial 0 after 9 of 90 items"} if i == 1 else {})
        best = 2.0 if i == 1 else 0.0
        study.add_trial(
            optuna.create_trial(
                values=[x + best, 1 - x + best],
                params={"w.a": x, "w.b": 1 - x},
                distributions={"w.a": range_, "w.b": range_},
                user_attrs=attrs,
            )
        )
    found = posterior(study)
    assert (found.fallback is not None) == (trials < 8)
    assert found.front
    assert 1 not in found.front
    assert found.trials[1].on_front == 0.0


@pytest.mark.parametrize("confidence", [0.4, 1.0])
def test_a_confidence_that_is_none_is_refused(confidence: float, study_file: Callable[..., Path]) -> None:
    evaluation = {"racing": True, "confidence": confidence}
    with pytest.raises(InputError, match="confidence"):
        load_spec(study_file(search={"trials": 8, "evaluation": evaluation}))
