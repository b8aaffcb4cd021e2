"""A cluster of several real Ray nodes, all on this machine: they join, leave, and run other code."""

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from optimizer import cli
from optimizer.database import studies
from optimizer.spec import load_spec
from search_spaces.errors import InputError
from search_spaces.recipe import Recipe
from storage.records import Assignment, Measured, Outcome
from workers import ray_pool
from workers.ray_pool import RayPool
from workers.setup import Setup

HERE = Path(__file__).parents[2]


def recipe(number: int) -> Recipe:
    weight = (number + 1) / 1000
    return Recipe(method="linear", weights={"alpha": (weight,), "beta": (1 - weight,)})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that holds no worker, so that every worker is on a node that can leave."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_worker_niceness", "0")
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    ray.init(address=found.address, log_to_driver=False, logging_level=logging.ERROR)
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def node(cluster: Any) -> Iterator[Callable[..., Any]]:
    """Adds nodes, which leave at the end of the test."""
    added: list[Any] = []

    def add(**options: Any) -> Any:
        added.append(cluster.add_node(**{"num_cpus": 1} | options))
        return added[-1]

    yield add
    for one in added:
        if one in cluster.list_all_nodes():
            cluster.remove_node(one)
    limit = time.monotonic() + 120
    while sum(found["Alive"] for found in ray.nodes()) > 1:  # the next test shall see the head alone
        assert time.monotonic() < limit
        time.sleep(0.1)


@pytest.fixture
def setup(study_file: Callable[..., Path]) -> Setup:
    return load_spec(study_file()).setup(device="cpu")


class Run:
    """Keeps a pool busy with trial after trial."""

    def __init__(self, pool: RayPool) -> None:
        self.pool = pool
        self.submitted = 0
        self.done: list[Outcome] = []

    def until(self, met: Callable[[], bool], seconds: float = 120.0) -> None:
        """Go on until it is so; fails after a while."""
        limit = time.monotonic() + seconds
        while not met():
            assert time.monotonic() < limit, f"{len(self.done)} of {self.submitted} done"
            while self.pool.room:
                self.pool.submit(Assignment(number=self.submitted, recipe=recipe(self.submitted)))
                self.submitted += 1
            self.done += self.pool.finished()

    def workers(self, last: int = 6) -> set[str]:
        """Who did the last trials."""
        return {outcome.worker for outcome in self.done[-last:] if isinstance(outcome, Measured)}


def test_nodes_that_join_are_used_and_nodes_that_leave_cost_their_running_trials_only(
    cluster: Any, node: Callable[..., Any], setup: Setup
) -> None:
    first = node()
    pool = RayPool(setup, count=None, canary=recipe(500), canary_every=1_000)
    try:
        run = Run(pool)
        run.until(lambda: len(run.done) >= 6)
        assert len(run.workers()) == 1
        node()
        run.until(lambda: len(run.workers()) == 2)
        cluster.remove_node(first, allow_graceful=False)
        run.until(lambda: len(run.workers()) == 1)  # its worker may live for a moment more
        node()
        run.until(lambda: len(run.workers()) == 2)
        numbers = [outcome.number for outcome in run.done]
        assert all(isinstance(outcome, Measured) for outcome in run.done)
        assert len(numbers) == len(set(numbers))
        missing = set(range(max(numbers))) - set(numbers)
        assert len(missing) <= 2  # those that run now
    finally:
        pool.close()


def test_a_study_waits_for_machines_when_all_have_left(cluster: Any, node: Callable[..., Any], setup: Setup) -> None:
    only = node()
    pool = RayPool(setup, count=1)
    try:
        run = Run(pool)
        run.until(lambda: len(run.done) >= 3)
        for _ in range(3):  # as often as a worker is retired after
            cluster.remove_node(only, allow_graceful=False)
            done = len(run.done)
            only = node()
            run.until(lambda done=done: len(run.done) >= done + 2)  # type: ignore[misc]
        assert all(isinstance(outcome, Measured) for outcome in run.done)
    finally:
        pool.close()


