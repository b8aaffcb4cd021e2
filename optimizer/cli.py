"""The command line: a thin layer on :mod:`optimizer.api`.

Exit codes: 0 done; 1 the run failed; 2 the input was wrong; 130 interrupted, the study kept.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from search_spaces.errors import InputError

if TYPE_CHECKING:
    from storage.store import Summary

# What a command needs is imported inside it: listing studies must not pay for torch, Ray and BoTorch.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except InputError as e:
        return _say(e, 2)
    except KeyboardInterrupt:
        return _say("interrupted; the study is kept, `mergefront resume` goes on with it.", 130)
    except _run_errors() as e:
        return _say(e, 1)


def run() -> None:
    """The console script."""
    sys.exit(main())


def _run_errors() -> tuple[type[Exception], ...]:
    from sqlalchemy.exc import SQLAlchemyError

    from optimizer.api import StudyFailed
    from optimizer.export import ExportError
    from workers.pool import PoolError

    return (StudyFailed, ExportError, PoolError, SQLAlchemyError, OSError)


def _say(message: object, code: int) -> int:
    print(f"mergefront: {message}", file=sys.stderr)
    return code


def _demo(options: argparse.Namespace) -> int:
    from optimizer.demo.tour import TourFailed, tour

    if options.trials is not None and options.trials < 1:
        raise InputError(f"--trials must be 1 or more, but got {options.trials}.")
    try:
        tour(Path(options.dir), trials=options.trials)
    except TourFailed as e:
        return _say(e, 1)
    return 0


def _check(options: argparse.Namespace) -> int:
    from optimizer import api
    from optimizer.progress import watching

    with watching() as watcher:
        report = api.check(options.spec, watcher=watcher)
    print_report(report)
    return 2 if report.problems else 0


def _launch(options: argparse.Namespace) -> int:
    from optimizer import api
    from optimizer.progress import watching

    with watching() as watcher:
        study = api.launch(
            options.spec, trials=options.trials, storage=options.storage, ray=options.ray, watcher=watcher
        )
    _show_front(study, options.storage)
    return 0


def _resume(options: argparse.Namespace) -> int:
    from optimizer import api
    from optimizer.progress import watching

    with watching() as watcher:
        api.resume(
            options.study,
            trials=options.trials or 0,
            storage=options.storage,
            ray=options.ray,
            watcher=watcher,
        )
    _show_front(options.study, options.storage)
    return 0


def _studies(options: argparse.Namespace) -> int:
    from optimizer.database import studies

    found = studies(storage=options.storage)
    if options.format == "json":
        print(json.dumps([asdict(s) for s in found], indent=2))
        return 0
    show(_studies_table(found))
    return 0


def _studies_table(found: "Sequence[Summary]") -> object:
    """One line a study."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("study", "measured", "failed", "running", "planned", "begun (UTC)"):
        table.add_column(name, justify="left" if name in ("study", "begun (UTC)") else "right")
    for s in found:
        table.add_row(s.name, str(s.measured), str(s.failed), str(s.running), str(s.planned), s.created)
    return table


def _front(options: argparse.Namespace) -> int:
    if options.format == "table":
        _show_front(options.study, options.storage, everything=options.all)
        return 0
    from optimizer import api
    from optimizer.results import to_csv

    found = api.front(options.study, storage=options.storage)
    rows = found.rows if options.all else found.front
    print(
        json.dumps([r.to_json() for r in rows], indent=2) if options.format == "json" else to_csv(rows),
        end="",
    )
    if options.format == "json":
        print()
    return 0


def _validate(options: argparse.Namespace) -> int:
    from optimizer import api
    from optimizer.progress import watching
    from optimizer.tables import validation_table

    with watching() as watcher:
        found = api.validate(options.study, storage=options.storage, watcher=watcher)
    if options.format == "json":
        print(json.dumps(found.to_json(), indent=2))
        return 0
    if not found.picked:
        print("No merge meets the constraints on the validation split, so none is picked.", file=sys.stderr)
    recipes = {r.trial: r.recipe for r in api.front(options.study, storage=options.storage).rows}
    show(validation_table(found, recipes))
    return 0


