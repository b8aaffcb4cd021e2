"""Jobs of the service: what was asked for, which process does it, how far it is and how it ended."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from storage import database
from storage.errors import StoreError
from storage.lease import LEASE_SECONDS, Holder
from storage.tables import JobRow, now

Kind = Literal["launch", "resume", "export"]
Stage = Literal["waiting", "running", "ended"]

DIED = "its process ended without a word (killed, or out of memory)"
PAUSED = 130
"""The code of a job that was told to stop; others are the command line's exit codes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One thing that was asked for.

    Attributes:
        request: what was asked, as the API took it. who: asked for it. progress: ``{"stage", "done", "total"}``.
        stage: a job whose process is seen to be dead has ended, with the code 1.
        process: its process number, where it runs on this machine.
    """

    key: str
    study: str
    kind: Kind
    request: Mapping[str, Any]
    who: str
    created: str
    stage: Stage
    progress: Mapping[str, Any]
    ended: str | None
    code: int | None
    message: str
    process: int | None


class Jobs:
    """The jobs in one database. A study has one driver's job (launch, resume) at a time, and any number of exports."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, study: str, kind: Kind, request: Mapping[str, Any], who: str) -> Job:
        """Ask for something. Raises StoreError where the study has a driver's job that is not over."""
        key = secrets.token_hex(8)
        slot = None if kind == "export" else study
        self._free_slot(study)
        row = JobRow(key=key, study=study, slot=slot, kind=kind, request=dict(request), who=who)
        try:
            with Session(self._engine) as session, session.begin():
                session.add(row)
        except IntegrityError as e:
            raise StoreError(f"a study has one driver at a time, but {study} is queued or running already.") from e
        return self.get(key)

    def get(self, key: str) -> Job:
        """One job; raises StoreError for an unknown key."""
        with Session(self._engine) as session:
            row = session.scalar(sa.select(JobRow).where(JobRow.key == key))
            if row is None:
                raise StoreError(f"the job must be in the database, but there is no {key!r}.")
            return self._job(session, row)

    def waiting(self) -> list[Job]:
        """Those that nobody has begun, oldest first."""
        return self._select(JobRow.holder.is_(None), JobRow.ended.is_(None))

    def running(self) -> list[Job]:
        """Those that a process is at."""
        begun = self._select(JobRow.holder.is_not(None), JobRow.ended.is_(None))
        return [job for job in begun if job.stage == "running"]

    def latest(self) -> dict[str, Job]:
        """The last driver's job of every study that had one."""
        last = sa.select(sa.func.max(JobRow.id)).where(JobRow.kind != "export").group_by(JobRow.study)
        return {job.study: job for job in self._select(JobRow.id.in_(last))}

    def exports(self, study: str) -> list[Job]:
        """Those of a study that write a model, newest first."""
        return self._select(JobRow.study == study, JobRow.kind == "export")[::-1]

    def claim(self, key: str, holder: Holder) -> Job | None:
        """Begin a waiting job as this process; None where it is not waiting any more."""
        free = (JobRow.key == key, JobRow.holder.is_(None), JobRow.ended.is_(None))
        taken = self._update(*free, holder=str(holder), token=holder.token, held_until=self._until)
        return self.get(key) if taken else None

    def renew(self, key: str, holder: Holder) -> None:
        """Give a sign of life."""
        self._update(JobRow.key == key, JobRow.token == holder.token, held_until=self._until)

    def report(self, key: str, stage: str, done: int, total: int) -> None:
        """Say how far a job is."""
        self._update(JobRow.key == key, progress={"stage": stage, "done": done, "total": total})

    def end(self, key: str, code: int, message: str) -> bool:
        """A job is over, once; False where it was over already. The study is free for its next job."""
        over = {"ended": now(), "code": code, "message": message, "slot": None}
        return self._update(JobRow.key == key, JobRow.ended.is_(None), **over)

    def withdraw(self, key: str) -> bool:
        """End a job that nobody has begun as paused; False where somebody has."""
        over = {"ended": now(), "code": PAUSED, "message": "", "slot": None}
        return self._update(JobRow.key == key, JobRow.holder.is_(None), JobRow.ended.is_(None), **over)

    def forget(self, study: str) -> None:
        """Delete the jobs of a study."""
        with Session(self._engine) as session, session.begin():
            session.execute(sa.delete(JobRow).where(JobRow.study == study))

    @property
    def _until(self) -> sa.ColumnElement[float]:
        return database.clock(self._engine) + LEASE_SECONDS

    def _free_slot(self, study: str) -> None:
        """A job whose process died holds its slot no longer."""
        for job in self._select(JobRow.slot == study):
            if job.stage == "ended":
                self.end(job.key, 1, DIED)

    def _select(self, *conditions: sa.ColumnElement[bool]) -> list[Job]:
        with Session(self._engine) as session:
            rows = session.scalars(sa.select(JobRow).where(*conditions).order_by(JobRow.id)).all()
            return [self._job(session, row) for row in rows]

    def _update(self, *conditions: sa.ColumnElement[bool], **values: Any) -> bool:
        with Session(self._engine) as session, session.begin():
            done = session.execute(
                sa.update(JobRow).where(*conditions).values(**values).execution_options(synchronize_session=False)
            )
            return bool(done.rowcount)  # type: ignore[attr-defined]  # an UPDATE's result is a cursor's

    def _job(self, session: Session, row: JobRow) -> Job:
        holder = Holder.parse(row.holder, row.token or "") if row.holder else None
        silent = holder is not None and row.ended is None and (holder.dead or self._lapsed(session, row))
        return Job(
            key=row.key,
            study=row.study,
            kind=row.kind,  # type: ignore[arg-type]  # only add() writes it
            request=row.request,
            who=row.who,
            created=row.created,
            stage="ended" if row.ended or silent else "running" if holder else "waiting",
            progress=row.progress,
            ended=row.ended,
            code=1 if silent else row.code,
            message=DIED if silent else row.message,
            process=holder.pid if holder is not None and holder.here else None,
        )

    def _lapsed(self, session: Session, row: JobRow) -> bool:
        return bool(session.scalar(sa.select(database.clock(self._engine) > row.held_until)))
