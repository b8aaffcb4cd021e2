"""The Ray pool: one actor a worker. The only file that knows Ray."""

import logging
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from search_spaces.errors import InputError
from search_spaces.recipe import Recipe
from storage.records import Assignment, Failed, Measured, Outcome
from workers.canary import Canary, Proof
from workers.code_version import code_version
from workers.deadlines import Deadlines
from workers.engine import Facts
from workers.errors import EngineDied
from workers.pool import Busy, PoolError, described
from workers.setup import Setup
from workers.worker import Worker

_RETRIES = 2
"""How often an assignment whose worker died is handed to another before it fails."""

_FAULTS = 3
"""How many different trials a worker may fail in a row, by dying, hanging or an error of ours, before it is retired."""

_ANSWER_SECONDS = 10
_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS
"""How HTTP/2, which Ray speaks, begins (RFC 9113, 3.4): the server's first frame must be its settings too."""

_PATIENCE_SECONDS = 60
_LOOK_UP_SECONDS = 10
"""How often the driver looks up while it has no worker at all: it may have been told to pause."""

_ENDLESS = 1_000_000

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Slot:
    """A worker's place: the actor that is there now, and how it has done.

    ``machine`` is its host, ``node`` Ray's number of it; both are empty until there is room for it somewhere. ``met``
    is whether there ever was, ``since`` when the actor of now got there. ``faults`` are trials it failed in a row,
    ``told`` is how many of the judges' new verdicts it has heard of.
    """

    actor: Any
    machine: str = "?"
    node: str = ""
    pid: int = 0
    met: bool = False
    facts: Facts | None = None
    faults: set[object] = field(default_factory=set)
    since_canary: int = 0
    told: int = 0
    since: float | None = None

    def __str__(self) -> str:
        return f"{self.machine}:{self.pid}"


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What a slot is doing: a trial, or (without one) opening its models and its canary; or it has no place yet."""

    slot: _Slot
    begun: float
    assignment: Assignment | None = None

    @property
    def placed(self) -> bool:
        """Whether its process runs somewhere."""
        return bool(self.slot.node)


class RayPool:
    """Actors on a local Ray or on a cluster.

    A worker that dies or hangs is replaced and its trial handed out again; one that fails three different trials in a
    row, or whose merges cannot be reproduced, is retired, and the others go on. PoolError is raised where none is left.
    A worker whose machine leaves the cluster has done nothing wrong: its trial goes to another, and its place waits for
    a machine. One whose machine has another mergefront than the driver is retired before it is told anything. The place
    of a retired worker is not used again; Ray would give it to whoever waits for one, so who gets it keeps it.

    Args:
        count: how many workers, each with ``setup.threads`` CPUs, and where the device is CUDA one GPU, for every
            process of its engine. Those that the cluster has no room for wait until it has. None: as many as there is
            room for at any time, also on machines that join later.
        most: never more than so many.
        address: of a running cluster; None starts Ray on this machine and stops it at the end.
        canary: a recipe that each worker merges and asks when it starts and every ``canary_every`` trials; all must
            agree about it. deadlines: how long a trial may take.
        prove: runs first, where and with what a worker will run. A problem ends the start as InputError; without one
            its canary is what each worker's must be.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        count: int | None,
        most: int | None = None,
        address: str | None = None,
        canary: Recipe | None = None,
        canary_every: int = 50,
        deadlines: Deadlines | None = None,
        prove: Callable[[Setup, Recipe], Proof] | None = None,
    ) -> None:
        self._canary = canary
        self._canary_every = canary_every
        self._deadlines = deadlines or Deadlines()
        self._setup = setup
        self._started = _start(address, (count or 1) * setup.threads * setup.tensor_parallel)
        self._slots: list[_Slot] = []
        self._idle: list[_Slot] = []
        self._jobs: dict[Any, _Job] = {}
        self._waiting: list[Assignment] = []
        self._attempts: Counter[tuple[int, str]] = Counter()
        self._retired = ""
        self._spoilt: Counter[str] = Counter()
        self._keepers: list[Any] = []
        self._verdicts: list[tuple[str, Mapping[str, Any]]] = []
        self._spent = dict.fromkeys(("alive", "opening", "measured", "failed"), 0.0)
        self.proof = None if prove is None or canary is None else self._proven(prove, canary)
        self._reference = None if self.proof is None else self.proof.merge
        self._actor: Any = ray.remote(_Actor).options(
            scheduling_strategy="SPREAD", max_restarts=0, max_task_retries=0, **_resources(setup)
        )
        self._told: Any = ray.put(setup)
        self.gpus = _needs(setup).get("GPU", 0.0)
        """How many GPUs each worker has."""
        self._grows = count is None
        self._most = min(most or _ENDLESS, count or _ENDLESS)
        for _ in range(min(max(_fitting(_needs(setup)), 1), self._most) if count is None else self._most):
            self._add()
        self._first_contact()
        if self._grows:
            self._grow()

    @property
    def room(self) -> int:
        """Idle workers that no trial waits for. Raises PoolError where no worker is left."""
        self._require_workers()
        return max(len(self._idle) - len(self._waiting), 0)

    def submit(self, assignment: Assignment) -> None:
        """Hand it to an idle worker, or keep it until there is one."""
        self._waiting.append(assignment)
        self._hand_out()

    def finished(self) -> list[Outcome]:
        """Wait for outcomes, or for a worker that is idle again; one that dies or hangs costs its trial one attempt."""
        outcomes: list[Outcome] = []
        idle = len(self._idle)
        while not outcomes and self._jobs and len(self._idle) <= idle:
            # All that are done, not only the first: ray.wait returns no more than num_returns.
            some, _ = ray.wait(list(self._jobs), num_returns=1, timeout=self._seconds_left())
            if not some and not any(job.placed for job in self._jobs.values()):
                break
            done, _ = ray.wait(list(self._jobs), num_returns=len(self._jobs), timeout=0)
            outcomes.extend(o for ref in done if (o := self._collect(ref)) is not None)
            outcomes.extend(o for ref in self._overdue() if (o := self._give_up(ref)) is not None)
            self._hand_out()
        if not outcomes:
            self._require_workers()
        return outcomes

    def workers(self) -> list[Busy]:
        """Every worker and what it does: a trial, opening its models, or nothing."""
        now = monotonic()
        jobs = {id(job.slot): job for job in list(self._jobs.values())}
        return [_busy(slot, jobs.get(id(slot)), now) for slot in list(self._slots)]

    def close(self) -> None:
        """Kill the actors; stop Ray if this pool started it."""
        for slot in self._slots:
            self._kill(slot)
        for actor in self._keepers:
            ray.kill(actor)
        self._slots.clear()
        self._keepers.clear()
        self._idle.clear()
        self._jobs.clear()
        if self._started:
            ray.shutdown()

    @property
    def spent(self) -> dict[str, float]:
        """Seconds of workers that have ended, beside those of trials that were measured: ``opening`` their models, with
        trials that ``failed`` or were lost, and ``idle``.
        """
        alive, opening, measured, failed = self._spent.values()
        return {"opening": opening, "failed": failed, "idle": max(alive - opening - measured - failed, 0.0)}

    def process_ids(self) -> list[int]:
        """Process numbers of the workers on whatever machine they are; 0 for one that has no place yet."""
        return [slot.pid for slot in self._slots]

    def _add(self) -> None:
        """One more place; Ray gives it a machine as soon as one has room."""
        slot = _Slot(actor=self._actor.remote())
        self._slots.append(slot)
        self._call(slot)

    def _call(self, slot: _Slot) -> None:
        """Ask a new actor where it is; the answer comes when it has a place, however long that takes."""
        slot.machine, slot.node, slot.pid, slot.told = "?", "", 0, 0
        self._jobs[slot.actor.hello.remote()] = _Job(slot=slot, begun=monotonic())

    def _grow(self) -> None:
        """One place more than there is room for: a machine that joins finds it waiting."""
        if self._grows and len(self._slots) < self._most and all(slot.node for slot in self._slots):
            self._add()

    @property
    def engines(self) -> dict[str, Facts]:
        """What runs on each worker, by its name."""
        return {str(slot): slot.facts for slot in self._slots if slot.facts is not None}

    def _proven(self, prove: Callable[[Setup, Recipe], Proof], canary: Recipe) -> Proof:
        task: Any = ray.remote(prove).options(max_retries=0, **_resources(self._setup))
        proof: Proof
        (proof,) = self._answers([task.remote(self._setup, canary)])
        if proof.problem:
            self.close()
            raise InputError(proof.problem)
        return proof

    def _hand_out(self) -> None:
        while self._waiting and self._idle:
            slot, assignment = self._idle.pop(), self._waiting.pop(0)
            news = dict(self._verdicts[slot.told :])
            slot.told = len(self._verdicts)
            ref = slot.actor.run.remote(assignment, news)
            self._jobs[ref] = _Job(slot=slot, begun=monotonic(), assignment=assignment)

    def _open(self, slot: _Slot) -> None:
        """Have a worker open its models, or, when it has, show that its merges are what they were."""
        slot.since_canary = 0
        self._jobs[slot.actor.ready.remote(self._told, self._canary)] = _Job(slot=slot, begun=monotonic())

    def _collect(self, ref: Any) -> Outcome | None:
        job = self._jobs.pop(ref)
        placed, outcome = job.placed, self._outcome(job, ref)
        if placed:
            self._charge(job, outcome)
        return outcome

    def _charge(self, job: _Job, outcome: Outcome | None) -> None:
        done = "measured" if isinstance(outcome, Measured) else "failed"
        self._spent["opening" if job.assignment is None else done] += monotonic() - job.begun

    def _outcome(self, job: _Job, ref: Any) -> Outcome | None:
        try:
            answer = ray.get(ref)
        except RayTaskError as e:
            if isinstance(e.cause, EngineDied):
                return self._replace(job, _first_line(e.cause))
            if isinstance(e.cause, InputError):
                self._lay_off(job, str(e.cause))
                return None
            return self._broken(job, e)
        except RayError as e:
            return self._replace(job, _first_line(e))
        if isinstance(answer, _Contact):
            if self._spoilt[answer.node]:
                self._keep_place(job.slot, answer.node)
            elif self._meet(job.slot, answer):
                self._open(job.slot)
            self._grow()
            return None
        if job.assignment is None:
            self._greet(job.slot, answer)
            return None
        return self._take(job, answer)

    def _meet(self, slot: _Slot, contact: "_Contact") -> bool:
        """A worker that has a place now; whether it may stay there."""
        slot.machine, slot.node, slot.pid, slot.met = contact.machine, contact.node, contact.pid, True
        slot.since = monotonic()
        if contact.code == code_version():
            return True
        self._retire(slot, f"workers must run the driver's {code_version()}, but {contact.machine} has {contact.code}")
        return False

    def _take(self, job: _Job, outcome: Outcome) -> Outcome:
        """An outcome from a worker that lives."""
        assert job.assignment is not None
        slot = job.slot
        if isinstance(outcome, Failed) and outcome.traceback:
            slot.faults.add(outcome.number)
        else:
            slot.faults.clear()
            self._deadlines.saw(outcome.split, monotonic() - job.begun)
        if isinstance(outcome, Measured):
            self._verdicts.extend(outcome.verdicts.items())
        slot.since_canary += 1
        if len(slot.faults) >= _FAULTS:
            self._retire(slot, f"{_FAULTS} trials in a row failed on it, the last with: {_reason(outcome)}")
        elif self._canary is not None and slot.since_canary >= self._canary_every:
            self._open(slot)
        else:
            self._idle.append(slot)
        return outcome

    def _broken(self, job: _Job, error: RayTaskError) -> Outcome | None:
        """An error that no trial should raise. The worker lives, but nobody knows in which state: a new one."""
        if job.assignment is None:
            return self._replace(job, _first_line(error.cause))
        failed = Failed(
            number=job.assignment.number,
            recipe=job.assignment.recipe,
            split=job.assignment.split,
            reason=f"{type(error.cause).__name__}: {_first_line(error.cause)}",
            traceback=str(error),
            worker=str(job.slot),
        )
        self._renew(job.slot, failed.number, failed.reason)
        return failed

    def _lay_off(self, job: _Job, reason: str) -> None:
        """No worker in this place could do better: its files are not what they were. Its trial is left to another."""
        self._retire(job.slot, reason)
        if job.assignment is not None:
            self._waiting.insert(0, job.assignment)

    def _replace(self, job: _Job, reason: str) -> Outcome | None:
        """A new worker for a dead one, and its assignment again, or a failure where it killed too many."""
        assignment, left = job.assignment, _has_left(job.slot.node)
        if left:
            self._start_anew(job.slot)
        else:
            self._renew(job.slot, object() if assignment is None else assignment.number, reason)
        if assignment is None:
            return None
        key = (assignment.number, assignment.split)
        self._attempts[key] += 0 if left else 1
        if self._attempts[key] > _RETRIES:
            reason = f"its worker died {self._attempts[key]} times: {reason}"
            return Failed(number=assignment.number, recipe=assignment.recipe, split=assignment.split, reason=reason)
        _log.warning("its worker died, handed out again (%s)", reason, extra={"trial": assignment.number})
        self._waiting.insert(0, assignment)
        return None

    def _renew(self, slot: _Slot, fault: object, reason: str) -> None:
        """Another actor in this place, or none where too many have failed there."""
        slot.faults.add(fault)
        if len(slot.faults) >= _FAULTS:
            self._retire(slot, f"it failed {_FAULTS} times in a row, the last with: {reason}")
            return
        self._start_anew(slot)

    def _kill(self, slot: _Slot) -> None:
        ray.kill(slot.actor)
        self._spent["alive"] += 0.0 if slot.since is None else monotonic() - slot.since
        slot.since = None

    def _start_anew(self, slot: _Slot) -> None:
        self._kill(slot)
        slot.actor = self._actor.remote()
        self._call(slot)

    def _retire(self, slot: _Slot, reason: str) -> None:
        """Do without this place from now on."""
        self._retired = f"the worker {slot} is retired: {reason}"
        _log.error(self._retired)
        self._kill(slot)
        self._slots.remove(slot)
        self._spoilt[slot.node] += 1

    def _keep_place(self, slot: _Slot, node: str) -> None:
        """A new worker that got a retired one's place: it stays there, told nothing, and another waits for a place."""
        self._spoilt[node] -= 1
        self._keepers.append(slot.actor)
        slot.actor = self._actor.remote()
        self._call(slot)

    def _require_workers(self) -> None:
        """One that has never had a place is none; it may wait for ever."""
        if not any(slot.met for slot in self._slots):
            raise PoolError(f"at least one worker must be left, but none is; {self._retired}")

    def _greet(self, slot: _Slot, opened: "_Opened") -> None:
        """A worker that has opened its models: idle, where its canary is what the others' was."""
        slot.facts, canary = opened.facts, opened.canary
        if self._reference is None:
            self._reference = canary
        difference = canary.differs_from(self._reference) if canary and self._reference else None
        if difference:
            self._retire(slot, f"its merges cannot be reproduced: {difference}")
        else:
            self._idle.append(slot)

    def _seconds_left(self) -> float:
        deadlines = [self._deadline(job) for job in self._jobs.values() if job.placed]
        return max(min(deadlines) - monotonic(), 0.0) if deadlines else _LOOK_UP_SECONDS

    def _overdue(self) -> list[Any]:
        now = monotonic()
        return [ref for ref, job in self._jobs.items() if job.placed and self._deadline(job) <= now]

    def _deadline(self, job: _Job) -> float:
        return job.begun + self._deadlines.seconds(job.assignment.split if job.assignment else "opening")

    def _give_up(self, ref: Any) -> Outcome | None:
        job = self._jobs.pop(ref)
        self._charge(job, None)
        if job.slot.pid:
            _end_stopped(job.slot)
        return self._replace(job, f"no answer from {job.slot} after {monotonic() - job.begun:.0f} s")

    def _first_contact(self) -> None:
        """Wait until every worker has opened its models: what is wrong with the input shows here, before a trial."""
        placed = self._first_places()
        contacts = self._answers(list(placed))
        slots = [slot for slot, contact in zip(placed.values(), contacts, strict=True) if self._meet(slot, contact)]
        opened = self._answers([slot.actor.ready.remote(self._told, self._canary) for slot in slots])
        found = [o.canary for o in opened if o.canary is not None]
        if found and self._reference is None:
            # What most of them say: one broken worker among several must not make the others look broken.
            self._reference = Counter(found).most_common(1)[0][0]
        for slot, answer in zip(slots, opened, strict=True):
            self._spent["opening"] += 0.0 if slot.since is None else monotonic() - slot.since
            self._greet(slot, answer)
        self._require_workers()

    def _first_places(self) -> dict[Any, _Slot]:
        """The workers that have a place, by what they say then: all of them, or those that have one after a minute."""
        done: list[Any] = []
        while not done:
            done, _ = ray.wait(list(self._jobs), num_returns=len(self._jobs), timeout=_PATIENCE_SECONDS)
            if not done:
                self._still_waiting()
        return {ref: self._jobs.pop(ref).slot for ref in done}

    def _still_waiting(self) -> None:
        """Say so; raises InputError where it would be for ever."""
        needs = _needs(self._setup)
        if not _fitting(needs):
            self.close()
            raise InputError(
                f"a worker must fit on one machine of the cluster, but it takes {_amounts(needs)}, and the "
                f"machines have {'; '.join(filter(None, map(_amounts, _machines()))) or 'nothing'}."
            )
        free: Any = ray.available_resources  # without types of its own
        _log.warning("waiting for workers; of Ray's resources free now: %s", free())

    def _answers(self, refs: list[Any]) -> list[Any]:
        """What is waited for when workers start, however long; the pool ends where one of it is an error."""
        while ray.wait(refs, num_returns=len(refs), timeout=_PATIENCE_SECONDS)[1]:
            self._still_waiting()
        try:
            return list(ray.get(refs))
        except RayError as e:
            self.close()
            cause = e.cause if isinstance(e, RayTaskError) else e
            if isinstance(cause, InputError):
                raise cause from e
            raise PoolError(f"the workers must start, but the first error was: {_first_line(e)}") from e


