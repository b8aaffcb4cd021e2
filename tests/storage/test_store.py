"""The contract of the study store; every backend passes the same tests."""

import gzip
import os
import platform
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import optuna
import psutil
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from search_spaces.errors import InputError
from storage import database
from storage.errors import LeaseError, StoreError
from storage.events import Position
from storage.lease import Holder
from storage.records import Failed, Marks, Measured, Recipe, Score
from storage.store import Store, StudyRecord

RECORD = StudyRecord(
    name="one",
    spec={"study": "one", "text": "ä ✓"},
    spec_digest="d" * 64,
    space_digest="s" * 64,
    planned=12,
    fingerprints={"base": "f" * 32, "a": "e" * 32},
    versions={"torch": "2.13.0"},
    created="2026-01-01T00:00:00+00:00",
)
MEASURED = Measured(
    number=0,
    recipe=Recipe(method="linear", weights={"a": (0.1,), "b": (0.9,)}),
    split="search",
    scores={"safety": Score(mean=0.1 + 0.2, stderr=1 / 3, n=7, unscored=1)},
    breakdown={"safety": {"lang:en": Score(mean=0.5, stderr=0.1, n=7)}},
    marks={
        "safety/0:x.jsonl": Marks(ids=("1", "2"), values=(1.0, None), verdicts=("refused", None), outputs=("nö", None))
    },
    digest="a" * 64,
    seconds={"merge": 0.5},
    worker="here:1",
)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    return str(request.getfixturevalue("postgresql_url"))


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store.open(url, create=True)
    store.create(RECORD, directions=["maximize", "minimize"], objectives=["safety", "loss"])
    yield store
    store.close()


def test_a_study_comes_back_as_it_was_written(store: Store) -> None:
    assert store.study("one") == RECORD


def test_a_name_is_taken_once_and_the_second_changes_nothing(store: Store) -> None:
    with pytest.raises(StoreError, match="must be unique in a database, but there is a study 'one'"):
        store.create(replace(RECORD, planned=99), directions=["maximize"], objectives=["x"])
    assert store.study("one") == RECORD


def test_an_unknown_study_is_an_error_that_lists_those_there_are(store: Store) -> None:
    with pytest.raises(StoreError, match=r"there is no 'two' \(studies: one\)"):
        store.study("two")


def test_optuna_sees_directions_and_names_of_objectives(store: Store) -> None:
    study = store.optuna_study("one", optuna.samplers.RandomSampler())
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["safety", "loss"]


def test_a_measurement_comes_back_to_the_last_bit(store: Store) -> None:
    store.add_measured("one", MEASURED)
    assert store.with_marks("one", 0) == MEASURED
    assert store.measured("one") == {0: replace(MEASURED, marks={})}


def test_a_measurement_is_written_once(store: Store) -> None:
    store.add_measured("one", MEASURED)
    store.add_measured("one", replace(MEASURED, digest="b" * 64))
    assert store.with_marks("one", 0) == MEASURED


def test_splits_are_kept_apart(store: Store) -> None:
    report = replace(MEASURED, split="report", digest="c" * 64)
    store.add_measured("one", MEASURED)
    store.add_measured("one", report)
    assert store.with_marks("one", 0, "report") == report
    assert store.measured("one", "validation") == {}


def test_a_recipe_that_was_measured_is_found_by_its_digest(store: Store) -> None:
    store.add_measured("one", MEASURED)
    assert store.find("one", MEASURED.recipe.digest) == MEASURED
    assert store.find("one", MEASURED.recipe.digest, "report") is None
    assert store.find("one", "0" * 64) is None


def test_failures_keep_their_reasons_in_order(store: Store) -> None:
    for reason in ("first", "second"):
        store.add_failed("one", Failed(number=3, recipe=MEASURED.recipe, split="search", reason=reason))
    assert store.failures("one") == {3: ["first", "second"]}


