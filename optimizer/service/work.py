"""One job in a process of its own, which outlives a restart of the service: ``python -m optimizer.service.work KEY``.

The database is named by MERGEFRONT_STORAGE, for its URL may hold a password and arguments can be read by anybody.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

from optimizer import logs
from optimizer.database import open_store, storage_url
from optimizer.endings import DONE, FAILED, INTERRUPTED, Ending, ending_of
from optimizer.patience import UNREACHABLE, first_line, patiently
from optimizer.watcher import Watcher
from storage.jobs import Job, Jobs
from storage.lease import Heartbeat, Holder

_REPORT_SECONDS = 1.0

_log = logging.getLogger("optimizer.service.work")  # this module runs as __main__


def main() -> int:
    """Do the job, unless somebody else has it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("key")
    parser.add_argument("--ray", metavar="ADDRESS")
    options = parser.parse_args()
    logs.set_up(file=Path(logs.default_file()), as_json=False)
    signal.signal(signal.SIGTERM, _interrupt)  # until the driver pauses on it
    with open_store() as store:
        holder = Holder.me()
        job = store.jobs.claim(options.key, holder)
        if job is None:
            return DONE
        with _signs_of_life(store.jobs, job.key, holder), _written_down(store.jobs, job) as done:
            work = _WORK[job.kind]
            done.ending = ending_of(lambda: work(job, options.ray, _watcher(store.jobs, job)))
        return done.ending.code


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _launch(job: Job, ray: str | None, watcher: Watcher) -> int:
    from optimizer import api
    from optimizer.spec import from_document

    spec = from_document(dict(job.request["spec"]))
    api.launch(spec, trials=job.request["trials"], ray=ray, watcher=watcher)
    return DONE


def _resume(job: Job, ray: str | None, watcher: Watcher) -> int:
    from optimizer import api

    api.resume(job.study, trials=job.request["trials"], ray=ray, watcher=watcher)
    return DONE


def _export(job: Job, _ray: str | None, watcher: Watcher) -> int:
    from optimizer import api

    api.export(job.study, job.request["out"], trial=job.request["trial"], watcher=watcher)
    return DONE


_WORK: Mapping[str, Callable[[Job, str | None, Watcher], int]] = {
    "launch": _launch,
    "resume": _resume,
    "export": _export,
}


@dataclass
class _Done:
    ending: Ending


@contextmanager
def _written_down(jobs: Jobs, job: Job) -> Iterator[_Done]:
    """How a job ended goes into the database, also where the error is ours."""
    done = _Done(ending=Ending(code=FAILED, message="its process ended early"))
    try:
        yield done
    finally:
        error = sys.exc_info()[1]
        if error is not None:
            about = f"internal error, {type(error).__name__}: {error} (traceback in the log)"
            done.ending = Ending(code=FAILED, message=about)
        message = "" if done.ending.code == INTERRUPTED else done.ending.message
        _log.info("the job ends with code %d: %s", done.ending.code, message or "well", extra={"study": job.study})
        patiently(lambda: jobs.end(job.key, done.ending.code, message))


@contextmanager
def _signs_of_life(jobs: Jobs, key: str, holder: Holder) -> Iterator[None]:
    heartbeat = Heartbeat(_softly(lambda: jobs.renew(key, holder)))
    try:
        yield
    finally:
        heartbeat.stop()


def _watcher(jobs: Jobs, job: Job) -> Watcher:
    """Says in the database how far the job is: every stage's begin and end, and once a second between."""
    last: dict[str, Any] = {"stage": "", "at": 0.0}

    def stage(name: str, done: int, total: int) -> None:
        if name == last["stage"] and done < total and monotonic() - last["at"] < _REPORT_SECONDS:
            return
        last.update(stage=name, at=monotonic())
        _softly(lambda: jobs.report(job.key, name, done, total))()

    return Watcher(stage=stage)


def _softly(action: Callable[[], None]) -> Callable[[], None]:
    """Where the database is away for a moment, the next time will do."""

    def run() -> None:
        try:
            action()
        except UNREACHABLE as e:
            _log.info("the job's row could not be written: %s", first_line(e))

    return run


def environment(storage: str | None, log: Path) -> dict[str, str]:
    """What a job's process is started with."""
    return os.environ | {"MERGEFRONT_STORAGE": storage_url(storage), "MERGEFRONT_LOG": str(log)}


if __name__ == "__main__":
    sys.exit(main())
