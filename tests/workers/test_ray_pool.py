"""Real Ray, real actors, real kills."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from optimizer.spec import load_spec
from search_spaces.errors import InputError
from search_spaces.recipe import Recipe
from storage.records import Assignment, Failed, Measured, Outcome
from workers.pool import LocalPool, Pool
from workers.ray_pool import RayPool, _require_answer
from workers.setup import Setup
from workers.worker import Worker

RECIPES = [Recipe(method="linear", weights={"alpha": (w,), "beta": (1 - w,)}) for w in (0.1, 0.2, 0.3, 0.4, 0.6, 0.7)]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One Ray for all tests of this file: starting it takes longer than any of them."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture
def setup(study_file) -> Setup:  # type: ignore[no-untyped-def]
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
    assert pool.room == 2
    assert victim not in pool.process_ids()


def test_a_trial_that_kills_every_worker_fails_and_the_next_goes_on(setup: Setup) -> None:
    """Every worker is killed for a while, as by a system that has no memory left."""
    pool = RayPool(setup, count=1)
    # Later workers open their models within the trial, which gives the killer time; this one has them open.
    os.kill(pool.process_ids()[0], signal.SIGKILL)
    stop = threading.Event()
    killer = threading.Thread(target=_kill_workers, args=(stop,))
    killer.start()
    pool.submit(Assignment(number=7, recipe=RECIPES[0]))
    (outcome,) = pool.finished()
    stop.set()
    killer.join()
    assert isinstance(outcome, Failed)
    assert outcome.number == 7
    assert "its worker died 3 times" in outcome.reason
    assert isinstance(run_all(pool, RECIPES[:1])[0], Measured)
    pool.close()


def test_input_that_no_worker_can_open_is_an_input_error(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "suites" / "choice.jsonl").write_text("{\n")
    with pytest.raises(InputError, match="an item must be one JSON object"):
        RayPool(setup, count=1)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_an_address_that_nobody_answers_is_an_input_error(address: str) -> None:
    with pytest.raises(InputError, match="--ray must be"):
        _require_answer(address)


def _kill_workers(stop: threading.Event) -> None:
    while not stop.wait(0.01):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.name().startswith("ray::_Actor"):
                    process.kill()
