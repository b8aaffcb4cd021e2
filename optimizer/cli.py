"""The command line: a thin layer on :mod:`optimizer.api`.

Exit codes: 0 done; 1 the run failed; 2 the input was wrong; 130 interrupted, the study kept.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from optimizer import logs
from optimizer.endings import ending_of
from search_spaces.errors import InputError

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]
    from optimizer.results import Results, Row
    from optimizer.validate import Validation
    from optimizer.views import Views
    from storage.access import Token
    from storage.store import Summary

# What a command needs is imported inside it: listing studies must not pay for torch, Ray and BoTorch.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    logs.set_up(file=Path(options.log_file), as_json=options.log_format == "json")
    ending = ending_of(lambda: _do(options))
    return _say(ending.message, ending.code) if ending.message else ending.code


def _do(options: argparse.Namespace) -> int:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    command: Callable[[argparse.Namespace], int] = options.command
    return command(options)


def run() -> None:
    """The console script."""
    sys.exit(main())


def _say(message: object, code: int) -> int:
    print(f"mergefront: {_plain(message)}", file=sys.stderr)
    return code


def _plain(text: object) -> str:
    """For a terminal: what came out of files must not move its cursor or change its colours."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(text))


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


def _verify_swap(options: argparse.Namespace) -> int:
    from optimizer import api

    proof = api.verify_swap(options.spec)
    print(f"swapped, against a fresh engine: largest difference {proof.swapped:.3g} in {proof.answers} log-likelihoods")
    print(f"swapped back, against before: largest difference {proof.back:.3g}")
    return _say(proof.problem, 1) if proof.problem else 0


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
    from optimizer.costs import costs
    from optimizer.database import open_store, studies

    found = studies(storage=options.storage)
    if options.format == "json":
        with open_store(options.storage) as store:
            print(
                json.dumps([asdict(s) | {"costs": [asdict(c) for c in costs(store, s.name)]} for s in found], indent=2)
            )
        return 0
    show(_studies_table(found))
    return 0


def _suites_import(options: argparse.Namespace) -> int:
    from optimizer.suite_imports import import_suite, say

    files = [Path(file) for file in options.files]
    out = Path(options.out or f"{options.name}.jsonl")
    said = {"lang": options.lang, "label": options.label, "plain": options.plain}
    say(import_suite(options.name, files, out, **said))
    print(out)
    return 0


def _suites_list(options: argparse.Namespace) -> int:
    from rich import box
    from rich.table import Table

    from optimizer.data_sets import DATA_SETS

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("name", "data set", "languages", "licence", "measured by", "from"):
        table.add_column(name, overflow="fold")
    for d in DATA_SETS.values():
        table.add_row(d.name, d.title, d.languages, d.licence, d.scorer.replace("`", ""), d.source)
    show(table)
    return 0