def test_of_the_exports_to_one_directory_the_last_counts(store: Store) -> None:
    for trial, path in ((1, "/a"), (2, "/b"), (3, "/a")):
        store.add_export("one", trial, path, f"{trial}" * 64)
    assert [(e.trial, e.path, e.digest) for e in store.exports("one")] == [(2, "/b", "2" * 64), (3, "/a", "3" * 64)]


def test_what_was_written_is_there_after_opening_again(store: Store, url: str) -> None:
    store.add_measured("one", MEASURED)
    store.set_planned("one", 40)
    again = Store.open(url)
    assert again.with_marks("one", 0) == MEASURED
    assert again.study("one").planned == 40
    again.close()


def test_the_list_counts_trials_by_state(store: Store) -> None:
    study = store.optuna_study("one", optuna.samplers.RandomSampler(seed=0))
    for state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL, None):
        trial = study.ask()
        trial.set_user_attr("recipe", {})
        if state is not None:
            study.tell(trial, [0.0, 0.0] if state == optuna.trial.TrialState.COMPLETE else None, state=state)
    study.ask()  # a proposal that was cut off counts for nothing
    (summary,) = store.studies()
    assert (summary.measured, summary.failed, summary.running, summary.planned) == (1, 1, 1, 12)


def test_the_models_and_the_migrations_agree(url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from storage.tables import Base

    Store.open(url, create=True).close()
    engine = database.make_engine(database.parse_url(url))
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table": database.VERSION_TABLE,
                "include_name": lambda n, t, _: t != "table" or n in Base.metadata.tables,
            },
        )
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_sqlite_runs_in_wal_so_that_readers_never_wait(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/x.db", create=True)
    with sqlite3.connect(tmp_path / "x.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    store.close()


def test_a_missing_database_is_not_made_by_reading(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="must exist, but there is no file"):
        Store.open(f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()


def test_a_database_that_was_cut_off_as_it_was_made_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CutOff(Exception):  # noqa: N818 (it stands for a kill)
        pass

    def half(config: Config, _revision: str) -> None:
        upgrade(config, "+1")
        raise CutOff

    upgrade = command.upgrade
    monkeypatch.setattr(command, "upgrade", half)
    with pytest.raises(CutOff):
        Store.open(f"sqlite:///{tmp_path}/new.db", create=True)
    monkeypatch.undo()
    Store.open(f"sqlite:///{tmp_path}/new.db", create=True).close()


def test_a_database_that_is_not_ours_is_refused_and_left_alone(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "other.db")
    connection.execute("CREATE TABLE invoices (id INTEGER)")
    connection.close()
    for create in (False, True):
        with pytest.raises(StoreError, match="must be one that mergefront wrote, but .* holds invoices"):
            Store.open(f"sqlite:///{tmp_path}/other.db", create=create)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("not a database at all, but long enough to be read as one " * 9)
    with pytest.raises(StoreError, match="file is not a database"):
        Store.open(f"sqlite:///{tmp_path}/notes.db")


def test_a_database_from_a_newer_version_is_refused(tmp_path: Path) -> None:
    Store.open(f"sqlite:///{tmp_path}/new.db", create=True).close()
    connection = sqlite3.connect(tmp_path / "new.db")
    connection.execute("UPDATE mergefront_alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="must not be newer than this version of mergefront, but .* is at schema 9999"):
        Store.open(f"sqlite:///{tmp_path}/new.db")


@pytest.mark.parametrize("url", ["nonsense", "mysql://u:secret@h/db"])
def test_other_urls_are_refused_without_their_password(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        Store.open(url)
    assert "secret" not in str(caught.value)


def test_a_database_out_of_reach_is_named_without_its_password() -> None:
    with pytest.raises(StoreError, match="must open, but") as caught:
        Store.open("postgresql://user:secret@127.0.0.1:1/none")
    assert "secret" not in str(caught.value)


ELSEWHERE = Holder(host="elsewhere/1", pid=1, started=1.0)


def test_a_study_has_one_driver_at_a_time(store: Store, url: str) -> None:
    store.hold("one", Holder.me())
    other = Store.open(url)
    with pytest.raises(
        StoreError, match=rf"one driver at a time, but one is driven by process .*:{os.getpid()}; should"
    ):
        other.hold("one", Holder.me())
    assert other.studies()[0].driver == f"{platform.node()}:{os.getpid()}"
    store.release("one")
    assert other.studies()[0].driver is None
    other.hold("one", ELSEWHERE)
    other.close()


def test_a_dead_driver_of_this_machine_loses_its_study_at_once(store: Store, url: str) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    dead = replace(Holder.me(), pid=ended.pid, started=psutil.Process(ended.pid).create_time(), token="x" * 32)
    ended.wait()
    store.hold("one", dead)
    assert store.studies()[0].driver is None
    other = Store.open(url)
    other.hold("one", Holder.me())
    other.close()


def test_a_driver_elsewhere_that_is_not_heard_of_loses_its_study(store: Store, url: str) -> None:
    store.hold("one", ELSEWHERE)
    other = Store.open(url)
    with pytest.raises(StoreError, match="driven by process elsewhere:1"):
        other.hold("one", Holder.me())
    with store._engine.begin() as connection:
        connection.execute(sa.text("UPDATE mergefront_study SET held_until = held_until - 61"))
    other.hold("one", Holder.me())
    assert not store.renew("one")
    assert other.renew("one")
    other.close()


@pytest.mark.parametrize("hours", [-24, 24])
def test_a_driver_whose_clock_differs_takes_no_study_from_another(
    hours: int, store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holds run on the database's clock."""
    true = time.time
    store.hold("one", ELSEWHERE)
    monkeypatch.setattr(time, "time", lambda: true() + hours * 3600)
    other = Store.open(url)
    with pytest.raises(StoreError, match="driven by process elsewhere:1"):
        other.hold("one", Holder.me())
    assert store.renew("one"), "the one that holds it still does"
    store.release("one")
    other.hold("one", Holder.me())
    monkeypatch.setattr(time, "time", true)
    assert other.renew("one")
    other.close()


def test_who_has_lost_a_study_writes_no_trial_any_more(store: Store, url: str) -> None:
    store.hold("one", replace(ELSEWHERE, token="a" * 32))
    with store._engine.begin() as connection:
        connection.execute(sa.text("UPDATE mergefront_study SET held_until = 0"))
    other = Store.open(url)
    other.hold("one", Holder.me())
    with pytest.raises(LeaseError, match="one was taken over by"):
        store.add_measured("one", MEASURED)
    with pytest.raises(LeaseError, match="one was taken over by"):
        store.add_failed("one", Failed(number=1, recipe=MEASURED.recipe, split="search", reason="x"))
    assert store.measured("one") == {}
    other.add_measured("one", MEASURED)
    other.close()


def test_of_many_drivers_that_ask_at_once_one_gets_the_study(store: Store, url: str) -> None:
    def ask(number: int) -> bool:
        own = Store.open(url)
        try:
            barrier.wait()
            own.hold("one", Holder(host="elsewhere/1", pid=number, started=1.0))
        except StoreError:
            return False
        finally:
            own.close()
        return True

    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(8))) == 1


def test_verdicts_notes_and_report_sets_come_back(store: Store) -> None:
    store.add_measured("one", replace(MEASURED, verdicts={"k" * 64: {"grade": 3}}, stopped="after 12 of 48 items"))
    store.add_measured("one", replace(MEASURED, number=1, verdicts={"k" * 64: {"grade": 3}}))
    assert store.verdicts() == {"k" * 64: {"grade": 3}}
    assert [m.stopped for m in store.measured("one").values()] == ["after 12 of 48 items", ""]
    store.note("one", "noise", {"differ": 0})
    store.note("one", "more", [1])
    assert store.notes("one") == {"noise": {"differ": 0}, "more": [1]}
    store.add_report_use("one", "d" * 64)
    store.add_report_use("one", "d" * 64)
    assert [text.split(" at ")[0] for text in store.report_uses("d" * 64)] == ["one"]
    assert store.report_uses("e" * 64) == []


def test_a_database_of_the_first_version_opens_with_all_that_it_holds(tmp_path: Path) -> None:
    packed = Path(__file__).parent / "databases" / "0.1.0.db.gz"
    (tmp_path / "old.db").write_bytes(gzip.decompress(packed.read_bytes()))
    store = Store.open(f"sqlite:///{tmp_path}/old.db")
    assert (store.study("tiny").planned, len(store.measured("tiny")), len(store.measured("tiny", "validation"))) == (
        12,
        9,
        1,
    )
    assert store.with_marks("tiny", 0).marks
    assert store.failures("tiny") == {3: ["its worker died 1 times"]}
    store.hold("tiny", Holder.me())
    assert (store.studies()[0].measured, store.studies()[0].running) == (9, 1)
    store.close()


def failed(number: int) -> Failed:
    return Failed(number=number, recipe=MEASURED.recipe, split="search", reason="a reason", worker="here:1")


def test_events_come_once_in_order_and_from_wherever_a_listener_is(store: Store) -> None:
    assert store.events("one", Position()) == []
    for number in range(4):
        store.add_measured("one", replace(MEASURED, number=number))
        store.add_failed("one", failed(number + 10))
    everything = store.events("one", Position())
    assert len(everything) == 8
    assert [e.data["trial"] for e in everything if e.name == "measured"] == [0, 1, 2, 3]
    assert [e.data["trial"] for e in everything if e.name == "failed"] == [10, 11, 12, 13]
    for place, event in enumerate(everything):
        rest = store.events("one", Position.parse(str(event.position)))
        assert [(e.name, e.data["trial"]) for e in rest] == [(e.name, e.data["trial"]) for e in everything[place + 1 :]]
    in_threes: list[object] = []
    position = Position()
    while found := store.events("one", position, 3):
        in_threes += found
        position = found[-1].position
    assert in_threes == everything
    assert store.position("one") == everything[-1].position
    assert store.events("other", Position()) == []


@pytest.mark.parametrize("text", ["", "1.2", "a.b.c", "x.1.-2", "x.1.2.3", "x.1.1e9", "; DROP.1.2"])
def test_a_position_that_was_not_sent_from_here_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="Last-Event-ID must be one that was sent here"):
        Position.parse(text)


def test_a_deleted_study_is_gone_and_its_name_is_free(store: Store) -> None:
    """Also for a listener of the old one: what it was told last says nothing of the new one."""
    store.optuna_study("one", optuna.samplers.RandomSampler()).ask()
    store.add_measured("one", MEASURED)
    store.jobs.add("one", "resume", {}, "me")
    last = store.position("one")
    store.delete("one")
    assert store.studies() == []
    assert store.jobs.waiting() == []
    with pytest.raises(StoreError, match="there is no 'one'"):
        store.delete("one")
    again = replace(RECORD, created="2026-02-02T00:00:00+00:00")
    store.create(again, directions=["maximize", "minimize"], objectives=["safety", "loss"])
    assert store.study("one") == again
    assert store.measured("one") == {}
    assert store.optuna_study("one", optuna.samplers.RandomSampler()).trials == []
    store.add_measured("one", MEASURED)
    assert [e.data["trial"] for e in store.events("one", last)] == [0]


def test_how_the_job_of_a_study_that_never_started_ended_can_still_be_asked(store: Store) -> None:
    job = store.jobs.add("one", "launch", {}, "me")
    store.delete("one", keep_jobs=True)
    store.jobs.end(job.key, 2, "no worker could start")
    assert store.studies() == []
    assert store.jobs.latest()["one"].message == "no worker could start"


def test_a_crash_between_the_halves_of_a_deletion_leaves_a_name_that_can_be_used(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    def crash(_self: object, _name: str) -> None:
        raise Crash

    store.optuna_study("one", optuna.samplers.RandomSampler()).ask()
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(Store, "_clear_away", crash)
        store.delete("one")
    store.create(RECORD, directions=["maximize", "minimize"], objectives=["safety", "loss"])
    assert store.optuna_study("one", optuna.samplers.RandomSampler()).trials == []


def test_somebody_elses_optuna_study_of_that_name_is_not_deleted(store: Store) -> None:
    theirs = optuna.create_study(study_name="theirs", storage=store.trials, directions=["maximize", "minimize"])
    theirs.ask()
    record = replace(RECORD, name="theirs")
    store.create(record, directions=["maximize", "minimize"], objectives=["safety", "loss"])
    assert len(theirs.get_trials()) == 1


def test_a_study_that_is_driven_is_not_deleted(store: Store, url: str) -> None:
    store.hold("one", Holder.me())
    other = Store.open(url)
    with pytest.raises(StoreError, match="a study that is driven cannot be deleted, but one is, by "):
        other.delete("one")
    store.release("one")
    other.delete("one")
    other.close()


def test_how_a_driver_ended_is_known_afterwards(store: Store) -> None:
    def trouble() -> str:
        return store.studies()[0].trouble

    assert trouble() == ""
    store.hold("one", Holder.me())
    store.release("one", "no worker is left")
    assert trouble() == "no worker is left"
    store.hold("one", Holder.me())
    assert trouble() == "no worker is left"
    store.release("one")
    assert trouble() == ""
    gone = Holder(host=Holder.me().host, pid=Holder.me().pid, started=1.0)
    store.hold("one", gone)
    assert "ended without a word" in trouble()
    assert store.driver("one") is None


def test_a_revision_changes_with_all_that_results_read(store: Store) -> None:
    seen = [store.revision("one")]
    trial = store.optuna_study("one", optuna.samplers.RandomSampler()).ask()
    trial.set_user_attr("recipe", {})
    store.add_measured("one", MEASURED)
    seen.append(store.revision("one"))
    store.optuna_study("one", optuna.samplers.RandomSampler()).tell(trial.number, [1.0, 2.0])
    seen.append(store.revision("one"))
    store.add_measured("one", replace(MEASURED, split="validation"))
    seen.append(store.revision("one"))
    assert len(set(seen)) == len(seen)
    assert store.revision("one") == seen[-1]


def test_workers_are_told_with_what_they_did(store: Store) -> None:
    for number, worker in enumerate(["a:1", "a:1", "b:2"]):
        store.add_measured("one", replace(MEASURED, number=number, worker=worker))
    store.add_failed("one", replace(failed(3), worker="b:2"))
    assert [(w.worker, w.measured, w.failed) for w in store.workers("one")] == [("a:1", 2, 0), ("b:2", 1, 1)]
    assert store.seconds("one") == {"merge": 1.5}


def test_what_workers_do_is_known_while_their_study_is_driven(store: Store, url: str) -> None:
    store.add_measured("one", replace(MEASURED, worker="a:1"))
    store.add_measured("one", replace(MEASURED, number=1, worker="gone:9"))
    store.hold("one", Holder.me())
    at = "2026-01-01T00:00:00+00:00"
    store.set_workers("one", [{"worker": w, "doing": d, "since": at} for w, d in (("b:2", "idle"), ("a:1", "trial 2"))])
    other = Store.open(url)
    seen = [(w.worker, w.doing, w.since, w.measured) for w in other.workers("one")]
    assert seen == [("b:2", "idle", at, 0), ("a:1", "trial 2", at, 1), ("gone:9", None, None, 1)]
    store.release("one")
    assert [(w.worker, w.doing) for w in other.workers("one")] == [("a:1", None), ("gone:9", None)]
    other.hold("one", Holder(host="elsewhere", pid=1, started=1.0))
    assert all(w.doing is None for w in store.workers("one")), "the next driver has not said anything yet"
    other.release("one")
    other.close()
