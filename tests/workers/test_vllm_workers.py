"""vLLM engines inside Ray workers: real actors, a real kill."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray

from optimizer.spec import load_spec
from optimizer.verify import compared
from search_spaces.errors import InputError
from search_spaces.recipe import Recipe
from storage.records import Assignment, Measured, Outcome
from tests.conftest import CHECKPOINTS, save, tiny_llama
from workers.canary import Canary, Proof
from workers.pool import LocalPool
from workers.ray_pool import RayPool
from workers.setup import Setup
from workers.vllm_plan import is_installed
from workers.worker import Worker

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not is_installed(), reason="vLLM is missing: `make test-vllm` runs this"),
    pytest.mark.filterwarnings("default"),  # vLLM's own code warns when it is imported
]

RECIPES = [Recipe(method="linear", weights={"alpha": (w,), "beta": (1 - w,)}) for w in (0.1, 0.2, 0.3, 0.4, 0.6, 0.7)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With heads that vLLM's attention on a CPU has."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", *CHECKPOINTS)):
        save(tiny_llama(seed, hidden_size=64), root / name)
    return root


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def setup_of(study_file: Callable[..., Path], engine: str) -> Setup:
    workers = {"engine": engine, "device": "cpu", "dtype": "float32"}
    return load_spec(study_file(workers=workers)).setup(device="cpu")


def run_all(pool: RayPool | LocalPool, recipes: list[Recipe]) -> dict[int, Outcome]:
    waiting = [Assignment(number=i, recipe=r) for i, r in enumerate(recipes)]
    outcomes: dict[int, Outcome] = {}
    while len(outcomes) < len(recipes):
        while waiting and pool.room:
            pool.submit(waiting.pop(0))
        outcomes |= {outcome.number: outcome for outcome in pool.finished()}
    return outcomes


def test_two_workers_with_a_crash_between_measure_what_transformers_does(study_file: Callable[..., Path]) -> None:
    here = run_all(LocalPool(lambda: Worker(setup_of(study_file, "transformers"))), RECIPES)
    pool = RayPool(setup_of(study_file, "vllm"), count=2, canary=RECIPES[0])
    assert {facts.engine for facts in pool.engines.values()} == {"vllm"}
    # Within Ray vLLM would choose Ray to run on; its one process is the worker's own.
    assert {f.arguments["distributed_executor_backend"] for f in pool.engines.values()} == {"uni"}
    victim, _ = pool.process_ids()
    os.kill(victim, signal.SIGKILL)
    there = run_all(pool, RECIPES)
    survivors = [psutil.Process(pid) for pid in pool.process_ids() if pid]
    pool.close()
    assert victim not in [process.pid for process in survivors]
    for number, outcome in here.items():
        other = there[number]
        assert isinstance(outcome, Measured)
        assert isinstance(other, Measured), other
        assert (other.digest, other.scores, other.marks) == (outcome.digest, outcome.scores, outcome.marks)
    _, alive = psutil.wait_procs(survivors, timeout=60)
    assert alive == []


DRIVER = """
import sys, time
from pathlib import Path
from optimizer.spec import load_spec
from workers.ray_pool import RayPool

pool = RayPool(load_spec(Path(sys.argv[1])).setup(device="cpu"), count=1)
print(*pool.process_ids(), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("killed", ["driver", "raylet"])
def test_no_engine_outlives_a_driver_or_a_ray_that_is_killed(study_file: Callable[..., Path], killed: str) -> None:
    file = study_file(workers={"engine": "vllm", "device": "cpu", "dtype": "float32", "tensor_parallel": 2})
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, file],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )
    assert driver.stdout
    with driver, driver.stdout as told:
        try:
            worker = psutil.Process(int(told.readline()))
            engine = [worker, *worker.children(recursive=True)]
            ray_of_it = psutil.Process(driver.pid).children(recursive=True)
            victim = {"driver": driver.pid} | {p.name(): p.pid for p in ray_of_it}
            os.kill(victim[killed], signal.SIGKILL)
            _, alive = psutil.wait_procs(engine, timeout=90)
        finally:
            driver.kill()
    assert len(engine) > 2
    assert alive == []


def unlike(setup: Setup, recipe: Recipe) -> Proof:
    """What a fresh engine is made to say, which no live one does."""
    fresh = Canary(digest="another", totals=(-1.0,), exact=False)
    live = Canary(digest="another", totals=(-9.0,), exact=False)
    return compared([live, live, live], fresh)


def test_a_model_for_which_the_proof_fails_is_refused_with_that_reason(study_file: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="must answer as one that was started on them, but 1 of 1 .* cannot be sear"):
        RayPool(setup_of(study_file, "vllm"), count=1, canary=RECIPES[0], prove=unlike)
