"""Starts what was asked for, a process each. What waits and what runs is in the database; a restart loses nothing."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

from optimizer.patience import UNREACHABLE, first_line
from optimizer.service.settings import Settings
from optimizer.service.work import environment
from storage.jobs import DIED, Job
from storage.lease import Holder
from storage.store import Store

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_TAIL = 2000


class Runner:
    """Starts waiting jobs, so many studies at a time, and one export. Children outlive it: each is its own session."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._children: dict[str, tuple[Job, subprocess.Popen[bytes]]] = {}
        self._told: set[str] = set()
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Look for work until cancelled."""
        while True:
            try:
                await asyncio.to_thread(self.look)
            except UNREACHABLE as e:
                _log.warning("the database is out of reach: %s", first_line(e))
            try:
                await asyncio.wait_for(self._wake.wait(), _LOOK_SECONDS)
            except TimeoutError:
                continue
            self._wake.clear()

    def wake(self) -> None:
        """There is something new to do."""
        self._wake.set()

    def look(self) -> None:
        """See who has ended, and start what there is room for."""
        self._bury()
        busy = {job.key: job for job, _ in self._children.values()} | {j.key: j for j in self._store.jobs.running()}
        for job in self._store.jobs.waiting():
            alike = sum((other.kind == "export") == (job.kind == "export") for other in busy.values())
            if job.key not in busy and alike < (1 if job.kind == "export" else self._settings.at_once):
                self._start(job)
                busy[job.key] = job

    def pause(self, job: Job | None, driver: Holder | None) -> bool:
        """Have a study's process pause, as SIGTERM does, once; False where it runs on another machine, or nowhere.

        A second signal would end it at once, and its running trials with it.
        """
        process = driver.pid if driver is not None and driver.here else job.process if job is not None else None
        if process is None:
            return False
        whom = str(driver) if driver is not None else job.key if job is not None else ""
        if whom not in self._told:
            os.kill(process, signal.SIGTERM)
            self._told.add(whom)
        return True

    def _bury(self) -> None:
        for key, (job, process) in list(self._children.items()):
            if process.poll() is None:
                continue
            del self._children[key]
            said = _tail(self._output(job))
            now = self._store.jobs.get(key)
            if now.ended is None:
                message = DIED if now.stage != "waiting" else f"its process did not begin: {said}"
                self._store.jobs.end(key, 1, message)

    def _start(self, job: Job) -> None:
        self._settings.logs.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "optimizer.service.work", job.key]
        command += ["--ray", self._settings.ray] if self._settings.ray else []
        with self._output(job).open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self._settings.roots[0],
                env=environment(self._settings.storage, self._settings.log_of(job.study)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._children[job.key] = (job, process)
        _log.info("process %d begins: %s", process.pid, job.kind, extra={"study": job.study})

    def _output(self, job: Job) -> Path:
        """What a job's process and its libraries print."""
        return self._settings.logs / f"{job.study}.{job.kind}.out"


def _tail(path: Path) -> str:
    """The last of a file, for a message."""
    try:
        return path.read_bytes()[-_TAIL:].decode(errors="replace").strip() or "it said nothing"
    except OSError as e:
        return str(e)
