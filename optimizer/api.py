"""The Python interface: what the command line does, as a handful of calls.

    from optimizer.api import launch, resume, front, validate, export

    study = launch("study.yaml")                    # preflight, then the search; returns the study's name
    resume(study, trials=20)                        # twenty more
    for row in front(study).front: print(row.trial, row.objectives)
    export(study, "out/model", pick="max general where safety >= 0.95")

``storage`` is a database URL; it defaults to ``MERGEFRONT_STORAGE``, else ``sqlite:///mergefront.db`` in the working
directory. Wrong input raises :class:`search_spaces.errors.InputError`: its message says the rule, then the values.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from optuna.samplers import RandomSampler

from optimizer import compare as _compare
from optimizer import loop
from optimizer import preflight as _preflight
from optimizer import validate as _validate
from optimizer.baselines import starting_points
from optimizer.compare import Comparison
from optimizer.database import open_store, studies
from optimizer.driver import holding, pausing
from optimizer.export import check_target, export_trial
from optimizer.repeat import measure_repeat, repeat_text
from optimizer.report.findings import findings
from optimizer.results import Results, results
from optimizer.results import choose as _choose
from optimizer.samplers import make_sampler
from optimizer.spec import Spec, from_document, load_spec
from optimizer.study import DriverStudy, create_study
from optimizer.views import Views
from optimizer.views import views as _views
from optimizer.watcher import NOBODY, Watcher
from optimizer.why import Why
from optimizer.why import why as _why
from search_spaces.errors import InputError
from storage.errors import StoreError
from storage.records import SPLITS, Failed, Outcome
from storage.store import Store
from workers.deadlines import Deadlines
from workers.pool import Pool
from workers.worker import pick_device

_log = logging.getLogger(__name__)

__all__ = [
    "check",
    "compare",
    "export",
    "front",
    "launch",
    "open_store",
    "repeat_noise",
    "report",
    "resume",
    "spec",
    "studies",
    "validate",
    "views",
    "why",
]


class StudyFailed(Exception):  # noqa: N818 (it is the study that failed)
    """No trial of the run could be measured; the study is kept."""


def check(study_file: str | Path | Spec, *, watcher: Watcher = NOBODY) -> _preflight.Report:
    """Preflight of a study file: problems, warnings, sizes, times."""
    return _preflight.check(_spec_of(study_file), timed=True, progress=watcher.stage)


def launch(
    study_file: str | Path | Spec,
    *,
    trials: int | None = None,
    storage: str | None = None,
    ray: str | None = None,
    watcher: Watcher = NOBODY,
) -> str:
    """Start a study from its file and run it to its end; returns its name.

    Args:
        study_file: its path, or what was read of one. trials: in place of the file's number.
        ray: address of a cluster, None for Ray on this machine.
    Raises: InputError where the preflight finds a problem or the study exists; PoolError where no worker is left.
    """
    spec = _spec_of(study_file)
    planned = _positive(trials, spec.search.trials)
    _check_sampler(spec)
    with open_store(storage, create=True) as store:
        if spec.study in {s.name for s in store.studies()}:
            raise StoreError(
                f"study names must be unique in a database, but there is a study {spec.study!r} already; "
                f"`mergefront resume {spec.study}` goes on with it."
            )
        report = _preflight.check(spec, timed=False, progress=watcher.stage)
        if report.problems:
            raise InputError("\n".join(report.problems))
        for warning in report.warnings:
            _log.warning(warning)
        create_study(store, spec, trials=planned, fingerprints=dict(report.fingerprints))
        with holding(store, spec.study):
            _run(store, spec.study, ray, watcher)
    return spec.study


def resume(
    study: str,
    *,
    trials: int = 0,
    storage: str | None = None,
    ray: str | None = None,
    watcher: Watcher = NOBODY,
) -> None:
    """Go on with a study where it stopped, with ``trials`` more than so far planned."""
    if trials < 0:
        raise InputError(f"--trials must be the number of trials to add, but got {trials}.")
    with open_store(storage) as store:
        record = store.study(study)
        _check_fingerprints(store, study)
        with holding(store, study):
            store.set_planned(study, record.planned + trials)
            _run(store, study, ray, watcher)


def front(study: str, *, storage: str | None = None) -> Results:
    """What the study has found: every measured trial and the front among them."""
    with open_store(storage) as store:
        return results(store, study)


def spec(study: str, *, storage: str | None = None) -> Spec:
    """The study file that a study was made from, as it was read."""
    with open_store(storage) as store:
        return from_document(dict(store.study(study).spec))


def compare(study: str, a: str | int, b: str | int, *, storage: str | None = None) -> Comparison:
    """Trial a against trial b, each a number or a baseline's name, on the freshest items that both answered."""
    with open_store(storage) as store:
        return _compare.compare(store, study, str(a), str(b))


