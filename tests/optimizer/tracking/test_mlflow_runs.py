"""A study in a real MLflow store, read back by MLflow's own client."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimizer import api
from optimizer.cli import main
from search_spaces.errors import InputError
from storage.store import Store
from tests.optimizer.tracking.conftest import FAILED, LOOK

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
mlflow = pytest.importorskip("mlflow", reason="MLflow is missing: pip install --group dev")
from mlflow import MlflowClient  # noqa: E402 (skipped before where it is not installed)
from mlflow.entities import Run  # noqa: E402 (skipped before where it is not installed)

# Its tables still say lazy="noload", which SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables; making them takes a second."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store of the test's own; artifacts go below the working directory."""
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path}/mlflow.db"


class Found:
    """What a store holds of the one study in it."""

    def __init__(self, uri: str) -> None:
        self.client = MlflowClient(tracking_uri=uri)
        (experiment,) = [e for e in self.client.search_experiments() if e.name == "mergefront"]
        runs = self.client.search_runs([experiment.experiment_id], max_results=1000)
        (self.study,) = [r for r in runs if "mergefront.key" in r.data.tags]
        self.children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == self.study.info.run_id]
        assert len(runs) == 1 + len(self.children)

    @property
    def numbers(self) -> list[int]:
        return sorted(int(r.data.tags["mergefront.trial"]) for r in self.children)

    def child(self, number: int) -> Run:
        (found,) = [r for r in self.children if r.data.tags["mergefront.trial"] == str(number)]
        return found

    def steps(self, metric: str) -> list[int]:
        return sorted(m.step for m in self.client.get_metric_history(self.study.info.run_id, metric))

    def artifact(self, path: str) -> Any:
        return Path(self.client.download_artifacts(self.study.info.run_id, path)).read_text()


def expected(store: Store) -> list[int]:
    return sorted({*store.measured("tiny"), FAILED, LOOK})


def test_a_study_is_a_run_with_a_run_for_each_trial_below_it(
    told_study: Store, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["track", "tiny", "--mlflow", uri]) == 0
    assert f"{len(expected(told_study))} trials of tiny are there" in capsys.readouterr().err
    found, measured = Found(uri), told_study.measured("tiny")
    assert found.numbers == expected(told_study)
    assert found.study.info.status == "FINISHED"
    assert found.study.data.params["spec_digest"] == told_study.study("tiny").spec_digest
    assert found.study.data.params["version/optuna"]
    child = found.child(1)
    assert child.info.status == "FINISHED"
    assert child.data.metrics["safety/mean"] == measured[1].scores["safety"].mean
    assert child.data.metrics["safety/stderr"] == measured[1].scores["safety"].stderr
    weights = measured[1].recipe.mean_weights()
    assert {n: float(child.data.params[f"weight/{n}"]) for n in weights} == weights
    assert found.steps("hypervolume") == sorted([*measured, LOOK])
    assert found.child(LOOK).data.tags["mergefront.split"] == "further"
    assert found.child(FAILED).info.status == "FAILED"
    assert found.child(FAILED).data.tags["mergefront.reason"] == "a worker died"


def test_the_front_is_a_table_that_mlflow_reads(told_study: Store, uri: str) -> None:
    api.track("tiny", mlflow=uri)
    found = Found(uri)
    listed = json.loads(found.study.data.tags["mlflow.loggedArtifacts"])
    assert {entry["path"] for entry in listed} == {"front.json", "trials.json", "fresh.json", "failures.json"}
    table = found.client.load_table(found.study.info.experiment_id, "front.json", [found.study.info.run_id])
    assert list(table["trial"]) == [r.trial for r in api.front("tiny").front]
    assert list(table["safety.mean"]) == [r.objectives["safety"].mean for r in api.front("tiny").front]


def test_sent_again_nothing_is_doubled_and_what_is_new_is_added(told_study: Store, uri: str) -> None:
    api.track("tiny", mlflow=uri)
    before = {r.info.run_id for r in Found(uri).children}
    told_study.add_measured("tiny", replace(told_study.with_marks("tiny", 0), number=95, marks={}))
    api.track("tiny", mlflow=uri)
    found = Found(uri)
    assert found.numbers == expected(told_study)
    assert before < {r.info.run_id for r in found.children}
    assert found.steps("hypervolume") == sorted([*told_study.measured("tiny"), LOOK])


