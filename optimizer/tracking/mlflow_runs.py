"""MLflow: a run for the study, and below it one for each trial. The only file that imports MLflow."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from optimizer.tracking.tracker import About, Export, Table, TrackerError, Trial
from search_spaces.errors import InputError

if TYPE_CHECKING:
    from mlflow.entities import Run

_KEY = "mergefront.key"
_TRIAL = "mergefront.trial"
_PARENT = "mlflow.parentRunId"
_TABLES = "mlflow.loggedArtifacts"
_DONE, _FAILED = "FINISHED", "FAILED"
_PARAMS_A_CALL = 100
_RUNS_A_PAGE = 1000
_MOST_TEXT = 5000


class MlflowRuns:
    """A trial's run is ended last of all, so one that has not ended was cut off, and is logged once more: MLflow keeps
    the same value of the same step and time once.

    Args:
        uri: a tracking server, or a database such as ``sqlite:///mlflow.db``.
    Raises: InputError where MLflow is not installed.
    """

    title = "MLflow"

    def __init__(self, uri: str, experiment: str) -> None:
        # Of MLflow itself: who uses it is not reported, and waiting for a server is ours.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        if find_spec("mlflow") is None:
            raise InputError("--mlflow needs MLflow's client: pip install 'mergefront[mlflow]'.")
        self._uri = uri
        self._experiment_name = experiment
        self._ended: dict[int, str] = {}
        self._begun: dict[int, str] = {}

    def begin(self, about: About) -> None:
        """Find the study's run or make it, and the trials that are there."""
        from mlflow import MlflowClient

        with _said():
            self._client: MlflowClient = MlflowClient(tracking_uri=self._uri)
            self._experiment = self._experiment_id()
            self._run = self._study_run(about)
            self._client.update_run(self._run, status="RUNNING")
            trials = list(self._runs(f"tags.`{_PARENT}` = '{self._run}'"))
        self._begun = {int(run.data.tags[_TRIAL]): run.info.run_id for run in trials}
        self._ended = {int(run.data.tags[_TRIAL]): run.info.status for run in trials}

    def log(self, trial: Trial) -> None:
        """A run of its own, and a point of the study's series at the trial's number."""
        status = _FAILED if trial.measured is None else _DONE
        if self._ended.get(trial.number) in (status, _DONE):
            return
        with _said():
            run = self._begun.get(trial.number) or self._trial_run(trial)
            if trial.measured is None:
                self._client.set_tag(run, "mergefront.reason", trial.reason[:_MOST_TEXT])
            else:
                self._log_params(run, {name: str(value) for name, value in trial.recipe.items()})
                self._log_metrics(run, trial, step=0)
                self._log_metrics(self._run, trial, step=trial.number)
            self._client.set_terminated(run, status, end_time=trial.milliseconds)
        self._ended[trial.number] = status

    def finish(self, tables: Mapping[str, Table], exports: Sequence[Export]) -> None:
        """Tables as MLflow reads them (it can only add to its own), and of exports card, manifest and directory."""
        with _said():
            for title, table in tables.items():
                document = {"columns": list(table.columns), "data": [list(row) for row in table.rows]}
                self._client.log_dict(self._run, document, f"{title}.json")
            listed = [{"path": f"{title}.json", "type": "table"} for title in tables]
            self._client.set_tag(self._run, _TABLES, json.dumps(listed))
            for export in exports:
                for file in export.files:
                    self._client.log_artifact(self._run, str(file), artifact_path=f"exports/{export.name}")
                self._client.set_tag(self._run, f"mergefront.export.{export.name}", str(export.directory))
            self._client.set_terminated(self._run, _DONE)

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment_name)
        return self._client.create_experiment(self._experiment_name) if found is None else str(found.experiment_id)

    def _study_run(self, about: About) -> str:
        for run in self._runs(f"tags.`{_KEY}` = '{about.key}'"):
            return str(run.info.run_id)
        run = self._client.create_run(self._experiment, run_name=about.study, tags={_KEY: about.key})
        self._log_params(run.info.run_id, about.params)
        return str(run.info.run_id)

    def _trial_run(self, trial: Trial) -> str:
        tags = {_PARENT: self._run, _TRIAL: str(trial.number)}
        tags |= {"mergefront.baseline": trial.baseline} if trial.baseline else {}
        if trial.measured is not None:
            stopped = {"mergefront.stopped": trial.measured.stopped} if trial.measured.stopped else {}
            tags |= {"mergefront.split": trial.measured.split, **stopped}
        name = f"trial {trial.number}"
        run = self._client.create_run(self._experiment, start_time=trial.milliseconds, tags=tags, run_name=name)
        self._begun[trial.number] = str(run.info.run_id)
        return self._begun[trial.number]

    def _runs(self, where: str) -> Iterator["Run"]:
        token: str | None = None
        while True:
            page = self._client.search_runs([self._experiment], where, max_results=_RUNS_A_PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _log_params(self, run: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        found = [Param(name, value[:_MOST_TEXT]) for name, value in params.items()]
        for first in range(0, len(found), _PARAMS_A_CALL):
            self._client.log_batch(run, params=found[first : first + _PARAMS_A_CALL])

    def _log_metrics(self, run: str, trial: Trial, *, step: int) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, value, trial.milliseconds, step) for name, value in trial.metrics.items()]
        self._client.log_batch(run, metrics=metrics)


@contextmanager
def _said() -> Iterator[None]:
    """What MLflow and the network say becomes TrackerError, in one line."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as e:
        raise TrackerError(str(e).strip().split("\n")[0]) from e
