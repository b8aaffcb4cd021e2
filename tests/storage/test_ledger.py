"""The driver's record of trials against Optuna's own storage on the same database."""

from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from storage.errors import StoreError
from storage.ledger import Ledger
from storage.store import Store, StudyRecord
from storage.tables import now

SPACE = {"w.a": FloatDistribution(-0.5, 1.0), "w.b": FloatDistribution(-0.5, 1.0)}


@pytest.fixture
def ledger(store: Store) -> Ledger:
    record = StudyRecord(
        name="one",
        spec={},
        spec_digest="",
        space_digest="",
        planned=9,
        fingerprints={},
        versions={},
        created=now(),
    )
    store.create(record, directions=["maximize", "maximize"], objectives=["x", "y"])
    return store.ledger("one")


def in_database(store: Store) -> list[FrozenTrial]:
    """As anybody else reads it."""
    return store.optuna_study("one", RandomSampler(seed=0)).get_trials()


def running(**attributes: Any) -> FrozenTrial:
    params = {"w.a": 0.25, "w.b": -0.125}
    return create_trial(state=TrialState.RUNNING, params=params, distributions=SPACE, user_attrs=attributes)


def test_others_read_what_the_driver_wrote(store: Store, ledger: Ledger) -> None:
    study = ledger.study(RandomSampler(seed=0))
    study.enqueue_trial({"w.a": 0.5, "w.b": 0.0}, user_attrs={"baseline": "uniform"})
    first = study.ask(dict(SPACE))
    first.set_user_attr("stderr", [0.1, 0.2])
    first.set_constraint("safe", -0.25)
    study.tell(first, [0.5, 0.75])
    study.add_trial(running(recipe={"method": "linear", "weights": [1.0, 2.5]}))
    study.ask()
    study.tell(study.ask(), state=TrialState.FAIL)
    found = in_database(store)
    assert found == ledger.get_all_trials(0)
    assert [t.state for t in found] == [
        TrialState.COMPLETE,
        TrialState.RUNNING,
        TrialState.RUNNING,
        TrialState.FAIL,
    ]
    assert found[0].values == [0.5, 0.75]
    assert found[0].constraints == {"safe": -0.25}
    assert found[1].params == {"w.a": 0.25, "w.b": -0.125}
    assert found == store.ledger("one").get_all_trials(0)


def test_what_is_written_together_is_there_whole_or_not_at_all(store: Store, ledger: Ledger) -> None:
    study = ledger.study(RandomSampler(seed=0))
    study.add_trial(running())
    before = in_database(store)

    def write(problem: bool) -> None:
        with ledger.together():
            study.add_trial(running())
            study.tell(study.ask(dict(SPACE)), [0.0, 1.0])
            study.tell(0, [1.0, 1.0])
            assert in_database(store) == before
            if problem:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        write(problem=True)
    assert in_database(store) == before == ledger.get_all_trials(0)
    write(problem=False)
    assert [t.state.name for t in in_database(store)] == ["COMPLETE", "RUNNING", "COMPLETE"]
    assert in_database(store) == ledger.get_all_trials(0)


def test_a_trial_that_was_made_together_with_others_can_be_told_later(store: Store, ledger: Ledger) -> None:
    study = ledger.study(RandomSampler(seed=0))
    with ledger.together():
        asked = [study.ask(dict(SPACE)) for _ in range(3)]
    for trial in asked:
        trial.set_user_attr("stderr", [0.1, 0.1])
        study.tell(trial, [float(trial.number), 0.0])
    assert [t.values for t in in_database(store)] == [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]


def test_an_attribute_that_is_set_again_is_replaced(store: Store, ledger: Ledger) -> None:
    trial = ledger.study(RandomSampler(seed=0)).ask()
    trial.set_user_attr("stderr", [0.1])
    trial.set_user_attr("stderr", [0.2])
    assert in_database(store)[0].user_attrs == {"stderr": [0.2]}


def test_a_finished_trial_stays_as_it_is(store: Store, ledger: Ledger) -> None:
    study = ledger.study(RandomSampler(seed=0))
    trial = study.ask()
    study.tell(trial, [0.0, 1.0])
    before = in_database(store)
    with pytest.raises(UpdateFinishedTrialError):
        trial.set_user_attr("stderr", [0.1])
    assert in_database(store) == before == ledger.get_all_trials(0)


def test_whoever_finds_another_drivers_trials_writes_nothing(store: Store, ledger: Ledger) -> None:
    store.ledger("one").study(RandomSampler(seed=0)).ask()
    study = ledger.study(RandomSampler(seed=0))
    with pytest.raises(StoreError, match=r"one driver at a time, but of one, which has 0 trials, somebody .* made 1\."):
        study.ask()
    assert len(in_database(store)) == 1
    ledger.reload()
    study.ask()
    assert [t.number for t in in_database(store)] == [0, 1]


def test_a_study_that_was_deleted_takes_no_trials(store: Store, ledger: Ledger) -> None:
    store.delete("one")
    with pytest.raises(StoreError, match="must be in the database, but one is not any more"):
        ledger.create_new_trial(0)


def test_it_is_an_optuna_storage_like_any_other(ledger: Ledger) -> None:
    study = ledger.study(optuna.samplers.TPESampler(seed=0))
    study.optimize(lambda t: (t.suggest_float("x", 0, 1), t.suggest_float("y", 0, 1)), n_trials=12)
    assert len(study.best_trials) > 0
    assert [t.number for t in study.trials] == list(range(12))
