"""How studies stand, from what the database holds."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optimizer import loop
from optimizer.driver import holding
from optimizer.spec import Spec, load_spec
from optimizer.states import Status, status, statuses
from optimizer.study import DriverStudy, create_study
from search_spaces.errors import InputError
from storage.jobs import PAUSED
from storage.lease import Holder
from storage.records import Failed, Outcome
from storage.store import Store
from workers.pool import LocalPool
from workers.worker import Worker


@pytest.fixture
def spec(study_file: Callable[..., Path]) -> Spec:
    return load_spec(study_file())


@pytest.fixture
def store(spec: Spec, storage: str) -> Iterator[Store]:
    store = Store.open(storage, create=True)
    yield store
    store.close()


def state(store: Store) -> str:
    return status(store, "tiny").state


def test_a_study_that_is_asked_for_is_queued_then_running_then_what_its_job_says(store: Store) -> None:
    job = store.jobs.add("tiny", "launch", {"trials": 5}, "me")
    assert state(store) == "queued"
    store.jobs.claim(job.key, Holder.me())
    store.jobs.report(job.key, "fingerprints", 1, 3)
    found = status(store, "tiny")
    assert (found.state, found.begun, found.planned) == ("running", False, 5)
    assert found.progress == {"stage": "fingerprints", "done": 1, "total": 3}
    store.jobs.end(job.key, 2, "the disk must have room")
    found = status(store, "tiny")
    assert (found.state, found.reason) == ("failed", "the disk must have room")


def test_a_study_of_the_command_line_is_paused_running_and_done(store: Store, spec: Spec) -> None:
    create_study(store, spec, trials=8, fingerprints={})
    assert state(store) == "paused"
    worker = Worker(spec.setup(device="cpu"))
    with holding(store, "tiny"):
        assert state(store) == "running"
        loop.search(DriverStudy(store, "tiny"), LocalPool(lambda: worker), lambda _: None)
    assert state(store) == "done"
    store.set_planned("tiny", 10)
    assert state(store) == "paused"


def test_a_driver_that_could_not_go_on_leaves_its_reason(store: Store, spec: Spec) -> None:
    create_study(store, spec, trials=8, fingerprints={})
    with pytest.raises(OSError, match="the cable"), holding(store, "tiny"):
        raise OSError("the cable is out\nand more")
    assert (state(store), status(store, "tiny").reason) == ("failed", "the cable is out")
    with pytest.raises(KeyboardInterrupt), holding(store, "tiny"):
        raise KeyboardInterrupt
    assert state(store) == "paused"


def test_a_study_of_which_nothing_could_be_measured_has_failed(store: Store, spec: Spec) -> None:
    class Fails(LocalPool):
        def finished(self) -> list[Outcome]:
            return [
                Failed(number=o.number, recipe=o.recipe, split=o.split, reason="a reason") for o in super().finished()
            ]

    create_study(store, spec, trials=6, fingerprints={})
    worker = Worker(spec.setup(device="cpu"))
    loop.search(DriverStudy(store, "tiny"), Fails(lambda: worker), lambda _: None)
    assert (state(store), status(store, "tiny").reason) == ("failed", "no trial could be measured")


def test_the_last_word_on_a_failure_counts(store: Store, spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that was refused before it drove, and then somebody who drove and paused."""
    create_study(store, spec, trials=8, fingerprints={})
    with pytest.raises(OSError, match="out"), holding(store, "tiny"):
        raise OSError("out")
    job = store.jobs.add("tiny", "resume", {"trials": 0}, "me")
    store.jobs.claim(job.key, Holder.me())
    store.jobs.end(job.key, 2, "a checkpoint has changed")
    assert status(store, "tiny").reason == "a checkpoint has changed"
    monkeypatch.setattr("storage.store.now", lambda: "2999-01-01T00:00:00+00:00")
    with holding(store, "tiny"):
        pass
    assert state(store) == "paused"
    job = store.jobs.add("tiny", "resume", {"trials": 0}, "me")
    assert state(store) == "queued"
    store.jobs.end(job.key, PAUSED, "")
    assert state(store) == "paused"


def test_an_unknown_study_is_told_with_those_there_are(store: Store, spec: Spec) -> None:
    create_study(store, spec, trials=8, fingerprints={})
    store.jobs.add("next", "launch", {"trials": 5}, "me")
    store.jobs.add("tiny", "export", {"trial": 1, "out": "x"}, "me")
    assert [(s.name, s.state) for s in statuses(store)] == [("tiny", "paused"), ("next", "queued")]
    assert all(isinstance(s, Status) for s in statuses(store))
    with pytest.raises(InputError, match=r"there is no 'other' \(studies: tiny, next\)"):
        status(store, "other")
