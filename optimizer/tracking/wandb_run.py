"""Weights & Biases: one run for the study, a row of its history for each trial. The only file that imports wandb."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from optimizer.tracking.tracker import About, Export, Table, TrackerError, Trial
from search_spaces.errors import InputError


class WandbRun:
    """The run's id is the study's key, and a trial's step its place in the order of measurement: the service says how
    many rows it has, and the next is sent. Without a service (``WANDB_MODE=offline``) every run of ours is whole.

    Args:
        project: ``PROJECT`` or ``ENTITY/PROJECT``.
    Raises: InputError where wandb is not installed, or the project is named otherwise.
    """

    title = "Weights & Biases"

    def __init__(self, project: str) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        if find_spec("wandb") is None:
            raise InputError("--wandb needs wandb: pip install 'mergefront[wandb]'.")
        *entity, self._project = project.split("/")
        if len(entity) > 1 or not all([*entity, self._project]):
            raise InputError(f"--wandb must read PROJECT or ENTITY/PROJECT, but got {project!r}.")
        self._entity = entity[0] if entity else None
        self._held = 0
        self._failed: set[tuple[int, str]] = set()

    def begin(self, about: About) -> None:
        """Go on with the study's run, or begin it. Nothing of this machine is sent: no host, paths, packages, load."""
        import wandb

        settings = wandb.Settings(
            console="off",
            disable_git=True,
            program="mergefront",
            save_code=False,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        with _said():
            self._run: wandb.Run = wandb.init(
                entity=self._entity,
                project=self._project,
                id=about.key,
                name=about.study,
                config=dict(about.params),
                resume="allow",
                reinit="finish_previous",
                settings=settings,
            )
            self._run.define_metric("trial")
            self._run.define_metric("*", step_metric="trial")
        self._about = about
        self._held = self._run.step

    def log(self, trial: Trial) -> None:
        """A row of the history, which charts show at the trial's number; of a failed attempt the count."""
        with _said():
            if trial.measured is None:
                self._failed.add((trial.number, trial.at))
                self._run.summary["failed"] = len(self._failed)
            elif trial.place >= self._held:
                about = {"baseline": trial.baseline, "split": trial.measured.split, "stopped": trial.measured.stopped}
                row = {"trial": trial.number, **trial.metrics, **trial.recipe, **about}
                self._run.log(row, step=trial.place, commit=True)

    def finish(self, tables: Mapping[str, Table], exports: Sequence[Export]) -> None:
        """Tables and exports as artifacts: those take no row, and what has not changed makes no new version."""
        import wandb

        with _said():
            found = wandb.Artifact(f"front-{self._about.key}", type="front")
            for title, table in tables.items():
                found.add(wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows]), title)
            self._run.log_artifact(found)
            for export in exports:
                model = wandb.Artifact(export.name, type="model")
                for file in export.files:
                    model.add_file(str(file))
                model.add_reference(export.directory.as_uri(), name="directory", checksum=False)
                self._run.log_artifact(model)
            self._run.finish()


@contextmanager
def _said() -> Iterator[None]:
    """What wandb and the network say becomes TrackerError, in one line."""
    import wandb

    try:
        yield
    except (wandb.Error, OSError) as e:
        raise TrackerError(str(e).strip().split("\n")[0]) from e