def _studies_table(found: "Sequence[Summary]") -> object:
    """One line a study."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("study", "measured", "failed", "running", "planned", "begun (UTC)", "driven by"):
        table.add_column(name, justify="left" if name in ("study", "begun (UTC)", "driven by") else "right")
    for s in found:
        counts = (str(n) for n in (s.measured, s.failed, s.running, s.planned))
        table.add_row(s.name, *counts, s.created, s.driver or "")
    return table


def _front(options: argparse.Namespace) -> int:
    if options.format == "table":
        _show_front(options.study, options.storage, options)
        return 0
    from optimizer import api
    from optimizer.results import to_csv

    found = api.front(options.study, storage=options.storage)
    rows = _shown_rows(found, options)
    _say_standings(options.study, options.storage, sys.stderr, found)
    if options.format == "csv":
        print(to_csv(rows), end="")
        return 0
    more = _views(options, "search", [r.trial for r in rows])
    print(json.dumps([r.to_json() | more.to_json(r.trial) for r in rows], indent=2))
    return 0


def _validate(options: argparse.Namespace) -> int:
    from optimizer import api
    from optimizer.progress import watching

    with watching() as watcher:
        found = api.validate(options.study, storage=options.storage, watcher=watcher)
    more = _views(options, "report", [f.trial for f in found.finalists if "report" in f.splits])
    for text in found.warnings:
        print(f"warning: {text}", file=sys.stderr)
    if options.format == "json":
        standings = api.standings(options.study, storage=options.storage)
        document = found.to_json() | {"standings": [s.to_json() for s in standings]}
        document["finalists"] = [f | more.to_json(f["trial"]) for f in document["finalists"]]
        print(json.dumps(document, indent=2))
        return 0
    _show_validation(options, found, more)
    _say_standings(options.study, options.storage, sys.stdout)
    return 0


def _show_validation(options: argparse.Namespace, found: "Validation", more: "Views") -> None:
    from optimizer import api
    from optimizer.tables import validation_table

    if not found.picked:
        print("No merge meets the constraints on the validation split, so none is picked.", file=sys.stderr)
    recipes = {r.trial: r.recipe for r in api.front(options.study, storage=options.storage).rows}
    for table in [validation_table(found, recipes), *more.tables()]:
        show(table)
    print("\n".join(filter(None, [found.to_text(), api.repeat_noise(options.study, storage=options.storage)])))


def _report(options: argparse.Namespace) -> int:
    from optimizer import api

    figures = Path(options.figures) if options.figures else None
    for path in api.report(options.study, options.out, figures=figures, pick=options.pick, storage=options.storage):
        print(path)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from optimizer import api

    found = api.compare(options.study, options.a, options.b, storage=options.storage)
    print(json.dumps(found.to_json(), indent=2) if options.format == "json" else found.to_text())
    return 0


def _why(options: argparse.Namespace) -> int:
    from optimizer import api
    from optimizer.tables import pairs_text, why_table

    found = api.why(options.study, storage=options.storage)
    if options.format == "json":
        print(json.dumps(found.to_json(), indent=2))
        return 0
    if found.fallback:
        print(f"There is no model to ask, only weights: {found.fallback}.", file=sys.stderr)
    if not found.on_front:
        print(f"No merge of {options.study} is on the front: these are all merges.", file=sys.stderr)
    objectives = api.spec(options.study, storage=options.storage).optimised
    show(why_table(found, objectives))
    print("\n".join(pairs_text(found, objectives)))
    return 0


def _views(options: argparse.Namespace, split: str, trials: "Sequence[int]") -> "Views":
    """The views that the options ask for; empty where they ask for none."""
    from optimizer import api

    return api.views(
        options.study,
        split,
        trials,
        relative=options.relative,
        languages=options.languages,
        storage=options.storage,
    )


def _export(options: argparse.Namespace) -> int:
    from optimizer import api

    written = api.export(
        options.study,
        options.out,
        trial=options.trial,
        pick=options.pick,
        whole_front=options.front,
        slider=options.slider,
        overwrite=options.overwrite,
        push_to_hub=options.push_to_hub,
        private=options.private,
        storage=options.storage,
    )
    for path in written:
        print(path)
    if options.push_to_hub:
        print(f"uploaded to {options.push_to_hub}", file=sys.stderr)
    return 0


def _track(options: argparse.Namespace) -> int:
    from optimizer import api

    sent = api.track(
        options.study,
        mlflow=options.mlflow,
        experiment=options.experiment,
        wandb=options.wandb,
        storage=options.storage,
    )
    print(f"{sent} trials of {options.study} are there.", file=sys.stderr)
    return 0


def _serve(options: argparse.Namespace) -> int:
    from optimizer.database import absolute_url, storage_url
    from optimizer.service.server import serve
    from optimizer.service.settings import Settings, resolved_roots

    if options.at_once < 1:
        raise InputError(f"--at-once must be 1 or more, but got {options.at_once}.")
    settings = Settings(
        storage=absolute_url(storage_url(options.storage)),
        host=options.host,
        port=options.port,
        ray=options.ray,
        roots=resolved_roots(options.root),
        at_once=options.at_once,
        logs=Path(options.logs).absolute(),
        allow_code=options.allow_code,
        urls=tuple(options.allow_url),
    )
    if options.first_token:
        _first_token(settings.storage)
    serve(settings)
    return 0


def _first_token(storage: str) -> None:
    from optimizer.database import open_store

    with open_store(storage, create=True) as store:
        if not store.access.any_token():
            token = store.access.create("first", "operator")
            print(f"mergefront: the first operator's token, shown this once: {token}", file=sys.stderr, flush=True)


def _token(options: argparse.Namespace) -> int:
    from optimizer.database import open_store

    with open_store(options.storage, create=options.verb == "create") as store:
        if options.verb == "create":
            print(store.access.create(options.name, options.role))
            print("It is shown this once; only its digest is kept.", file=sys.stderr)
        elif options.verb == "revoke":
            store.access.revoke(options.name)
        else:
            show(_tokens_table(store.access.tokens()))
    return 0


def _tokens_table(found: "Sequence[Token]") -> object:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("name", "role", "made (UTC)", "revoked (UTC)"):
        table.add_column(name)
    for t in found:
        table.add_row(t.name, t.role, t.created, t.revoked or "")
    return table


def _backup(options: argparse.Namespace) -> int:
    from optimizer.database import storage_url
    from storage.backup import backup

    backup(storage_url(options.storage), Path(options.out))
    print(options.out)
    return 0


def _restore(options: argparse.Namespace) -> int:
    from optimizer.database import storage_url
    from storage.backup import restore

    restore(Path(options.file), storage_url(options.storage))
    return 0


def _say_standings(study: str, storage: str | None, file: TextIO, found: "Results | None" = None) -> None:
    """Whether the search beat what one would try anyway; always said."""
    from optimizer import api
    from optimizer.standing import standings_text

    print("\n".join(standings_text(api.standings(study, found=found, storage=storage))), file=file)


def _shown_rows(found: "Results", options: argparse.Namespace) -> "Sequence[Row]":
    """The rows that the options ask for, without the baselines that a table shows beside them."""
    if options.all:
        return found.rows
    if options.knee:
        return [found.knee] if found.knee is not None else []
    return found.front


def _show_front(study: str, storage: str | None, options: argparse.Namespace | None = None) -> None:
    from optimizer import api
    from optimizer.tables import front_table

    found = api.front(study, storage=storage)
    if found.fallback:
        print(f"The front is by {found.fallback}.", file=sys.stderr)
    for name in found.constant:
        print(f"{name} has told no merge from another: every trial scored the same.", file=sys.stderr)
    rows = found.front if options is None else _shown_rows(found, options)
    on_front = {r.trial for r in found.front}
    others = [r for r in found.baselines if r.trial not in on_front]
    if options is not None and options.all:
        others = []
        show(front_table(found, rows, f"Every measured trial of {study}"))
    else:
        if not found.front:
            print(f"No trial of {study} meets the constraints; --all shows every trial.", file=sys.stderr)
        if found.nearest:
            show(front_table(found, found.nearest, "None meets the constraints; these break them least"))
        knee = options is not None and options.knee
        show(front_table(found, rows, f"{'Knee of the front' if knee else 'Front'} of {study}"))
        show(front_table(found, others, "Baselines"))
    if options is not None:
        if options.plot:
            _plot_front(study, storage)
        for table in _views(options, "search", [r.trial for r in [*rows, *others]]).tables():
            show(table)
    _say_standings(study, storage, sys.stdout, found)
    notes = [api.early_end(study, storage=storage), api.repeat_noise(study, storage=storage)]
    if any(notes):
        print("\n".join(filter(None, notes)))


def _plot_front(study: str, storage: str | None) -> None:
    """Every plane of the front in characters."""
    from rich.console import Console
    from rich.text import Text

    from optimizer import api
    from optimizer.terminal_plot import plot

    console = Console()
    width = min(console.width, 110) if console.is_terminal else 110
    for figure in api.figures(study, storage=storage):
        show(Text.assemble(figure.title, "\n", plot(figure, width=width, height=26), "\n"))


def print_report(report: object) -> None:
    """Show a preflight report: tables on stdout, problems and warnings on stderr."""
    from optimizer.preflight import Report
    from optimizer.tables import check_tables

    assert isinstance(report, Report)
    if report.facts:
        for table in check_tables(report):
            show(table)
    for text in report.warnings:
        print(f"warning: {_plain(text)}", file=sys.stderr)
    for text in report.problems:
        print(f"problem: {_plain(text)}", file=sys.stderr)


def show(table: object) -> None:
    """Print a table on stdout."""
    from rich.console import Console

    # Names and languages come from files: brackets and colons in them are no markup.
    console = Console(markup=False, emoji=False)
    # A pipe has no width of its own; wrapped to 80 columns a table cannot be read or searched.
    (console if console.is_terminal else Console(markup=False, emoji=False, width=160)).print(table)


def _add_suites(commands: "_Commands") -> None:
    suites = commands.add_parser("suites", help="published data sets as suites")
    verbs = suites.add_subparsers(required=True, metavar="VERB")
    read = verbs.add_parser("import", help="make a suite of a data set's published files")
    read.add_argument("name", metavar="NAME", help="as `mergefront suites list` names it")
    read.add_argument("files", metavar="FILE", nargs="+", help="CSV, TSV, JSON, JSONL or Parquet, as published")
    read.add_argument("--out", metavar="FILE.jsonl", help="default: NAME.jsonl in the working directory")
    read.add_argument("--lang", default="", help="language of the files, where they do not say it")
    read.add_argument("--label", default="", choices=["harmful", "benign"], help="where the files do not say it")
    read.add_argument("--plain", action="store_true", help="prompts as plain texts; default: as turns of a chat")
    read.set_defaults(command=_suites_import)
    verbs.add_parser("list", help="the data sets that can be read").set_defaults(command=_suites_list)


def _add_serve(commands: "_Commands", storage: argparse.ArgumentParser) -> None:
    serve = commands.add_parser("serve", parents=[storage], help="studies for a team: an HTTP service with pages")
    serve.add_argument("--host", default="127.0.0.1", help="default: %(default)s; any other needs tokens")
    serve.add_argument("--port", type=int, default=8642, help="default: %(default)s; 0 takes a free one")
    serve.add_argument("--ray", metavar="ADDRESS", help="a running Ray cluster; default: Ray on this machine")
    serve.add_argument(
        "--root",
        metavar="DIR",
        action="append",
        default=[],
        help="studies read and exports are written below it alone; again for more (default: the working directory)",
    )
    serve.add_argument("--at-once", type=int, default=1, metavar="N", help="studies that run at a time (default: 1)")
    serve.add_argument("--logs", default="mergefront-logs", metavar="DIR", help="default: %(default)s")
    serve.add_argument("--allow-code", action="store_true", help="studies may name Python code to run")
    serve.add_argument(
        "--allow-url",
        metavar="URL",
        action="append",
        default=[],
        help="studies may fetch checkpoints from and ask judges at URLs below this; again for more",
    )
    serve.add_argument(
        "--first-token", action="store_true", help="where there is no token yet, make an operator's and print it once"
    )
    serve.set_defaults(command=_serve)
    token = commands.add_parser("token", help="who may use the service")
    verbs = token.add_subparsers(required=True, metavar="VERB", dest="verb")
    create = verbs.add_parser("create", parents=[storage], help="make a token, and print it once")
    create.add_argument("name", metavar="NAME")
    create.add_argument("--role", choices=["viewer", "operator"], default="viewer", help="default: %(default)s")
    verbs.add_parser("list", parents=[storage], help="every token that was made, without the tokens themselves")
    revoke = verbs.add_parser("revoke", parents=[storage], help="make a token worthless, at once")
    revoke.add_argument("name", metavar="NAME")
    token.set_defaults(command=_token)


def _add_runs(commands: "_Commands", storage: argparse.ArgumentParser) -> None:
    demo = commands.add_parser("demo", help="the whole job on a tiny family that it trains on the spot")
    demo.add_argument("--dir", default="demo", help="where family, study and exports go (default: demo)")
    demo.add_argument("--trials", type=int, metavar="N")
    demo.set_defaults(command=_demo)

    check = commands.add_parser("check", help="is this family mergeable, does it fit, how long will it take")
    check.add_argument("spec", metavar="SPEC")
    check.set_defaults(command=_check)

    verify = commands.add_parser("verify-swap", help="does a live engine give what a fresh one gives")
    verify.add_argument("spec", metavar="SPEC", help="a study file")
    verify.set_defaults(command=_verify_swap)

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


def _add_fronts(commands: "_Commands", storage: argparse.ArgumentParser) -> None:
    front = commands.add_parser("front", parents=[storage], help="the best merges found, and the baselines")
    front.add_argument("study", metavar="STUDY")
    front.add_argument("--format", choices=["table", "json", "csv"], default="table")
    shown = front.add_mutually_exclusive_group()
    shown.add_argument("--all", action="store_true", help="every measured trial, not only the front")
    shown.add_argument("--knee", action="store_true", help="only the merge where the front bulges most")
    front.add_argument("--plot", action="store_true", help="draw it in the terminal too")
    front.set_defaults(command=_front)

    validate = commands.add_parser("validate", parents=[storage], help="measure finalists on fresh items")
    validate.add_argument("study", metavar="STUDY")
    validate.add_argument("--format", choices=["table", "json"], default="table")
    validate.set_defaults(command=_validate)

    for command in (front, validate):
        command.add_argument("--relative", action="store_true", help="in relation to the base too")
        command.add_argument("--languages", action="store_true", help="by language too, the worst one named")


def _add_explanations(commands: "_Commands", storage: argparse.ArgumentParser) -> None:
    report = commands.add_parser(
        "report", parents=[storage], help="what to ship and why, as one page that needs no network"
    )
    report.add_argument("study", metavar="STUDY")
    report.add_argument("--out", required=True, metavar="FILE.html")
    report.add_argument("--figures", metavar="DIR", help="the figures as PNG and SVG too")
    report.add_argument(
        "--pick", metavar="EXPR", help="which merge to put forward; default: what the constraints suggest"
    )
    report.set_defaults(command=_report)

    compare = commands.add_parser("compare", parents=[storage], help="two trials on the same items, in words")
    compare.add_argument("study", metavar="STUDY")
    compare.add_argument("a", metavar="A", help="a trial's number, or a baseline such as uniform")
    compare.add_argument("b", metavar="B")
    compare.add_argument("--format", choices=["text", "json"], default="text")
    compare.set_defaults(command=_compare)

    why = commands.add_parser("why", parents=[storage], help="which checkpoints matter, and which pairs interfere")
    why.add_argument("study", metavar="STUDY")
    why.add_argument("--format", choices=["table", "json"], default="table")
    why.set_defaults(command=_why)


def _add_export(commands: "_Commands", storage: argparse.ArgumentParser) -> None:
    export = commands.add_parser("export", parents=[storage], help="write a merge as a Hugging Face model directory")
    export.add_argument("study", metavar="STUDY")
    which = export.add_mutually_exclusive_group(required=True)
    which.add_argument("--trial", type=int, metavar="N")
    which.add_argument("--pick", metavar="EXPR", help="'max general where safety >= 0.95', or 'knee'")
    which.add_argument("--front", action="store_true", help="every trial on the front, a directory each")
    which.add_argument("--slider", type=int, metavar="N", help="N merges spread evenly along the front")
    export.add_argument("--out", required=True, metavar="DIR")
    export.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    export.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload it too, to a Hugging Face repository")
    export.add_argument("--private", action="store_true", help="make that repository private")
    export.set_defaults(command=_export)


def _add_track(commands: "_Commands", storage: argparse.ArgumentParser) -> None:
    track = commands.add_parser("track", parents=[storage], help="tell MLflow or Weights & Biases about a study")
    track.add_argument("study", metavar="STUDY")
    whom = track.add_mutually_exclusive_group(required=True)
    whom.add_argument("--mlflow", metavar="URI", help="a tracking server, or a database such as sqlite:///mlflow.db")
    whom.add_argument("--wandb", metavar="[ENTITY/]PROJECT", help="WANDB_MODE and the rest of wandb's settings apply")
    track.add_argument("--experiment", default="mergefront", metavar="NAME", help="of MLflow (default: %(default)s)")
    track.set_defaults(command=_track)


def _add_backup(commands: "_Commands", storage: argparse.ArgumentParser) -> None:
    backup = commands.add_parser("backup", parents=[storage], help="copy a SQLite database, also while a study runs")
    backup.add_argument("--out", required=True, metavar="FILE")
    backup.set_defaults(command=_backup)

    restore = commands.add_parser("restore", parents=[storage], help="make a SQLite database out of a backup")
    restore.add_argument("file", metavar="FILE")
    restore.set_defaults(command=_restore)


def _parser() -> argparse.ArgumentParser:
    about = "Finds the merges of LLM checkpoints that trace the front of safety against general quality."
    parser = argparse.ArgumentParser(prog="mergefront", description=about)
    parser.add_argument("--log-file", default=logs.default_file(), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--log-format", choices=["text", "json"], default="text", help="of log file and stderr")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    storage = argparse.ArgumentParser(add_help=False)
    storage.add_argument(
        "--storage", metavar="URL", help="database; default MERGEFRONT_STORAGE or sqlite:///mergefront.db"
    )
    _add_runs(commands, storage)
    _add_suites(commands)
    _add_serve(commands, storage)
    _add_fronts(commands, storage)
    _add_explanations(commands, storage)
    _add_export(commands, storage)
    _add_track(commands, storage)
    _add_backup(commands, storage)
    return parser
