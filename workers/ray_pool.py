"""The Ray pool: one actor a worker. The only file that knows Ray."""

import logging
import os
import socket
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from search_spaces.errors import InputError
from storage.records import Assignment, Failed, Outcome
from workers.pool import PoolError
from workers.setup import Setup
from workers.worker import Worker

_RETRIES = 2
"""How often an assignment whose worker died is handed to another before it fails."""

_ANSWER_SECONDS = 10

_log = logging.getLogger(__name__)


class RayPool:
    """Actors on a local Ray or on a cluster; a dead actor is replaced and its trial handed out again.

    Args:
        count: how many workers, each with ``setup.threads`` CPUs, and one GPU where the device is CUDA.
        address: of a running cluster; None starts Ray on this machine and stops it at the end.
    """

    def __init__(self, setup: Setup, *, count: int, address: str | None = None) -> None:
        self._setup = setup
        self._started = _start(address, count * setup.threads)
        gpus = 1 if setup.device.startswith("cuda") else 0
        self._actor: Any = ray.remote(_Actor).options(
            num_cpus=setup.threads,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            runtime_env=_environment(setup),
        )
        self._idle: list[Any] = [self._actor.remote(setup) for _ in range(count)]
        self._running: dict[Any, tuple[Assignment, Any]] = {}
        self._attempts: dict[tuple[int, str], int] = {}
        self._deaths = 0
        self._count = count
        self._first_contact()

    @property
    def room(self) -> int:
        """Idle workers."""
        return len(self._idle)

    def submit(self, assignment: Assignment) -> None:
        """Hand it to an idle worker."""
        actor = self._idle.pop()
        self._running[actor.run.remote(assignment)] = (assignment, actor)

    def finished(self) -> list[Outcome]:
        """Wait for outcomes; a dead worker costs its trial one attempt."""
        outcomes: list[Outcome] = []
        while not outcomes and self._running:
            # All that are done, not only the first: ray.wait returns no more than num_returns.
            ray.wait(list(self._running), num_returns=1)
            done, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
            outcomes.extend(o for ref in done if (o := self._collect(ref)) is not None)
        return outcomes

    def close(self) -> None:
        """Kill the actors; stop Ray if this pool started it."""
        for actor in [*self._idle, *(actor for _, actor in self._running.values())]:
            ray.kill(actor)
        self._idle.clear()
        self._running.clear()
        if self._started:
            ray.shutdown()

    def process_ids(self) -> list[int]:
        """Process numbers of the idle workers on whatever node they are."""
        found: list[int] = ray.get([actor.ready.remote() for actor in self._idle])
        return found

    def _collect(self, ref: Any) -> Outcome | None:
        assignment, actor = self._running.pop(ref)
        try:
            outcome: Outcome = ray.get(ref)
        except RayActorError as e:
            return self._replace(assignment, e)
        self._idle.append(actor)
        self._deaths = 0
        return outcome

    def _replace(self, assignment: Assignment, error: RayActorError) -> Outcome | None:
        """A new worker for a dead one, and its assignment again, or a failure where it killed too many."""
        self._deaths += 1
        if self._deaths > 3 * self._count:
            raise PoolError(f"{self._deaths} workers died in a row, the last with: {_first_line(error)}") from error
        self._idle.append(self._actor.remote(self._setup))
        key = (assignment.number, assignment.split)
        self._attempts[key] = self._attempts.get(key, 0) + 1
        if self._attempts[key] > _RETRIES:
            reason = f"its worker died {self._attempts[key]} times: {_first_line(error)}"
            return Failed(number=assignment.number, recipe=assignment.recipe, split=assignment.split, reason=reason)
        _log.warning("trial %d: its worker died, handed out again (%s)", assignment.number, _first_line(error))
        self.submit(assignment)
        return None

    def _first_contact(self) -> None:
        """Wait until every worker has opened its models: what is wrong with the input shows here, before a trial."""
        try:
            self.process_ids()
        except RayError as e:
            self.close()
            cause = e.cause if isinstance(e, RayTaskError) else e
            if isinstance(cause, InputError):
                raise cause from e
            raise PoolError(f"the workers must start, but the first error was: {_first_line(e)}") from e


class _Actor:
    """The worker inside its Ray actor."""

    def __init__(self, setup: Setup) -> None:
        # Opening is a task of its own: an error in here would reach the driver as the text of a dead actor.
        self._setup = setup
        self._worker: Worker | None = None

    def open(self) -> Worker:
        if self._worker is None:
            self._worker = Worker(self._setup)
        return self._worker

    def ready(self) -> int:
        self.open()
        return os.getpid()

    def run(self, assignment: Assignment) -> Outcome:
        return self.open().run(assignment)


def _start(address: str | None, cpus: int) -> bool:
    """Connect to a cluster, or start Ray here with as many CPUs as the workers ask for; whether it was started."""
    # Ray reports usage to its makers by default; a study's machine has no business with that.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray.is_initialized():
        return False
    if address is not None:
        _require_answer(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init(num_cpus=max(cpus, 1), include_dashboard=False, **options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise InputError(f"--ray must be the address of a running Ray cluster, but {address}: {_first_line(e)}") from e
    return address is None


def _require_answer(address: str) -> None:
    """Ray itself would wait for minutes, and then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        if address == "auto":
            return
        raise InputError(f"--ray must be host:port, ray://host:port or auto, but got {address!r}.")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
    except OSError as e:
        raise InputError(
            f"--ray must be the address of a running Ray cluster, but nobody answers at {address}: {e}."
        ) from e


def _environment(setup: Setup) -> dict[str, Any]:
    """One thread count for every library of a worker: two that fight for a core are slower than one."""
    threads = str(setup.threads)
    return {
        "env_vars": {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
        }
    }


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
