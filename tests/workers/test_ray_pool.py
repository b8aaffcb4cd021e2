"""Real Ray, real actors, real kills."""

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from optimizer import loop
from optimizer.spec import load_spec
from optimizer.study import DriverStudy, create_study
from search_spaces.errors import InputError
from search_spaces.recipe import Recipe
from storage.records import Assignment, Failed, Measured, Outcome
from storage.store import Store
from workers import ray_pool
from workers.deadlines import Deadlines
from workers.pool import LocalPool, Pool, PoolError
from workers.ray_pool import RayPool, require_answer
from workers.setup import Setup
from workers.worker import Worker

RECIPES = [Recipe(method="linear", weights={"alpha": (w,), "beta": (1 - w,)}) for w in (0.1, 0.2, 0.3, 0.4, 0.6, 0.7)]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One Ray for all tests of this file: starting it takes longer than any of them."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture
def setup(study_file: Callable[..., Path]) -> Setup:
    return load_spec(study_file()).setup(device="cpu")


@pytest.fixture
def pool(setup: Setup) -> Iterator[RayPool]:
    pool = RayPool(setup, count=2)
    yield pool
    pool.close()


def run_all(pool: Pool, recipes: list[Recipe]) -> dict[int, Outcome]:
    waiting = [Assignment(number=i, recipe=r) for i, r in enumerate(recipes)]
    outcomes: dict[int, Outcome] = {}
    while len(outcomes) < len(recipes):
        while waiting and pool.room:
            pool.submit(waiting.pop(0))
        for outcome in pool.finished():
            assert outcome.number not in outcomes
            outcomes[outcome.number] = outcome
    return outcomes


def alone(pool: Pool, assignment: Assignment) -> Outcome:
    """The outcome of one assignment, handed out as soon as there is room."""
    while not pool.room:
        pool.finished()
    pool.submit(assignment)
    while not (found := pool.finished()):
        pass
    (outcome,) = found
    return outcome


def test_workers_measure_what_one_process_measures(pool: RayPool, setup: Setup) -> None:
    here = run_all(LocalPool(lambda: Worker(setup)), RECIPES)
    there = run_all(pool, RECIPES)
    assert len({o.worker for o in there.values()}) == 2
    for number, outcome in here.items():
        other = there[number]
        assert isinstance(outcome, Measured)
        assert isinstance(other, Measured)
        assert (other.digest, other.scores, other.marks) == (outcome.digest, outcome.scores, outcome.marks)


def test_a_killed_worker_costs_one_trial_and_that_trial_is_done_again(pool: RayPool) -> None:
    victim, _ = pool.process_ids()
    os.kill(victim, signal.SIGKILL)
    outcomes = run_all(pool, RECIPES)
    assert all(isinstance(o, Measured) for o in outcomes.values())
    assert len(pool.process_ids()) == 2
    assert victim not in pool.process_ids()
    pool.close()
    assert all(pool.spent[stage] > 0.0 for stage in ("opening", "failed", "idle"))


@pytest.fixture
def slow(setup: Setup, tmp_path: Path) -> Setup:
    """The same study with so many items that a trial lasts long enough to be hit."""
    path = tmp_path / "suites" / "choice.jsonl"
    items = [json.loads(line) for line in path.read_text().splitlines()]
    more = [i | {"id": f"{i['id']}-{n}"} for n in range(120) for i in items]
    path.write_text("".join(json.dumps(item) + "\n" for item in more))
    return setup


def test_a_trial_that_kills_every_worker_fails_and_the_next_goes_on(slow: Setup) -> None:
    pool = RayPool(slow, count=1)
    with killing(lambda job: job.assignment is not None and job.assignment.number == 7, pool, signal.SIGKILL):
        outcome = alone(pool, Assignment(number=7, recipe=RECIPES[0]))
    assert isinstance(outcome, Failed)
    assert outcome.number == 7
    assert "its worker died 3 times" in outcome.reason
    assert isinstance(run_all(pool, RECIPES[:1])[0], Measured)
    pool.close()


def test_a_worker_that_hangs_is_replaced_after_a_deadline(setup: Setup) -> None:
    pool = RayPool(setup, count=2, deadlines=Deadlines(least=3.0, factor=1.0))
    run_all(pool, RECIPES)
    victim, _ = pool.process_ids()
    os.kill(victim, signal.SIGSTOP)
    assert all(isinstance(o, Measured) for o in run_all(pool, RECIPES).values())
    assert victim not in pool.process_ids()
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(victim).status() != psutil.STATUS_ZOMBIE:  # until Ray collects it
            time.sleep(0.1)
    pool.close()