def _export(options: argparse.Namespace) -> int:
    from optimizer import api

    written = api.export(
        options.study,
        options.out,
        trial=options.trial,
        pick=options.pick,
        whole_front=options.front,
        storage=options.storage,
    )
    for path in written:
        print(path)
    return 0


def _show_front(study: str, storage: str | None, *, everything: bool = False) -> None:
    from optimizer import api
    from optimizer.tables import front_table

    found = api.front(study, storage=storage)
    if found.fallback:
        print(f"The front is by {found.fallback}.", file=sys.stderr)
    if everything:
        show(front_table(found, found.rows, f"Every measured trial of {study}"))
        return
    if not found.front:
        print(f"No trial of {study} meets the constraints; --all shows every trial.", file=sys.stderr)
    on_front = {r.trial for r in found.front}
    show(front_table(found, found.front, f"Front of {study}"))
    show(front_table(found, [r for r in found.baselines if r.trial not in on_front], "Baselines"))


def print_report(report: object) -> None:
    """Show a preflight report: tables on stdout, problems and warnings on stderr."""
    from optimizer.preflight import Report
    from optimizer.tables import check_tables

    assert isinstance(report, Report)
    if report.facts:
        for table in check_tables(report):
            show(table)
    for text in report.warnings:
        print(f"warning: {text}", file=sys.stderr)
    for text in report.problems:
        print(f"problem: {text}", file=sys.stderr)


def show(table: object) -> None:
    """Print a table on stdout."""
    from rich.console import Console

    console = Console()
    # A pipe has no width of its own; wrapped to 80 columns a table cannot be read or searched.
    (console if console.is_terminal else Console(width=160)).print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mergefront", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    storage = argparse.ArgumentParser(add_help=False)
    storage.add_argument(
        "--storage", metavar="URL", help="database; default MERGEFRONT_STORAGE or sqlite:///mergefront.db"
    )

    demo = commands.add_parser("demo", help="the whole job on a tiny family that it trains on the spot")
    demo.add_argument("--dir", default="demo", help="where family, study and exports go (default: demo)")
    demo.add_argument("--trials", type=int, metavar="N")
    demo.set_defaults(command=_demo)

    check = commands.add_parser("check", help="is this family mergeable, does it fit, how long will it take")
    check.add_argument("spec", metavar="SPEC")
    check.set_defaults(command=_check)

    launch = commands.add_parser("launch", parents=[storage], help="start a study from its file")
    launch.add_argument("spec", metavar="SPEC")
    launch.add_argument("--trials", type=int, metavar="N")
    launch.add_argument("--ray", metavar="ADDRESS", help="a running Ray cluster; default: Ray on this machine")
    launch.set_defaults(command=_launch)

    resume = commands.add_parser("resume", parents=[storage], help="go on with a study where it stopped")
    resume.add_argument("study", metavar="STUDY")
    resume.add_argument("--trials", type=int, metavar="N", help="more trials than so far planned")
    resume.add_argument("--ray", metavar="ADDRESS")
    resume.set_defaults(command=_resume)

    studies = commands.add_parser("studies", parents=[storage], help="every study in the database")
    studies.add_argument("--format", choices=["table", "json"], default="table")
    studies.set_defaults(command=_studies)

    front = commands.add_parser("front", parents=[storage], help="the best merges found, and the baselines")
    front.add_argument("study", metavar="STUDY")
    front.add_argument("--format", choices=["table", "json", "csv"], default="table")
    front.add_argument("--all", action="store_true", help="every measured trial, not only the front")
    front.set_defaults(command=_front)

    validate = commands.add_parser("validate", parents=[storage], help="measure finalists on fresh items")
    validate.add_argument("study", metavar="STUDY")
    validate.add_argument("--format", choices=["table", "json"], default="table")
    validate.set_defaults(command=_validate)

    export = commands.add_parser("export", parents=[storage], help="write a merge as a Hugging Face model directory")
    export.add_argument("study", metavar="STUDY")
    which = export.add_mutually_exclusive_group(required=True)
    which.add_argument("--trial", type=int, metavar="N")
    which.add_argument("--pick", metavar="EXPR", help="such as 'max general where safety >= 0.95'")
    which.add_argument("--front", action="store_true", help="every trial on the front, a directory each")
    export.add_argument("--out", required=True, metavar="DIR")
    export.set_defaults(command=_export)
    return parser