def test_a_retired_workers_place_is_not_used_again_and_machines_that_join_still_are(
    node: Callable[..., Any], setup: Setup
) -> None:
    node()
    node()
    pool = RayPool(setup, count=None)
    try:
        run = Run(pool)
        run.until(lambda: len(run.workers()) == 2)
        places = {slot.node for slot in pool._slots if slot.node}
        number = 10_000
        while not pool._retired:
            while len(pool._idle) < 2:
                pool.finished()
            pool.submit(Assignment(number=number, recipe=recipe(0), split="nowhere"))
            while not pool.finished():
                pass
            number += 1
        node()
        run.until(lambda: len(run.workers()) == 2 and len(pool._keepers) == 1)
        spoilt = ray.get(pool._keepers[0].hello.remote()).node
        assert spoilt in places
        assert spoilt not in {slot.node for slot in pool._slots}
    finally:
        pool.close()


DRIVER = """
import sys
from pathlib import Path
from optimizer import cli
from optimizer.database import studies
from optimizer.spec import load_spec
from workers.code_version import code_version
from workers.ray_pool import RayPool

print(code_version(), flush=True)
with Path("workers/racing.py").open("a") as file:
    file.write("# changed under a driver that runs")
RayPool(load_spec(Path(sys.argv[1])).setup(device="cpu"), count=1, address=sys.argv[2])
"""


def test_a_worker_of_another_version_is_refused_with_both_versions_named(
    cluster: Any, node: Callable[..., Any], study_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Code that is changed while a driver runs reaches the workers that start later."""
    copy = tmp_path / "copy"
    for package in ("search_spaces", "storage", "workers", "optimizer"):
        shutil.copytree(HERE / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    node()
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER, str(study_file()), cluster.address],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    mine = driver.stdout.splitlines()[0]
    assert f"workers must run the driver's {mine}, but" in driver.stderr
    assert driver.stderr.splitlines()[-1].count("(code ") == 2


@pytest.mark.parametrize(
    ("needs", "gpus", "message"),
    [
        ({"device": "cuda"}, 0, r"takes 1 CPU and 1 GPU, and the machines have 1 CPU\."),
        ({"engine": "vllm", "device": "auto"}, 0, r"takes 1 CPU and 1 GPU, and the machines have 1 CPU\."),
        (
            {"engine": "vllm", "tensor_parallel": 4},
            2,
            r"takes 4 CPU and 4 GPU, and the machines have 8 CPU and 2 GPU\.",
        ),
    ],
    ids=["no GPUs", "no GPUs for vLLM", "fewer GPUs than one engine needs"],
)
def test_a_worker_that_fits_nowhere_is_an_error_with_what_there_is(
    needs: dict[str, Any],
    gpus: int,
    message: str,
    node: Callable[..., Any],
    setup: Setup,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node(num_gpus=gpus, num_cpus=8 if gpus else 1)
    monkeypatch.setattr(ray_pool, "_PATIENCE_SECONDS", 1)
    needy = replace(setup, **{"device": "auto", **needs})
    with pytest.raises(InputError, match=message):
        RayPool(needy, count=1)


def test_what_cannot_start_on_a_cluster_leaves_no_study_behind(
    cluster: Any,
    node: Callable[..., Any],
    study_file: Callable[..., Path],
    storage: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ray_pool, "_PATIENCE_SECONDS", 1)
    node()
    needy = str(study_file(workers={"device": "cuda", "dtype": "float32"}))
    assert cli.main(["launch", needy, "--ray", cluster.address]) == 2
    assert "and the machines have 1 CPU." in capsys.readouterr().err
    assert cli.main(["launch", str(study_file()), "--ray", "127.0.0.1:9"]) == 2
    assert "nobody answers at 127.0.0.1:9" in capsys.readouterr().err
    assert studies(storage=storage) == []
