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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer import compare as _compare
from optimizer import hub, loop
from optimizer import preflight as _preflight
from optimizer import validate as _validate
from optimizer import verify as _verify
from optimizer.baselines import starting_points
from optimizer.board import Board
from optimizer.compare import Comparison
from optimizer.costs import add_spent
from optimizer.database import open_store, studies
from optimizer.driver import holding, pausing, telling
from optimizer.export import check_target, export_several, export_trial
from optimizer.outlook import end_text
from optimizer.repeat import measure_repeat, repeat_text
from optimizer.report.findings import findings
from optimizer.results import Results, results, to_rows
from optimizer.results import choose as _choose
from optimizer.samplers import make_sampler
from optimizer.spec import Spec, from_document, load_spec
from optimizer.standing import Standing
from optimizer.standing import standings as _standings
from optimizer.study import DriverStudy, create_study, distributions_of, study_record
from optimizer.tracking.mlflow_runs import MlflowRuns
from optimizer.tracking.track import track as _track
from optimizer.tracking.tracker import Tracker
from optimizer.tracking.wandb_run import WandbRun
from optimizer.views import Views
from optimizer.views import views as _views
from optimizer.warm_start import ITEMS, NOTE, items_of, warm_start
from optimizer.watcher import NOBODY, Watcher
from optimizer.why import Why, of_study
from search_spaces.errors import InputError
from storage.errors import StoreError
from storage.file_records import FileRecord, FileRecords
from storage.records import FURTHER, SPLITS, Failed, Outcome
from storage.store import Store
from workers.canary import Proof
from workers.deadlines import Deadlines
from workers.pool import Pool
from workers.worker import pick_device

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas as pd

    from optimizer.report.figures import Scatter

_log = logging.getLogger(__name__)

__all__ = [
    "Study",
    "check",
    "compare",
    "early_end",
    "export",
    "figures",
    "front",
    "launch",
    "open_store",
    "repeat_noise",
    "report",
    "resume",
    "spec",
    "standings",
    "studies",
    "track",
    "validate",
    "verify_swap",
    "views",
    "why",
]

_PROOF = "verify_swap"
_FILES = "files"
"""The study's note of what its checkpoints' files were when it began."""


class StudyFailed(Exception):  # noqa: N818 (it is the study that failed)
    """No trial of the run could be measured; the study is kept."""


def check(study_file: str | Path | Spec, *, watcher: Watcher = NOBODY) -> _preflight.Report:
    """Preflight of a study file: problems, warnings, sizes, times."""
    return _preflight.check(_spec_of(study_file), timed=True, progress=watcher.stage)


def verify_swap(study_file: str | Path) -> Proof:
    """Hold a live engine that is swapped to the uniform merge against one that is started on it.

    Raises: InputError where the preflight finds a problem, or an engine does not start.
    """
    spec = load_spec(Path(study_file))
    report = _preflight.check(spec, timed=False, progress=NOBODY.stage)
    if report.problems:
        raise InputError("\n".join(report.problems))
    setup = spec.setup(device=pick_device(spec.workers.device))
    return _verify.verify_swap(setup, starting_points(spec)[0].recipe)


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
    _require_answer(ray)
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
        _create(store, spec, planned, report)
        with _else(lambda: _forget(store, spec.study)), holding(store, spec.study):
            _run(store, spec.study, ray, watcher)
    return spec.study


@contextmanager
def _else(undo: Callable[[], None]) -> Iterator[None]:
    """Where workers cannot start on the input, nothing has been spent, and nothing half-started stays behind."""
    try:
        yield
    except InputError:
        undo()
        raise


def _forget(store: Store, name: str) -> None:
    if not (store.measured(name) or store.failures(name)):
        store.delete(name, keep_jobs=True)


def _create(store: Store, spec: Spec, planned: int, report: _preflight.Report) -> None:
    """Write a new study with what must be known of it later, and what it starts from."""
    fingerprints = dict(report.fingerprints)
    items = items_of(spec)
    record = study_record(spec, trials=planned, fingerprints=fingerprints)
    start = warm_start(store, spec, record, items, planned=planned)
    create_study(store, spec, trials=planned, fingerprints=fingerprints)
    store.note(spec.study, ITEMS, items)
    store.note(spec.study, _FILES, _to_notes(report.files))
    if start is not None:
        store.note(spec.study, NOTE, start.to_json())
        _log.warning("%s", start.to_text())


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
        _require_answer(ray)
        _check_fingerprints(store, study)
        with holding(store, study):
            store.set_planned(study, record.planned + trials)
            with _else(lambda: store.set_planned(study, record.planned)):
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
        return of_study(store, study, spec, {n: m.recipe for n, m in store.measured(study).items()})


def early_end(study: str, *, storage: str | None = None) -> str:
    """In one line why a search stopped before its planned number of trials; empty where it did not."""
    with open_store(storage) as store:
        return end_text(store.notes(study))


