"""How studies stand: queued, running, paused, done or failed. Read from the database alone, by whoever asks."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from search_spaces.errors import InputError
from storage.jobs import PAUSED, Job
from storage.store import Store, Summary

State = Literal["queued", "running", "paused", "done", "failed"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One study, or one that is asked for and has not begun.

    Attributes:
        reason: why it failed. progress: ``{"stage", "done", "total"}`` of the job that drives it, empty where the
        command line does. driver: ``host:pid`` of who holds it. begun: whether the database has the study itself.
    """

    name: str
    state: State
    reason: str
    planned: int
    measured: int
    failed: int
    running: int
    created: str
    driver: str | None
    progress: Mapping[str, Any]
    begun: bool

    def to_json(self) -> dict[str, Any]:
        """What the service says of a study."""
        document = asdict(self)
        del document["begun"]
        return document


def statuses(store: Store) -> list[Status]:
    """Every study, oldest first; those that have not begun come last."""
    jobs = store.jobs.latest()
    begun = [_status(summary, jobs.pop(summary.name, None)) for summary in store.studies()]
    return begun + [_asked_for(job) for job in jobs.values() if job.kind == "launch"]


def status(store: Store, name: str) -> Status:
    """One study. Raises InputError for an unknown name and lists those there are."""
    summary, job = store.summary(name), store.jobs.latest().get(name)
    if summary is not None:
        return _status(summary, job)
    if job is not None and job.kind == "launch":
        return _asked_for(job)
    names = ", ".join(s.name for s in statuses(store)) or "none"
    raise InputError(f"the study must be in the database, but there is no {name!r} (studies: {names}).")


def _status(summary: Summary, job: Job | None) -> Status:
    state, reason = _state(summary, job)
    at_work = job is not None and job.stage == "running"
    return Status(
        name=summary.name,
        state=state,
        reason=reason,
        planned=summary.planned,
        measured=summary.measured,
        failed=summary.failed,
        running=summary.running if state == "running" else 0,
        created=summary.created,
        driver=summary.driver,
        progress=job.progress if job is not None and at_work else {},
        begun=True,
    )


def _state(summary: Summary, job: Job | None) -> tuple[State, str]:
    if job is not None and job.stage == "waiting":
        return "queued", ""
    if summary.driver is not None or (job is not None and job.stage == "running"):
        return "running", ""
    if summary.measured + summary.failed >= summary.planned:
        return ("done", "") if summary.measured else ("failed", summary.trouble or "no trial could be measured")
    trouble = _trouble(summary, job)
    return ("failed", trouble) if trouble else ("paused", "")


def _trouble(summary: Summary, job: Job | None) -> str:
    """The last word on why it stopped: the job's where it ended after the driver did, else the driver's."""
    if job is None or job.code in (0, PAUSED) or (job.ended or job.created) < summary.ended:
        return summary.trouble
    return job.message or summary.trouble


def _asked_for(job: Job) -> Status:
    """A launch that has not come to a study yet: it waits, is being checked, or was refused."""
    states: dict[str, State] = {"waiting": "queued", "running": "running"}
    state: State = states.get(job.stage, "paused" if job.code == PAUSED else "failed")
    return Status(
        name=job.study,
        state=state,
        reason=job.message,
        planned=job.request["trials"],
        measured=0,
        failed=0,
        running=0,
        created=job.created,
        driver=None,
        progress=job.progress if state == "running" else {},
        begun=False,
    )