def test_a_worker_whose_replacements_die_is_retired_and_the_others_go_on(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    pool = RayPool(setup, count=2)
    doomed = pool._slots[0]
    numbers = count()
    with killing(lambda job: job.slot is doomed, pool, signal.SIGKILL):
        while len(pool._slots) == 2:
            for number in islice(numbers, pool.room):
                pool.submit(Assignment(number=number, recipe=RECIPES[number % len(RECIPES)]))
            assert all(isinstance(outcome, Measured) for outcome in pool.finished())
    while len(pool._idle) < 1:
        pool.finished()
    assert len(pool.process_ids()) == 1
    assert f"the worker {socket.gethostname()}:" in caplog.text
    assert "is retired: it failed 3 times in a row" in caplog.text
    pool.close()


def test_an_error_of_our_own_costs_its_trial_and_keeps_the_traceback(setup: Setup) -> None:
    pool = RayPool(setup, count=1)
    for number in range(2):
        outcome = alone(pool, Assignment(number=number, recipe=RECIPES[0], split="nowhere"))
        assert isinstance(outcome, Failed)
        assert outcome.reason.startswith("KeyError: 'nowhere'")
        assert "self._objectives[name][split]" in outcome.traceback
    assert isinstance(alone(pool, Assignment(number=2, recipe=RECIPES[0])), Measured)
    for number in range(3):
        alone(pool, Assignment(number=number, recipe=RECIPES[0], split="nowhere"))
    with pytest.raises(PoolError, match=r"at least one worker must be left.*failed 3 times in a row.*nowhere"):
        _ = pool.room
    pool.close()


def test_a_worker_whose_merges_change_is_retired(setup: Setup, models: Path, tmp_path: Path) -> None:
    """The mapped file is written to while it is open, and looks as before: later merges are silently others."""
    (tmp_path / "models").unlink()
    shutil.copytree(models, tmp_path / "models")
    pool = RayPool(setup, count=2, canary=RECIPES[0], canary_every=2)
    assert all(isinstance(o, Measured) for o in run_all(pool, RECIPES).values())
    path = tmp_path / "models" / "alpha" / "model.safetensors"
    stamp = path.stat().st_mtime_ns
    while pool.room < 2:  # nobody may look between the change and the old stamp
        pool.finished()
    with path.open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(bytes(64))
    os.utime(path, ns=(stamp, stamp))
    with pytest.raises(PoolError, match=r"its merges cannot be reproduced: the uniform merge has digest"):
        for _ in range(6):
            run_all(pool, RECIPES)
    pool.close()


@pytest.mark.timeout(120)
def test_a_study_goes_on_after_the_canary_of_its_only_worker(
    setup: Setup, study_file: Callable[..., Path], storage: str
) -> None:
    """While it sings, nothing runs and there is no room: the driver must wait for it all the same."""
    store = Store.open(storage, create=True)
    create_study(store, load_spec(study_file()), trials=7, fingerprints={})
    pool = RayPool(setup, count=1, canary=RECIPES[0], canary_every=2)
    study = DriverStudy(store, "tiny")
    loop.search(study, pool, lambda _: None)
    assert study.counts() == (7, 0, 7)
    pool.close()
    store.close()


@contextlib.contextmanager
def killing(doomed: Callable[[Any], bool], pool: RayPool, number: signal.Signals) -> Iterator[None]:
    """Sends a signal to every worker that is at a job which is doomed, as soon as it is."""

    def run() -> None:
        while not stop.wait(0.005):
            for job in list(pool._jobs.values()):
                if doomed(job) and (pid := job.slot.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)

    stop = threading.Event()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_what_a_judge_said_to_one_worker_the_others_know(study_file: Callable[..., Path], judge_server: Any) -> None:
    suite = {
        "path": "suites/safety.jsonl",
        "scorer": "judge",
        "url": judge_server.url,
        "model": "tiny",
        "rubric": "Good?",
    }
    objective = {"name": "kind", "suites": [suite | {"least_confidence": 0.0, "max_new_tokens": 4}]}
    pool = RayPool(load_spec(study_file(objectives=[objective])).setup(device="cpu"), count=2)
    first = alone(pool, Assignment(number=0, recipe=RECIPES[0]))
    assert isinstance(first, Measured)
    count = len(judge_server.asked)
    assert count == len(first.verdicts) > 0
    again = run_all(pool, RECIPES[:1] * 2)
    assert len({outcome.worker for outcome in again.values()}) == 2
    assert all(isinstance(o, Measured) and o.scores == first.scores for o in again.values())
    assert len(judge_server.asked) == count
    pool.close()


def test_input_that_no_worker_can_open_is_an_input_error(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "suites" / "choice.jsonl").write_text("{\n")
    with pytest.raises(InputError, match="an item must be one JSON object"):
        RayPool(setup, count=1)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_an_address_that_nobody_answers_is_an_input_error(address: str) -> None:
    with pytest.raises(InputError, match="--ray must be"):
        require_answer(address)


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_an_address_where_something_else_answers_is_an_input_error(
    says: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself would wait for two minutes there, and then end the process."""
    monkeypatch.setattr(ray_pool, "_ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(says)
                over.wait(20.0)

        over = threading.Event()
        other = threading.Thread(target=answer)
        other.start()
        with pytest.raises(InputError, match="must be the address of a running Ray cluster"):
            require_answer(f"127.0.0.1:{server.getsockname()[1]}")
        over.set()
        other.join()


def test_a_cluster_that_runs_answers() -> None:
    require_answer(ray.get_runtime_context().gcs_address)