def standings(study: str, *, found: Results | None = None, storage: str | None = None) -> tuple[Standing, ...]:
    """Whether the front beats the uniform average, the best single checkpoint, the greedy soup and the best slider.

    Args:
        found: what `front` returned, where it is at hand.
    """
    with open_store(storage) as store:
        return _standings(store, study, found or results(store, study))


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


class Study:
    """A study for a notebook: its front as a table and as a figure.

    Args:
        name: as `launch` returned it. storage: a database URL, as for every call.
    Raises: InputError where there is no such study.
    """

    def __init__(self, name: str, *, storage: str | None = None) -> None:
        self.name = name
        self._storage = storage
        with open_store(storage) as store:
            store.study(name)

    def front(self, *, everything: bool = False) -> "pd.DataFrame":
        """The front, best first, by trial; with ``everything`` each measured trial. Columns are those of the CSV.

        Raises: InputError where pandas is not installed (the extra ``notebook`` brings it).
        """
        try:
            import pandas as pd
        except ImportError as e:
            raise InputError("a front as a table needs pandas: pip install 'mergefront[notebook]'.") from e
        found = front(self.name, storage=self._storage)
        rows = to_rows(found.rows if everything else found.front)
        return pd.DataFrame(rows[1:], columns=rows[0]).set_index("trial")

    def plot(self) -> "matplotlib.figure.Figure":
        """The front's first figure, as matplotlib's; a notebook shows it as its cell's value.

        Raises: InputError where nothing is measured.
        """
        from optimizer.report import drawing

        planes = figures(self.name, storage=self._storage)
        if not planes:
            raise InputError(f"a front must have measured trials to be drawn, but {self.name} has none.")
        return drawing.draw(planes[-1])


def figures(study: str, *, storage: str | None = None) -> "list[Scatter]":
    """The planes that show a study's front, as data; empty before anything is measured."""
    from optimizer.report.figures import fronts

    with open_store(storage) as store:
        return fronts(findings(store, study))


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
    slider: int | None = None,
    overwrite: bool = False,
    push_to_hub: str | None = None,
    private: bool = False,
    storage: str | None = None,
    watcher: Watcher = NOBODY,
) -> list[Path]:
    """Write one trial, the trial that a pick expression chooses, the whole front, or a slider along it: so many merges
    spread evenly from the best by the first objective to the worst. Of several merges each gets a directory below
    ``out``, named in order and listed in `optimizer.export.FRONT` there.

    A pick goes by the validation split's means where the study has been validated, else by the posterior's. With
    ``overwrite`` an earlier export is replaced as soon as the new one is complete.

    With ``push_to_hub`` (``OWNER/NAME``) one merge is uploaded too, to a repository that is new or empty or, with
    ``overwrite``, holds an earlier export; ``private`` makes it private. Raises PushError where that cannot be done.
    """
    several = whole_front or slider is not None
    if (trial is not None) + (pick is not None) + whole_front + (slider is not None) != 1:
        raise InputError("an export takes one of --trial, --pick, --front and --slider.")
    _check_upload(push_to_hub, private=private, several=several)
    target = Path(out)
    with open_store(storage) as store:
        found = results(store, study)
        if several:
            rows = found.slider if slider is None else found.stops(slider)
            if not rows:
                raise InputError(f"a front must have merges to be exported, but {study} has none.")
            return export_several(store, study, rows, target, overwrite=overwrite)
        number = choose(store, study, found, pick) if pick is not None else found.row(trial or 0).trial
        check_target(target, overwrite=overwrite)
        repository = hub.prepare(push_to_hub, private=private, overwrite=overwrite) if push_to_hub is not None else None
        public = repository is not None
        export_trial(store, study, number, target, overwrite=overwrite, for_others=public, progress=watcher.stage)
        if repository is not None:
            hub.push(target, repository, title=f"{study}, trial {number}, merged by mergefront")
        return [target]


def _check_upload(push_to_hub: str | None, *, private: bool, several: bool) -> None:
    if push_to_hub is not None and several:
        raise InputError("a repository holds one merge: --push-to-hub goes with --trial or --pick.")
    if private and push_to_hub is None:
        raise InputError("--private is about a repository, and goes with --push-to-hub.")


def track(
    study: str,
    *,
    mlflow: str | None = None,
    experiment: str = "mergefront",
    wandb: str | None = None,
    storage: str | None = None,
) -> int:
    """Tell an experiment tracker what has happened in a study, and while it is driven what happens.

    Args:
        mlflow: a tracking URI; ``experiment`` is the name there. wandb: ``PROJECT`` or ``ENTITY/PROJECT``.
    Returns: how many trials it was told of.
    Raises: InputError unless one of the two is named; TrackerError where it cannot be had.
    """
    if (mlflow is None) == (wandb is None):
        raise InputError("a study is told to one tracker at a time: --mlflow or --wandb.")
    tracker: Tracker = MlflowRuns(mlflow, experiment) if mlflow is not None else WandbRun(wandb or "")
    with open_store(storage) as store:
        return _track(store, study, tracker)


def choose(store: Store, study: str, found: Results, pick: str) -> int:
    """The trial that a pick expression chooses: among validated finalists where there are any, else on the front."""
    return _choose(found, store.measured(study, "validation"), pick)


