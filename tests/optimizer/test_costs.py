"""Where the hours went, of a real study and of what its workers spent beside it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimizer import cli, loop
from optimizer.costs import add_spent, costs
from optimizer.spec import Spec, load_spec
from optimizer.study import DriverStudy
from storage.records import Assignment, Measured
from storage.store import Store
from workers.pool import LocalPool
from workers.worker import Worker


@pytest.fixture
def spec(study_file: Callable[..., Path]) -> Spec:
    return load_spec(study_file())


@pytest.fixture
def searched(store: Store, worker: Worker) -> Store:
    """A study at its end, and one finalist on fresh items."""
    loop.search(DriverStudy(store, "tiny"), LocalPool(lambda: worker), lambda _: None)
    outcome = worker.run(Assignment(number=0, recipe=store.measured("tiny")[0].recipe, split="report"))
    assert isinstance(outcome, Measured)
    store.add_measured("tiny", replace(outcome, seconds={**outcome.seconds, "gpu": 4 * outcome.seconds["total"]}))
    return store


def test_every_second_of_a_measurement_is_in_one_stage(searched: Store) -> None:
    found = {c.stage: c for c in costs(searched, "tiny")}
    search = [m.seconds for m in searched.measured("tiny").values()]
    (fresh,) = [m.seconds for m in searched.measured("tiny", "report").values()]
    by_stage = {stage: sum(s[stage] for s in search) for stage in ("merge", "forward", "total")}
    assert found["merging"].worker == pytest.approx(by_stage["merge"])
    assert found["asking"].worker == pytest.approx(by_stage["forward"])
    assert sum(found[s].worker for s in ("merging", "asking", "marking")) == pytest.approx(by_stage["total"])
    assert found["validation"].worker == pytest.approx(fresh["total"])
    assert found["validation"].gpu == pytest.approx(4 * fresh["total"])
    assert found["merging"].gpu == 0.0
    assert found["idle"].worker == 0.0


def test_what_workers_spend_beside_trials_adds_up_from_run_to_run(searched: Store) -> None:
    spent = {"opening": 10.0, "failed": 3.0, "idle": 0.5}
    add_spent(searched, "tiny", spent, 2.0)
    add_spent(searched, "tiny", spent, 4.0)
    found = {c.stage: (c.worker, c.gpu) for c in costs(searched, "tiny")}
    assert found["opening models"] == (20.0, 60.0)
    assert found["failed and lost trials"] == (6.0, 18.0)
    assert found["idle"] == (1.0, 3.0)


def test_the_list_of_studies_tells_costs_as_json(searched: Store, storage: str, capsys: Any) -> None:
    assert cli.main(["studies", "--storage", storage, "--format", "json"]) == 0
    (study,) = json.loads(capsys.readouterr().out)
    assert study["costs"] == [{"stage": c.stage, "worker": c.worker, "gpu": c.gpu} for c in costs(searched, "tiny")]