def _busy(slot: _Slot, job: _Job | None, now: float) -> Busy:
    if job is None:
        return Busy(worker=str(slot), doing="idle")
    if not job.placed:
        return Busy(worker="?", doing="waiting for a machine", seconds=now - job.begun)
    doing = "opening its models" if job.assignment is None else described(job.assignment)
    return Busy(worker=str(slot), doing=doing, seconds=now - job.begun)


@dataclass(frozen=True, kw_only=True)
class _Contact:
    """Where a worker is, and what code it runs."""

    machine: str
    node: str
    pid: int
    code: str


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """What runs on a worker, and what its canary said."""

    facts: Facts
    canary: Canary | None


class _Actor:
    """The worker inside its Ray actor."""

    def __init__(self) -> None:
        # Nothing of ours comes with it: where another version runs, the first that is asked is which one.
        self._worker: Worker | None = None

    def hello(self) -> _Contact:
        """What is said as soon as there is a place for it."""
        node = ray.get_runtime_context().get_node_id()
        return _Contact(machine=socket.gethostname(), node=node, pid=os.getpid(), code=code_version())

    def ready(self, setup: Setup, canary: Recipe | None) -> _Opened:
        """Open the models where they are not open yet; in __init__ an error would reach the driver as a dead actor."""
        if self._worker is None:
            self._worker = Worker(setup)
        return _Opened(facts=self._worker.facts, canary=None if canary is None else self._worker.canary(canary))

    def run(self, assignment: Assignment, verdicts: Mapping[str, Mapping[str, Any]]) -> Outcome:
        """Verdicts are those that judges have given other workers since this one ran last."""
        assert self._worker is not None
        self._worker.learn(verdicts)
        return self._worker.run(assignment)


