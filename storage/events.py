"""What happened in a study, one event a measured or failed trial, in an order that a listener can take up again.

Nothing is kept for it: measurements and failures are the events, and a position says how far into both a listener is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from search_spaces.errors import InputError
from storage.tables import EvaluationRow, FailureRow, StudyRow

_POSITION = re.compile(r"([0-9A-Za-z]{0,32})\.(\d{1,18})\.(\d{1,18})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a listener is: the last measurement and the last failure that it has heard of.

    ``life`` names the study's creation: a study that was deleted and made again begins from the beginning.
    """

    life: str = ""
    measured: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return f"{self.life}.{self.measured}.{self.failed}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Read what ``str`` wrote. Raises InputError for anything else."""
        found = _POSITION.fullmatch(text)
        if found is None:
            raise InputError(f"Last-Event-ID must be one that was sent here, but got {text[:100]!r}.")
        return cls(life=found[1], measured=int(found[2]), failed=int(found[3]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A trial that was measured on a split, or an attempt that failed; ``position`` is that after it."""

    position: Position
    name: str
    at: str
    data: Mapping[str, Any]


def events_after(engine: sa.Engine, study: str, after: Position, limit: int) -> list[Event]:
    """The next events of a study, at most ``limit``, oldest first; none for an unknown study."""
    with Session(engine) as session:
        row = session.execute(sa.select(StudyRow.id, StudyRow.created).where(StudyRow.name == study)).first()
        if row is None:
            return []
        life = _life(row.created)
        start = after if after.life == life else Position(life=life)
        found = [*_measured(session, row.id, start.measured, limit), *_failed(session, row.id, start.failed, limit)]
    found.sort(key=lambda f: (f.at, f.id))
    events, position = [], start
    for one in found[:limit]:
        position = replace(position, measured=one.id) if one.name == "measured" else replace(position, failed=one.id)
        events.append(Event(position=position, name=one.name, at=one.at, data=one.data | {"at": one.at}))
    return events


def last_position(engine: sa.Engine, study: str) -> Position:
    """The position after everything that has happened in a study."""
    with Session(engine) as session:
        row = session.execute(sa.select(StudyRow.id, StudyRow.created).where(StudyRow.name == study)).first()
        if row is None:
            return Position()
        measured = session.scalar(sa.select(sa.func.max(EvaluationRow.id)).where(EvaluationRow.study_id == row.id))
        failed = session.scalar(sa.select(sa.func.max(FailureRow.id)).where(FailureRow.study_id == row.id))
    return Position(life=_life(row.created), measured=measured or 0, failed=failed or 0)


def _life(created: str) -> str:
    return re.sub(r"[^0-9A-Za-z]", "", created)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    id: int
    name: str
    at: str
    data: dict[str, Any]


def _measured(session: Session, study_id: int, after: int, limit: int) -> list[_Found]:
    e = EvaluationRow
    columns = (e.id, e.number, e.split, e.scores, e.seconds, e.worker, e.stopped, e.created)
    rows = session.execute(
        sa.select(*columns).where(e.study_id == study_id, e.id > after).order_by(e.id).limit(limit)
    ).all()
    return [
        _Found(
            id=r.id,
            name="measured",
            at=r.created,
            data={
                "trial": r.number,
                "split": r.split,
                "scores": r.scores,
                "seconds": r.seconds.get("total"),
                "worker": r.worker,
                "stopped": r.stopped,
            },
        )
        for r in rows
    ]


def _failed(session: Session, study_id: int, after: int, limit: int) -> list[_Found]:
    f = FailureRow
    columns = (f.id, f.number, f.split, f.reason, f.worker, f.created)
    rows = session.execute(
        sa.select(*columns).where(f.study_id == study_id, f.id > after).order_by(f.id).limit(limit)
    ).all()
    return [
        _Found(
            id=r.id,
            name="failed",
            at=r.created,
            data={"trial": r.number, "split": r.split, "reason": r.reason, "worker": r.worker},
        )
        for r in rows
    ]
