from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from optimizer import loop
from optimizer.repeat import differences, measure_repeat, repeat_text
from optimizer.spec import load_spec
from optimizer.study import DriverStudy, create_study
from storage.records import Marks
from storage.store import Store
from workers.pool import LocalPool
from workers.worker import Worker


@pytest.fixture
def worker(study_file: Callable[..., Path]) -> Worker:
    return Worker(load_spec(study_file()).setup(device="cpu"))


@pytest.fixture
def store(study_file: Callable[..., Path], storage: str) -> Iterator[Store]:
    store = Store.open(storage, create=True)
    create_study(store, load_spec(study_file()), trials=3, fingerprints={})
    yield store
    store.close()


def test_on_cpu_a_merge_that_is_measured_twice_differs_in_no_item(store: Store, worker: Worker) -> None:
    pool = LocalPool(lambda: worker)
    loop.search(DriverStudy(store, "tiny"), pool, lambda _: None)
    before = store.measured("tiny")
    measure_repeat(store, "tiny", pool)
    noise = store.notes("tiny")["repeat_noise"]
    items = sum(score.n + score.unscored for score in before[0].scores.values())
    assert noise == {"trial": 0, "items": items, "differ": 0, "largest": 0.0}
    assert repeat_text(store.notes("tiny")).startswith(f"repeat noise: 0 of {items} items differ")
    assert store.measured("tiny") == before
    trials = store.optuna_study("tiny", optuna.samplers.RandomSampler()).get_trials()
    assert len(trials) == 3


def test_it_is_measured_once_a_study(store: Store, worker: Worker) -> None:
    pool = LocalPool(lambda: worker)
    measure_repeat(store, "tiny", pool)
    assert store.notes("tiny") == {}  # nothing to repeat yet
    assert repeat_text({}) == ""
    loop.search(DriverStudy(store, "tiny"), pool, lambda _: None)
    store.note("tiny", "repeat_noise", {"trial": 0, "items": 9, "differ": 2, "largest": 0.5})
    measure_repeat(store, "tiny", pool)
    assert repeat_text(store.notes("tiny")).startswith("repeat noise: 2 of 9 items differ")
    assert repeat_text(store.notes("tiny")).endswith("by at most 0.5")


def test_another_worker_in_the_same_place_gives_the_same_bits(
    store: Store, worker: Worker, study_file: Callable[..., Path]
) -> None:
    study = DriverStudy(store, "tiny")
    (first,) = study.propose()
    once, twice = worker.run(first), Worker(load_spec(study_file()).setup(device="cpu")).run(first)
    assert differences(once, twice)["differ"] == 0


def test_what_differs_is_counted_by_value_and_by_verdict(store: Store, worker: Worker) -> None:
    pool = LocalPool(lambda: worker)
    loop.search(DriverStudy(store, "tiny"), pool, lambda _: None)
    first = store.with_marks("tiny", 0)
    marks = Marks(ids=("a", "b", "c"), values=(1.0, 0.25, None), verdicts=("x", "y", None), outputs=(None,) * 3)
    other = replace(marks, values=(1.0, 0.75, None), verdicts=("z", "y", None))
    one, two = replace(first, marks={"s": marks}), replace(first, marks={"s": other})
    assert differences(one, two) == {"trial": 0, "items": 3, "differ": 2, "largest": 0.5}