def _end_stopped(slot: _Slot) -> None:
    """End a process of this machine that may be stopped: it would not hear what Ray has to say."""
    if slot.machine == socket.gethostname():
        with suppress(ProcessLookupError):
            os.kill(slot.pid, signal.SIGKILL)


def _reason(outcome: Outcome) -> str:
    return outcome.reason if isinstance(outcome, Failed) else ""


def _needs(setup: Setup) -> dict[str, float]:
    """What of a machine one worker takes: threads, and GPUs, for each process of its engine."""
    # A cluster may have its GPUs later; who asks for vLLM on processors says so.
    auto = setup.engine == "vllm" or any("GPU" in node for node in _machines())
    cuda = setup.device.startswith("cuda") or (setup.device == "auto" and auto)
    processes = float(setup.tensor_parallel)
    return {"CPU": setup.threads * processes} | ({"GPU": processes} if cuda else {})


def _machines() -> list[dict[str, float]]:
    """What the cluster's machines have."""
    nodes: Any = ray.nodes  # without types of its own
    return [node["Resources"] for node in nodes() if node["Alive"]]


def _has_left(node: str) -> bool:
    """Whether a machine that was there is not any more."""
    nodes: Any = ray.nodes
    return any(found["NodeID"] == node and not found["Alive"] for found in nodes())