def views(
    study: str,
    split: str,
    trials: Sequence[int],
    *,
    relative: bool = False,
    languages: bool = False,
    storage: str | None = None,
) -> Views:
    """Figures of some trials relative to the base, or by language."""
    with open_store(storage) as store:
        return _views(store, study, split, trials, relative=relative, languages=languages)


def why(study: str, *, storage: str | None = None) -> Why:
    """What each checkpoint does to the front, what could be left out, and which pairs interfere."""
    with open_store(storage) as store:
        spec = from_document(dict(store.study(study).spec))
        checkpoints = {c.name for c in spec.checkpoints}
        recipes = {n: m.recipe for n, m in store.measured(study).items() if set(m.recipe.weights) <= checkpoints}
        merges = {number: recipe.mean_weights() for number, recipe in recipes.items()}
        objectives = [o.name for o in spec.optimised]
        return _why(store.optuna_study(study, RandomSampler(seed=0)), objectives, merges)


def repeat_noise(study: str, *, storage: str | None = None) -> str:
    """In one line what differs when one merge is measured twice; empty before that was tried."""
    with open_store(storage) as store:
        return repeat_text(store.notes(study))


def validate(study: str, *, storage: str | None = None, watcher: Watcher = NOBODY) -> _validate.Validation:
    """Measure the finalists on items that the search has never seen."""
    with open_store(storage) as store:
        _check_fingerprints(store, study)
        spec = results(store, study).spec
        with _workers(store, spec, None, watcher) as pool:
            return _validate.validate(store, study, pool, watcher)


def report(
    study: str,
    out: str | Path,
    *,
    figures: str | Path | None = None,
    pick: str | None = None,
    storage: str | None = None,
) -> list[Path]:
    """Write a study's report to the file ``out``, and its figures as PNG and SVG below ``figures``; returns the files.

    ``pick`` says which merge it puts forward, as for `export`; None takes what the constraints suggest.
    """
    from optimizer.report import drawing, page
    from optimizer.report.figures import figures as of_study

    target = Path(out)
    if target.is_dir():
        raise InputError(f"--out must be a file, but {target} is a directory.")
    with open_store(storage) as store:
        found = findings(store, study, pick=pick)
    page.write_page(found, target)
    return [target, *(drawing.save(of_study(found), Path(figures)) if figures else [])]


