"""One training seed of one paper: its checkpoints, its suites, its studies, and what fresh items say of any recipe."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from examples.papers.kit.models import diverged
from examples.papers.kit.sizes import Size
from examples.papers.kit.world import write_suites
from optimizer import loop
from optimizer.database import open_store
from optimizer.preflight import check
from optimizer.results import Results, results
from optimizer.spec import Spec, read_spec
from optimizer.study import DriverStudy, create_study
from optimizer.validate import Validation, validate
from optimizer.watcher import NOBODY
from search_spaces.errors import InputError
from search_spaces.recipe import Recipe
from storage.records import Assignment, Failed, Measured
from workers.pool import LocalPool
from workers.worker import Worker

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A study that has run; ``validation`` is None where nobody wanted one."""

    spec: Spec
    results: Results
    validation: Validation | None


class Lab:
    """The directory of one training seed: ``models/<run>`` and ``suites/`` are there, ``studies.db`` comes.

    Attributes:
        left_out: why checkpoints are in no study, by name: their training diverged.
    """

    def __init__(self, directory: Path, models: Mapping[str, Path], *, seed: int, size: Size) -> None:
        """Lay out checkpoints and suites. Raises InputError where the base's training diverged."""
        self.directory, self.seed, self.size = directory, seed, size
        self.left_out = diverged(models)
        for reason in self.left_out.values():
            _log.warning("seed %d: %s", seed, reason)
        if "base" in self.left_out:
            raise InputError(self.left_out["base"])
        self._workers: dict[str, Worker] = {}
        self._measured: dict[tuple[str, str, str], Measured] = {}
        _link(directory / "models", models)
        write_suites(directory / "suites", size, seed)

    def spec(self, study_file: Path, *, name: str | None = None, **changes: Any) -> Spec:
        """A study file, which names the checkpoints and suites of seed 0, for this seed.

        Args:
            name: the study's, where one file makes several studies. changes: top-level keys to put in place of the
                file's, say ``search_space={"method": "ties"}``; those of ``search`` go into the file's.
        Checkpoints that diverged are left out.
        """
        document = yaml.safe_load(study_file.read_text(encoding="utf-8"))
        document |= {"study": name or document["study"]}
        document["search"] = document["search"] | changes.pop("search", {})
        document |= changes
        for key in ("checkpoints", "references"):
            if key in document:
                document[key] = [c for c in document[key] if c["name"] not in self.left_out]
        own = f"papers/{self.directory.parent.name}/0/"
        return read_spec(_moved(document, own, f"{self.directory}/"), {}, name=str(study_file), root=Path.cwd())

    def search(self, spec: Spec, *, trials: int | None = None, validated: bool = True) -> Search:
        """Run a study to its end in this process, or go on with it.

        Args:
            trials: in place of the file's number. Either is cut down to the replay's size.
            validated: measure its finalists on the validation split, and its picks and baselines on the report split.
        Raises: InputError where the preflight finds a problem.
        """
        starts = 4 + len(spec.checkpoints) + len(spec.references)
        planned = self.size.study_trials(trials or spec.search.trials, least=starts)
        worker = self._worker(spec)
        with open_store(f"sqlite:///{self.directory}/studies.db", create=True) as store:
            if spec.study not in {s.name for s in store.studies()}:
                report = check(spec, timed=False, progress=NOBODY.stage)
                if report.problems:
                    raise InputError("\n".join(report.problems))
                create_study(store, spec, trials=planned, fingerprints=dict(report.fingerprints))
            loop.search(DriverStudy(store, spec.study), LocalPool(lambda: worker), lambda _: None)
            validation = validate(store, spec.study, LocalPool(lambda: worker), NOBODY) if validated else None
            return Search(spec=spec, results=results(store, spec.study), validation=validation)

    def measure(self, spec: Spec, recipes: Mapping[str, Recipe], *, split: str = "report") -> dict[str, Measured]:
        """Recipes on a split of the spec's suites, watched objectives included; "report" holds the fresh items.

        A recipe's names are those of the spec's checkpoints, references and ``base``.
        """
        return {name: self._asked(spec, name, recipe, split) for name, recipe in recipes.items()}

    def _worker(self, spec: Spec) -> Worker:
        if spec.digest not in self._workers:
            self._workers[spec.digest] = Worker(spec.setup(device="cpu"))
        return self._workers[spec.digest]

    def _asked(self, spec: Spec, name: str, recipe: Recipe, split: str) -> Measured:
        key = (spec.digest, recipe.digest, split)
        if key not in self._measured:
            outcome = self._worker(spec).run(Assignment(number=0, recipe=recipe, split=split))
            if isinstance(outcome, Failed):
                raise InputError(f"every merge of a replay must be measurable, but {name} is not: {outcome.reason}")
            self._measured[key] = outcome
        return self._measured[key]


def means(measured: Measured) -> dict[str, float]:
    """Means by objective."""
    return {name: score.mean for name, score in measured.scores.items()}


def parts(measured: Measured) -> dict[str, dict[str, float]]:
    """Means of every named part by objective: languages by name, and what the scorer counts (rates of refusal)."""
    return {name: {part: s.mean for part, s in of.items()} for name, of in measured.breakdown.items()}


def _moved(value: Any, old: str, new: str) -> Any:
    """A document with the paths of seed 0 turned into another seed's."""
    if isinstance(value, dict):
        return {k: _moved(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [_moved(v, old, new) for v in value]
    if isinstance(value, str) and old in value:
        return new + value.partition(old)[2]
    return value


def _link(directory: Path, models: Mapping[str, Path]) -> None:
    """A link to each checkpoint under its run's name."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, path in models.items():
        link = directory / name
        if link.is_symlink() and link.resolve() != path.resolve():
            link.unlink()
        if not link.is_symlink():
            link.symlink_to(path.resolve())