def _run(store: Store, name: str, ray: str | None, watcher: Watcher) -> None:
    """Drive a study that this process holds. Raises KeyboardInterrupt where it was paused before its end."""
    study = DriverStudy(store, name)
    if not study.wants_more():
        return
    outcomes: list[bool] = []
    with _workers(store, study.spec, ray, watcher) as pool, pausing() as pause, telling(store, name, pool.workers):
        _, failed, planned = study.counts()
        before = [*store.measured(name).values(), *store.measured(name, FURTHER).values()]
        board = Board(study.spec, planned=planned, measured=before, failed=failed, workers=pool.workers)
        watcher.board(board)

        def seen(outcome: Outcome) -> None:
            outcomes.append(not isinstance(outcome, Failed))
            board.add(outcome)
            watcher.outcome(outcome)
            watcher.stage("trials", sum(study.counts()[:2]), study.planned)

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


def _require_answer(ray: str | None) -> None:
    """Whether there is a cluster, before anything is written down."""
    if ray is not None:
        from workers.ray_pool import require_answer

        require_answer(ray)


@contextmanager
def _workers(store: Store, spec: Spec, ray: str | None, watcher: Watcher) -> Iterator[Pool]:
    from workers.ray_pool import RayPool  # Ray takes a second to import: only what runs trials pays it

    # A cluster's machines need not be like this one.
    device = pick_device(spec.workers.device) if ray is None else spec.workers.device
    told = spec.workers.count if isinstance(spec.workers.count, int) else None
    count = _preflight.worker_count(spec) if ray is None else told
    watcher.stage("starting workers", 0, count or 1)
    deadlines = Deadlines()
    for split in (*SPLITS, FURTHER):
        for measured in store.measured(spec.study, split).values():
            deadlines.saw(split, measured.seconds["total"])
    uniform = starting_points(spec)[0].recipe
    setup = replace(
        spec.setup(device=device),
        verdicts=store.verdicts() if spec.judged else {},
        fingerprints=store.study(spec.study).fingerprints,
        files=_from_notes(store.notes(spec.study)),
    )
    # An engine that is swapped by another program's code is held against a fresh one, once a study.
    prove = _verify.verify_swap if spec.workers.engine == "vllm" and _PROOF not in store.notes(spec.study) else None
    most = spec.search.parallel if isinstance(spec.search.parallel, int) else None
    pool = RayPool(setup, count=count, most=most, address=ray, canary=uniform, deadlines=deadlines, prove=prove)
    if pool.proof is not None:
        store.note(spec.study, _PROOF, asdict(pool.proof))
    store.note(spec.study, "engines", {worker: asdict(facts) for worker, facts in pool.engines.items()})
    started = sum(map(bool, pool.process_ids()))
    watcher.stage("starting workers", started, started)
    try:
        yield pool
    finally:
        pool.close()
        add_spent(store, spec.study, pool.spent, pool.gpus)


def _spec_of(study_file: str | Path | Spec) -> Spec:
    return study_file if isinstance(study_file, Spec) else load_spec(Path(study_file))


def _check_sampler(spec: Spec) -> None:
    """Whether the sampler can search what the study asks for; better now than at its first proposal."""
    try:
        make_sampler(spec.search.sampler, seed=spec.search.seed, space=distributions_of(spec.space))
    except ValueError as e:
        raise InputError(f"search.sampler: {e}") from e
    ranges = {o.name: (o.maximise, o.bounds) for o in spec.optimised}
    if spec.search.sampler == "cmaes" and len(set(ranges.values())) > 1:
        found = ", ".join(f"{name} {_range_text(*of)}" for name, of in ranges.items())
        raise InputError(
            "search.sampler: cmaes searches one number, the plain mean of the objectives, so these must share range "
            f"and direction, but got {found}; the other samplers need no mean."
        )


def _range_text(maximise: bool, bounds: tuple[float, float] | None) -> str:
    within = f"in [{bounds[0]:g}, {bounds[1]:g}]" if bounds else "without bounds"
    return f"{within}, {'more' if maximise else 'less'} is better"


def _check_fingerprints(store: Store, study: str) -> None:
    """A study goes on only with the checkpoints that it began with. Every file is read."""
    from storage.checkpoints import Checkpoint

    record, began = store.study(study), _from_notes(store.notes(study))
    for source in from_document(dict(record.spec)).sources:
        Checkpoint(source).require(record.fingerprints[source.name], began.get(source.name))


def _to_notes(files: Mapping[str, FileRecords]) -> dict[str, Any]:
    return {name: {file: r.to_json() for file, r in records.items()} for name, records in files.items()}


def _from_notes(notes: Mapping[str, Any]) -> dict[str, FileRecords]:
    """Empty for a study that an older version began."""
    return {
        name: {file: FileRecord(**record) for file, record in records.items()}
        for name, records in notes.get(_FILES, {}).items()
    }


def _positive(trials: int | None, default: int) -> int:
    if trials is not None and trials < 1:
        raise InputError(f"--trials must be 1 or more, but got {trials}.")
    return default if trials is None else trials
