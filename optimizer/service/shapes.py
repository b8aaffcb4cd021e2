"""What goes over the wire, as OpenAPI shows it."""

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field, model_validator

from optimizer.states import State
from storage.jobs import Job

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
StudyName = Annotated[str, Path(pattern=NAME, description="The study's name.")]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Number = Annotated[int, Path(ge=0, le=2**31 - 1)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ProgressBody(BaseModel):
    """How far a job is."""

    stage: str
    done: int
    total: int


class WorkerBody(BaseModel):
    """What one worker (``node:pid``) does now, and what it has done for the study."""

    worker: str
    doing: str | None = Field(description="A trial, `opening its models`, `idle` …; null for one that has gone.")
    since: str | None = Field(description="When it began that (UTC).")
    measured: int
    failed: int
    last: str | None = Field(description="When it ended its last trial (UTC).")


class ExportBody(BaseModel):
    """An export: ``out`` is there, whole, once it is done."""

    id: str
    study: str
    trial: int
    out: str
    state: Literal["queued", "running", "done", "failed"]
    reason: str
    progress: ProgressBody | None
    created: str
    ended: str | None


def export_body(job: Job) -> dict[str, Any]:
    """An export as it goes over the wire."""
    if job.stage == "ended":
        state = "done" if job.code == 0 else "failed"
    else:
        state = {"waiting": "queued", "running": "running"}[job.stage]
    return {
        "id": job.key,
        "study": job.study,
        "trial": job.request["trial"],
        "out": job.request["out"],
        "state": state,
        "reason": job.message,
        "progress": (dict(job.progress) or None) if state == "running" else None,
        "created": job.created,
        "ended": job.ended,
    }


class StudyBody(BaseModel):
    """How a study stands."""

    name: str
    state: State
    reason: str = Field(description="Why it failed; empty otherwise.")
    planned: int
    measured: int
    failed: int
    running: int
    created: str
    driver: str | None = Field(description="host:pid of the process that drives it.")
    progress: ProgressBody | None = Field(description="What its process is at.")
    hypervolume: float | None = Field(description="Of the front, seen from the worst baseline.")
    workers: list[WorkerBody] = Field(description="Those at work, then those that have gone.")
    exports: list[ExportBody] = Field(description="The newest first.")


class SummaryBody(BaseModel):
    """One line of the list."""

    name: str
    state: State
    planned: int
    measured: int
    failed: int
    running: int
    created: str


class StudiesBody(BaseModel):
    """A page of studies, oldest first; ``next`` goes into ``after`` for the page that follows."""

    studies: list[SummaryBody]
    next: str | None


class ResumeAsked(_Asked):
    """How many trials more than so far planned."""

    trials: Count = 0


class ExportAsked(_Asked):
    """Which trial, by its number or by an expression such as ``max general where safety >= 0.9``, and where to."""

    trial: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    pick: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    out: Annotated[str, Field(min_length=1, max_length=4000)]

    @model_validator(mode="after")
    def _one(self) -> "ExportAsked":
        if (self.trial is None) == (self.pick is None):
            raise ValueError("an export takes either trial or pick")
        return self


class TrialBody(BaseModel):
    """One trial: its row of the front's JSON, every split it was measured on, and what went wrong with it."""

    trial: int
    row: dict[str, Any] | None = Field(description="As in the front's JSON; null where it is not measured.")
    splits: dict[str, dict[str, Any]]
    failures: list[str]


class SessionAsked(_Asked):
    """A token, to be kept in a cookie that scripts cannot read."""

    token: Annotated[str, Field(min_length=1, max_length=200)]