def _fitting(needs: Mapping[str, float]) -> int:
    """How many workers the cluster's machines can hold, whatever else runs there."""
    return sum(int(min(node.get(kind, 0) // amount for kind, amount in needs.items())) for node in _machines())


def _amounts(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{resources.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU") if kind in resources)


def _start(address: str | None, cpus: int) -> bool:
    """Connect to a cluster, or start Ray here with as many CPUs as the workers ask for; whether it was started."""
    # Ray reports usage to its makers by default; a study's machine has no business with that.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray starts its workers at niceness 15: on a machine that does anything else they would get next to nothing.
    os.environ.setdefault("RAY_worker_niceness", "0")
    if ray.is_initialized():
        return False
    if address is not None:
        require_answer(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            # Without "local" Ray would join whatever cluster somebody else has started on this machine.
            ray.init(address="local", num_cpus=max(cpus, 1), include_dashboard=False, **options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise InputError(f"--ray must be the address of a running Ray cluster, but {address}: {_first_line(e)}") from e
    return address is None


def require_answer(address: str) -> None:
    """Raises InputError, within half a minute, where no Ray cluster answers at the address. Ray itself would wait for
    minutes, and then end the process.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        if address == "auto":
            return
        raise InputError(f"--ray must be host:port, ray://host:port or auto, but got {address!r}.")
    try:
        with socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS) as connection:
            known = _is_ray(connection)
    except OSError as e:
        raise InputError(
            f"--ray must be the address of a running Ray cluster, but nobody answers at {address}: {e}."
        ) from e
    if not known:
        raise InputError(f"--ray must be the address of a running Ray cluster, but what answers at {address} is none.")


def _is_ray(connection: socket.socket) -> bool:
    """Whether the other end speaks as Ray does; unknown, and so believed, where all is encrypted."""
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return True
    connection.sendall(_GREETING)
    return connection.recv(len(_SETTINGS))[3:4] == _SETTINGS[3:4]


def _resources(setup: Setup) -> dict[str, Any]:
    """The same in Ray's words."""
    needs = _needs(setup)
    return {"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0), "runtime_env": _environment(setup)}


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
