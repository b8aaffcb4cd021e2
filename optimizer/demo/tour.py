"""The demo: train the family, then run what a user would run, one command after the other."""

import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console

from optimizer import api, cli
from optimizer.demo.family import make_family
from optimizer.progress import watching
from optimizer.tables import summary_table
from search_spaces.errors import InputError

PICK = "max general where safety >= 0.9"
_STUDY = "demo"


class TourFailed(Exception):  # noqa: N818 (it is the tour that failed)
    """One of the demo's commands did not end well."""


def tour(directory: Path, *, trials: int | None) -> None:
    """Make the family below ``directory``, search it, validate, export, and show what came of it.

    A second tour trains nothing and goes on with the study that is there.
    """
    with watching() as watcher:
        study_file = make_family(directory, progress=watcher.stage)
    storage = f"sqlite:///{directory}/mergefront.db"
    _run("check", str(study_file))
    _search(study_file, storage, trials)
    _run("validate", _STUDY, "--storage", storage)
    out = directory / "picked"
    if (out / "merge_recipe.json").is_file():
        shutil.rmtree(out)  # an export of an earlier tour
    pick = _pick(storage)
    _run("export", _STUDY, "--storage", storage, "--pick", pick, "--out", str(out))
    report = directory / "report.html"
    _run("report", _STUDY, "--storage", storage, "--pick", pick, "--out", str(report))
    _conclude(storage, pick, out, report)


def _search(study_file: Path, storage: str, trials: int | None) -> None:
    """Launch the study, or go on with the one that is there."""
    with api.open_store(storage, create=True) as store:
        planned = {s.name: s.planned for s in store.studies()}.get(_STUDY)
    if planned is None:
        _run("launch", str(study_file), "--storage", storage, *(["--trials", str(trials)] if trials else []))
    else:
        more = max((trials or 0) - planned, 0)
        _run("resume", _STUDY, "--storage", storage, *(["--trials", str(more)] if more else []))


def _pick(storage: str) -> str:
    """The demo's pick, or the safest merge where so short a search has found none that meets it."""
    with api.open_store(storage) as store:
        try:
            api.choose(store, _STUDY, api.front(_STUDY, storage=storage), PICK)
        except InputError as e:
            print(e, file=sys.stderr)
            return "max safety"
    return PICK


def _run(*arguments: str) -> None:
    """Show a command as a user would type it, then run it."""
    print(f"\n$ mergefront {shlex.join(arguments)}", flush=True)
    code = cli.main(arguments)
    if code:
        raise TourFailed(f"every command of the demo must end well, but {arguments[0]} ended with code {code}.")


def _conclude(storage: str, pick: str, out: Path, report: Path) -> None:
    """The ten-second table, and what to do next."""
    with api.open_store(storage) as store:
        found = api.front(_STUDY, storage=storage)
        chosen = api.choose(store, _STUDY, found, pick)
        reported = store.measured(_STUDY, "report")
    cli.show(summary_table(found, chosen, reported))
    Console(highlight=False, soft_wrap=True).print(
        f"The merge is an ordinary model directory:\n"
        f'  transformers.AutoModelForCausalLM.from_pretrained("{out}")\n'
        f"The whole story:      open {report} in a browser\n"
        f"See all of it:        mergefront front {_STUDY} --all --storage {storage}\n"
        f"Search on:            mergefront resume {_STUDY} --trials 20 --storage {storage}\n"
        f"Your own checkpoints: copy {out.parent}/study.yaml and change the paths.",
        markup=False,
    )