def test_after_a_kill_anywhere_no_trial_is_missing_and_none_is_doubled(
    told_study: Store, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed again and again, each time just after MLflow has kept a call and before anything else could be done."""
    alive = iter([0, 1, 0, 4, 6, 2, 5, 3, 7])
    calls = [next(alive)]

    def killing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            kept = real(*arguments, **named)
            if calls and not calls[0]:
                raise KeyboardInterrupt
            calls[:] = [n - 1 for n in calls]
            return kept

        return call

    for verb in ("create_run", "log_batch", "set_tag", "set_terminated"):
        monkeypatch.setattr(MlflowClient, verb, killing(getattr(MlflowClient, verb)))
    kills = 0
    while calls:
        with pytest.raises(KeyboardInterrupt):
            api.track("tiny", mlflow=uri)
        kills += 1
        calls[:] = [left for left in [next(alive, None)] if left is not None]
    api.track("tiny", mlflow=uri)
    found = Found(uri)
    assert kills == 9
    assert found.numbers == expected(told_study)
    assert found.steps("hypervolume") == sorted([*told_study.measured("tiny"), LOOK])
    assert found.study.info.status == "FINISHED"
    assert {n: r.info.status for n in found.numbers for r in [found.child(n)]} == {
        n: "FAILED" if n == FAILED else "FINISHED" for n in expected(told_study)
    }


def test_of_an_export_card_manifest_and_place_are_kept_and_no_weights(
    told_study: Store, uri: str, tmp_path: Path
) -> None:
    export, gone = tmp_path / "picked", tmp_path / "gone"
    export.mkdir()
    (export / "README.md").write_text("the card")
    (export / "merge_recipe.json").write_text(json.dumps({"merge_digest": "d" * 64}))
    (export / "model.safetensors").write_bytes(b"weights")
    told_study.add_export("tiny", 1, str(export), "d" * 64)
    told_study.add_export("tiny", 2, str(gone), "e" * 64)
    api.track("tiny", mlflow=uri)
    found = Found(uri)
    kept = [a.path for a in found.client.list_artifacts(found.study.info.run_id, "exports/tiny-trial-1")]
    assert kept == ["exports/tiny-trial-1/README.md", "exports/tiny-trial-1/merge_recipe.json"]
    assert found.artifact(kept[0]) == "the card"
    assert found.study.data.tags["mergefront.export.tiny-trial-1"] == str(export)
    assert [a.path for a in found.client.list_artifacts(found.study.info.run_id, "exports")] == ["exports/tiny-trial-1"]


def test_a_trial_that_failed_and_was_then_measured_is_measured(told_study: Store, uri: str) -> None:
    api.track("tiny", mlflow=uri)
    told_study.add_measured("tiny", replace(told_study.with_marks("tiny", 0), number=FAILED, marks={}))
    api.track("tiny", mlflow=uri)
    found = Found(uri)
    assert found.child(FAILED).info.status == "FINISHED"
    assert found.child(FAILED).data.metrics["safety/mean"] == told_study.measured("tiny")[0].scores["safety"].mean


def test_a_server_that_is_not_there_is_said_plainly(
    told_study: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(["track", "tiny", "--mlflow", "http://127.0.0.1:9"]) == 1
    said = capsys.readouterr().err
    assert "mergefront: API request to http://127.0.0.1:9" in said
    assert "Traceback" not in said


def test_without_mlflow_the_extra_is_named(told_study: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match=r"pip install 'mergefront\[mlflow\]'"):
        api.track("tiny", mlflow="sqlite:///m.db")


def test_one_tracker_at_a_time(told_study: Store) -> None:
    with pytest.raises(InputError, match="one tracker at a time"):
        api.track("tiny", mlflow="sqlite:///m.db", wandb="p")
    with pytest.raises(InputError, match="one tracker at a time"):
        api.track("tiny")
