"""What is worked out in a process beside the service: it needs torch and the model of the front, which take seconds.

Its functions are run by name in that process; what they take and return are plain values.
"""

import json
import os
import signal
import threading
from asyncio import wrap_future
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from time import sleep
from typing import Any, ParamSpec, TypeVar

from optimizer.service.settings import Settings
from storage.store import Store

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_KEPT = 4


class Aside:
    """One process that works out one thing after the other; a new one takes its place when it dies.

    Args:
        settings: of the service. niceness: added to the process's own, so that studies come first.
    """

    def __init__(self, settings: Settings, niceness: int) -> None:
        self._initial = (str(settings.roots[0]), niceness)
        self._pool = self._new()

    async def run(
        self, function: Callable[_Parameters, _Result], *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> _Result:
        """The function's result; its exceptions are raised here. Once more where the process died meanwhile."""
        pool = self._pool
        try:
            return await wrap_future(pool.submit(function, *args, **kwargs))
        except BrokenProcessPool:
            if self._pool is pool:
                self._pool = self._new()
            return await wrap_future(self._pool.submit(function, *args, **kwargs))

    def close(self) -> None:
        """End the process; what it is at is not waited for."""
        processes = list((self._pool._processes or {}).values())  # terminate_workers() comes with Python 3.14
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin, initargs=self._initial)


def _begin(directory: str, niceness: int) -> None:
    import optuna

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the service ends this process
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    os.chdir(directory)
    os.nice(niceness)
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _end_with(service: int) -> None:
    """A service that was killed tells nobody: its process must not stay behind."""
    while os.getppid() == service:
        sleep(1.0)
    os._exit(1)


@lru_cache(_KEPT)
def _store(url: str) -> Store:
    return Store.open(url)


@lru_cache(_KEPT)
def _results(url: str, study: str, revision: str) -> Any:
    from optimizer.results import results

    return results(_store(url), study)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a study has found, as the service hands it out.

    ``front`` is what ``mergefront front STUDY --format json`` prints, ``rows`` the same with ``--all``; UTF-8.
    """

    front: bytes
    rows: bytes
    hypervolume: float | None


def reading(url: str, study: str, revision: str) -> Reading:
    """Work out the front. ``revision`` is the study's as it is now: the same is not worked out again."""
    from optimizer.report.growth import growth

    found = _results(url, study, revision)
    values = growth(found).values
    return Reading(front=_json(found.front), rows=_json(found.rows), hypervolume=values[-1] if values else None)


def _json(rows: Sequence[Any]) -> bytes:
    return (json.dumps([r.to_json() for r in rows], indent=2) + "\n").encode()


@lru_cache(_KEPT)
def _findings(url: str, study: str, revision: str, pick: str | None) -> Any:
    from optimizer.report.findings import findings

    return findings(_store(url), study, pick=pick)


@lru_cache(_KEPT)
def report_html(url: str, study: str, revision: str, pick: str | None) -> str:
    """What ``mergefront report`` writes. Raises InputError for a pick that is wrong or that nothing meets."""
    from optimizer.report.page import page

    return page(_findings(url, study, revision, pick))


@lru_cache(_KEPT)
def figures_html(url: str, study: str, revision: str) -> str:
    """The front and the hypervolume's growth, as in the report, as a part of a page."""
    from optimizer.report.figures import Figure, fronts, hypervolume_curve
    from optimizer.report.growth import growth
    from optimizer.report.page import shown
    from optimizer.service.pages import environment

    found = _findings(url, study, revision, None)
    grown = growth(found.results)
    drawn: list[Figure] = [*fronts(found), *([hypervolume_curve(grown)] if grown.trials else [])]
    return environment().get_template("figure.html").render(figures=[shown(f) for f in drawn])


def to_export(url: str, study: str, revision: str, trial: int | None, pick: str | None, out: str) -> int:
    """The trial that shall be written to ``out``. Raises InputError where there is none such, or no room for it."""
    from optimizer.api import choose
    from optimizer.export import check_target

    check_target(Path(out), overwrite=False)
    found = _results(url, study, revision)
    return choose(_store(url), study, found, pick) if pick is not None else int(found.row(trial).trial)


def parsed(settings: Settings, text: str, is_json: bool) -> dict[str, Any]:
    """A study's spec as a document, screened, its paths absolute. Raises InputError with what is wrong."""
    from optimizer import yaml_lines
    from optimizer.service.screen import screened
    from optimizer.spec import read_spec
    from search_spaces.errors import InputError
    from storage import strict_json

    name = "the study"
    try:
        document, lines = (strict_json.parse(text), {}) if is_json else yaml_lines.load(text, name)
    except strict_json.JsonError as e:
        raise InputError(f"{name} must be JSON, but {e}.") from e
    root = settings.roots[0]
    spec = read_spec(document, lines, name=name, root=root, screen=lambda d: screened(settings, d))
    return spec.document()


def preflight(document: dict[str, Any]) -> dict[str, Any]:
    """What ``mergefront check`` finds: ``problems``, ``warnings``, ``facts``, ``vectors``."""
    from optimizer import api
    from optimizer.spec import from_document

    report = asdict(api.check(from_document(document)))
    del report["fingerprints"], report["files"]
    return report