def export(
    study: str,
    out: str | Path,
    *,
    trial: int | None = None,
    pick: str | None = None,
    whole_front: bool = False,
    overwrite: bool = False,
    storage: str | None = None,
    watcher: Watcher = NOBODY,
) -> list[Path]:
    """Write one trial, the trial that a pick expression chooses, or the whole front (a directory each below ``out``).

    A pick goes by the validation split's means where the study has been validated, else by the posterior's. With
    ``overwrite`` an earlier export is replaced as soon as the new one is complete.
    """
    if (trial is not None) + (pick is not None) + whole_front != 1:
        raise InputError("an export takes one of --trial, --pick and --front.")
    target = Path(out)
    with open_store(storage) as store:
        found = results(store, study)
        if whole_front:
            if target.exists() and not overwrite:
                raise InputError(f"the directory to write must not exist, but {target} does.")
            rows = [r for r in found.merges if r.on_front]
            if not rows:
                raise InputError(f"a front must have merges to be exported, but {study} has none.")
            directories = {r.trial: target / f"trial-{r.trial}" for r in rows}
            for directory in directories.values():
                check_target(directory, overwrite=overwrite)
            return [
                export_trial(store, study, n, d, overwrite=overwrite, progress=watcher.stage)
                for n, d in directories.items()
            ]
        number = choose(store, study, found, pick) if pick is not None else found.row(trial or 0).trial
        return [export_trial(store, study, number, target, overwrite=overwrite, progress=watcher.stage)]


def choose(store: Store, study: str, found: Results, pick: str) -> int:
    """The trial that a pick expression chooses: among validated finalists where there are any, else on the front."""
    return _choose(found, store.measured(study, "validation"), pick)


def _run(store: Store, name: str, ray: str | None, watcher: Watcher) -> None:
    """Drive a study that this process holds. Raises KeyboardInterrupt where it was paused before its end."""
    study = DriverStudy(store, name)
    if not study.wants_more():
        return
    outcomes: list[bool] = []

    def seen(outcome: Outcome) -> None:
        outcomes.append(not isinstance(outcome, Failed))
        watcher.outcome(outcome)
        watcher.stage("trials", sum(study.counts()[:2]), study.planned)

    with _workers(store, study.spec, ray, watcher) as pool, pausing() as pause:
        watcher.stage("trials", sum(study.counts()[:2]), study.planned)
        loop.search(study, pool, seen, pause)
        study.close()
        if not pause():
            measure_repeat(store, name, pool)
    if pause() and study.wants_more():
        raise KeyboardInterrupt
    if outcomes and not any(outcomes):
        reasons = store.failures(name)
        raise StudyFailed(
            f"at least one trial must be measurable, but all failed; the last: {list(reasons.values())[-1][-1]}"
        )


@contextmanager
def _workers(store: Store, spec: Spec, ray: str | None, watcher: Watcher) -> Iterator[Pool]:
    from workers.ray_pool import RayPool  # Ray takes a second to import: only what runs trials pays it

    device, count = pick_device(spec.workers.device), _preflight.worker_count(spec)
    watcher.stage("starting workers", 0, count)
    deadlines = Deadlines()
    for split in SPLITS:
        for measured in store.measured(spec.study, split).values():
            deadlines.saw(split, measured.seconds["total"])
    uniform = starting_points(spec)[0].recipe
    setup = replace(spec.setup(device=device), verdicts=store.verdicts() if spec.judged else {})
    pool = RayPool(setup, count=count, address=ray, canary=uniform, deadlines=deadlines)
    watcher.stage("starting workers", count, count)
    try:
        yield pool
    finally:
        pool.close()


def _spec_of(study_file: str | Path | Spec) -> Spec:
    return study_file if isinstance(study_file, Spec) else load_spec(Path(study_file))


def _check_sampler(spec: Spec) -> None:
    try:
        make_sampler(spec.search.sampler, seed=spec.search.seed)
    except ValueError as e:
        raise InputError(f"search.sampler: {e}") from e


def _check_fingerprints(store: Store, study: str) -> None:
    """A study goes on only with the checkpoints that it began with."""
    from storage.checkpoints import Checkpoint

    record = store.study(study)
    for source in from_document(dict(record.spec)).sources:
        found = Checkpoint(source)
        if found.fingerprint != record.fingerprints[source.name]:
            raise InputError(
                f"a checkpoint must be what it was when the study began, but {source.name} ({found.path}) has changed."
            )


def _positive(trials: int | None, default: int) -> int:
    if trials is not None and trials < 1:
        raise InputError(f"--trials must be 1 or more, but got {trials}.")
    return default if trials is None else trials
