"""The study store: Optuna's record of trials and our own tables, in one database.

The contract that every backend keeps (one suite of tests runs on all of them):

* a study's name is unique; creating it twice raises :class:`StoreError` and changes nothing;
* what was written by a call that returned is there after any crash;
* there is at most one measurement for each (study, trial, split); writing it again changes nothing;
* whoever reads never blocks the one driver that writes;
* of all who ask to hold a study one gets it, until it lets go, is seen to be dead, or is not heard of for a minute;
  who has lost it writes no trial any more.
"""

import json
import warnings
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import optuna
import sqlalchemy as sa
from optuna.storages import RDBStorage
from sqlalchemy.orm import Session

from storage import database
from storage.access import Access
from storage.errors import LeaseError, StoreError
from storage.events import Event, Position, events_after, last_position
from storage.jobs import Jobs
from storage.lease import LEASE_SECONDS, Holder
from storage.ledger import Ledger
from storage.records import Failed, Marks, Measured, Recipe, Score
from storage.tables import (
    CheckpointRow,
    EvaluationRow,
    ExportRow,
    FailureRow,
    MarksRow,
    ReportUseRow,
    StudyRow,
    VerdictRow,
    now,
)

_ENDED = "ended"
"""The study's note of how its last driver ended: ``{"why", "at"}``, why being empty where it did as it was told."""

_DELETED = "mergefront_deleted"
"""Marks Optuna's half of a study that is being deleted: a crash may leave it behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """What the store knows of a study before any trial."""

    name: str
    spec: Mapping[str, Any]
    spec_digest: str
    space_digest: str
    planned: int
    fingerprints: Mapping[str, str]
    versions: Mapping[str, str]
    created: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One line of the list of studies."""

    name: str
    planned: int
    measured: int
    failed: int
    running: int
    created: str
    driver: str | None
    """Who holds it now, ``host:pid``; None where nobody does."""
    trouble: str
    """Why its last driver ended otherwise than by finishing or pausing; empty where it did not."""
    ended: str
    """When that driver ended (UTC); empty where that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTally:
    """What one worker (``node:pid``) has done for a study and does now.

    ``last`` is when it ended its last trial, ``since`` when it began what it is ``doing`` (UTC, None for neither): None
    where nobody drives the study or the worker has gone.
    """

    worker: str
    measured: int = 0
    failed: int = 0
    last: str | None = None
    doing: str | None = None
    since: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A trial that was written to a directory; ``digest`` is that of the merge."""

    trial: int
    path: str
    digest: str
    created: str


class Store:
    """Studies in one database. Open it with :meth:`open`; the driver of a study is its only writer."""

    def __init__(self, url: sa.URL, engine: sa.Engine) -> None:
        self._url = url
        self._engine = engine
        self._optuna: RDBStorage | None = None
        self._holders: dict[str, Holder] = {}

    @classmethod
    def open(cls, url: str, *, create: bool = False) -> "Store":
        """Open the database at ``url``, with ``create`` also an empty or missing one.

        Raises: StoreError where it is missing, not ours, from a newer version, or out of reach.
        """
        parsed = database.parse_url(url)
        return cls(parsed, database.connect(parsed, create=create))

    def close(self) -> None:
        """Let go of every connection."""
        if self._optuna is not None:
            self._optuna.remove_session()
            self._optuna.engine.dispose()
        self._engine.dispose()

    @property
    def address(self) -> str:
        """The database's URL with its password hidden."""
        return database.show(self._url)

    @property
    def jobs(self) -> Jobs:
        """What the service was asked to do."""
        return Jobs(self._engine)

    @property
    def access(self) -> Access:
        """Who may use the service, and who did what."""
        return Access(self._engine)

    @property
    def trials(self) -> RDBStorage:
        """Optuna's storage on the same database."""
        if self._optuna is None:
            text = self._url.render_as_string(hide_password=False)
            self._optuna = RDBStorage(text, engine_kwargs=database.engine_options(self._url))
        return self._optuna

    def create(
        self,
        record: StudyRecord,
        *,
        directions: Sequence[Literal["minimize", "maximize"]],
        objectives: Sequence[str],
    ) -> None:
        """Write a new study. Optuna's half comes first: a crash between the two leaves a name that can be taken up."""
        if self._exists(record.name):
            raise StoreError(f"study names must be unique in a database, but there is a study {record.name!r} already.")
        self._clear_away(record.name)
        study = optuna.create_study(
            study_name=record.name, storage=self.trials, directions=list(directions), load_if_exists=True
        )
        with warnings.catch_warnings():
            # Experimental since 3.2, and the only way to show names of objectives in Optuna's dashboard.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(objectives))
        with Session(self._engine) as session, session.begin():
            row = StudyRow(
                name=record.name,
                spec=dict(record.spec),
                spec_digest=record.spec_digest,
                space_digest=record.space_digest,
                planned=record.planned,
                versions=dict(record.versions),
                created=record.created,
            )
            session.add(row)
            session.flush()
            session.add_all(
                CheckpointRow(study_id=row.id, name=name, fingerprint=fingerprint)
                for name, fingerprint in record.fingerprints.items()
            )

    def delete(self, name: str, *, keep_jobs: bool = False) -> None:
        """Delete a study with all that was measured. What looked at report items stays known, so do judges' verdicts.

        Our half goes first: what a crash leaves of Optuna's is cleared away when the name is used again.

        Args:
            keep_jobs: how the service's jobs of that name ended can still be asked.
        Raises: StoreError where it is unknown or somebody drives it.
        """
        with Session(self._engine) as session:
            row = self._row(session, name)
            if self._is_held(row.id):
                raise StoreError(f"a study that is driven cannot be deleted, but {name} is, by {_shown(row.holder)}.")
        self.trials.set_study_user_attr(self.trials.get_study_id_from_name(name), _DELETED, True)
        with Session(self._engine) as session, session.begin():
            session.execute(sa.delete(StudyRow).where(StudyRow.name == name))
        if not keep_jobs:
            self.jobs.forget(name)
        self._clear_away(name)

    def optuna_study(self, name: str, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
        """Optuna's study of that name with the sampler it shall ask."""
        self._study_id(name)
        return optuna.load_study(study_name=name, storage=self.trials, sampler=sampler)

    def ledger(self, name: str) -> Ledger:
        """The trials of a study for its driver; raises StoreError for an unknown name."""
        self._study_id(name)
        return Ledger(self.trials, name)

    def study(self, name: str) -> StudyRecord:
        """The record of one study; raises StoreError for an unknown name and lists those there are."""
        with Session(self._engine) as session:
            row = self._row(session, name)
            found = session.scalars(sa.select(CheckpointRow).where(CheckpointRow.study_id == row.id))
            return StudyRecord(
                name=row.name,
                spec=row.spec,
                spec_digest=row.spec_digest,
                space_digest=row.space_digest,
                planned=row.planned,
                fingerprints={c.name: c.fingerprint for c in found},
                versions=row.versions,
                created=row.created,
            )

    def studies(self) -> list[Summary]:
        """Every study, oldest first."""
        with Session(self._engine) as session:
            rows = session.scalars(sa.select(StudyRow).order_by(StudyRow.id)).all()
        return [self._summary(row) for row in rows]

    def summary(self, name: str) -> Summary | None:
        """One study's line of the list; None where there is no such study."""
        with Session(self._engine) as session:
            row = session.scalar(sa.select(StudyRow).where(StudyRow.name == name))
        return None if row is None else self._summary(row)

    def hold(self, name: str, holder: Holder) -> None:
        """Become the one driver of a study. Raises StoreError where another one is alive, or may be."""
        with Session(self._engine) as session, session.begin():
            row = self._row(session, name)
            dead = row.token if row.holder and Holder.parse(row.holder, row.token or "").dead else None
            clock = database.clock(self._engine)
            free = sa.or_(StudyRow.token.is_(None), StudyRow.token == dead, StudyRow.held_until < clock)
            taken = session.execute(
                sa.update(StudyRow)
                .where(StudyRow.id == row.id, free)
                .values(holder=str(holder), token=holder.token, held_until=clock + LEASE_SECONDS, workers=[])
                .execution_options(synchronize_session=False)
            )
            if taken.rowcount != 1:  # type: ignore[attr-defined]  # an UPDATE's result is a cursor's
                session.refresh(row)
                raise StoreError(
                    f"a study has one driver at a time, but {name} is driven by process {_shown(row.holder)}; "
                    f"should that one be dead, its hold ends {LEASE_SECONDS:.0f} seconds after its last sign of life."
                )
        self._holders[name] = holder

    def renew(self, name: str) -> bool:
        """Give a sign of life; False where somebody else holds the study by now."""
        with Session(self._engine) as session, session.begin():
            statement = sa.update(StudyRow).where(StudyRow.name == name, StudyRow.token == self._holders[name].token)
            renewed = session.execute(statement.values(held_until=database.clock(self._engine) + LEASE_SECONDS))
            return bool(renewed.rowcount)  # type: ignore[attr-defined]  # an UPDATE's result is a cursor's

    def set_workers(self, name: str, workers: Sequence[Mapping[str, str]]) -> None:
        """Say what each worker of a study does, as its driver: ``{"worker", "doing", "since"}`` each."""
        with Session(self._engine) as session, session.begin():
            mine = sa.update(StudyRow).where(StudyRow.name == name, StudyRow.token == self._holders[name].token)
            session.execute(mine.values(workers=[dict(w) for w in workers]))

    def release(self, name: str, trouble: str = "") -> None:
        """Let go of a study; it may be held by anybody again. ``trouble``: why its driver could not go on."""
        holder = self._holders.pop(name)
        with Session(self._engine) as session, session.begin():
            mine = sa.select(StudyRow).where(StudyRow.name == name, StudyRow.token == holder.token).with_for_update()
            row = session.scalar(mine)
            if row is not None:
                row.holder = row.token = row.held_until = None
                row.notes = {**row.notes, _ENDED: {"why": trouble, "at": now()}}

    def set_planned(self, name: str, planned: int) -> None:
        """Change how many trials the study shall reach."""
        with Session(self._engine) as session, session.begin():
            self._row(session, name).planned = planned

    def add_measured(self, name: str, *measured: Measured) -> None:
        """Keep measurements, all in one transaction. The same (trial, split) a second time changes nothing."""
        with Session(self._engine) as session, session.begin():
            study_id = self._held_row(session, name).id
            there = _there(session, study_id, measured)
            new = [(_evaluation_row(study_id, m), m) for m in measured if (m.number, m.split) not in there]
            session.add_all(row for row, _ in new)
            session.flush()
            session.add_all(
                MarksRow(evaluation_id=row.id, suite=suite, payload=_pack(marks))
                for row, m in new
                for suite, marks in m.marks.items()
            )
            for _, m in new:
                for key, verdict in m.verdicts.items():
                    session.merge(VerdictRow(key=key, verdict=dict(verdict)))

    def verdicts(self) -> dict[str, Mapping[str, Any]]:
        """Every judge's verdict, by the digest of what it was asked."""
        with Session(self._engine) as session:
            return {row.key: row.verdict for row in session.scalars(sa.select(VerdictRow))}

    def note(self, name: str, key: str, value: Any) -> None:
        """Keep a JSON value about a study under a name; an earlier one is replaced."""
        with Session(self._engine) as session, session.begin():
            row = self._row(session, name)
            row.notes = {**row.notes, key: value}

    def notes(self, name: str) -> dict[str, Any]:
        """What was noted about a study."""
        with Session(self._engine) as session:
            return dict(self._row(session, name).notes)

    def add_report_use(self, name: str, items: str) -> None:
        """Keep that a study has looked at the report items with this digest; the same again changes nothing."""
        with Session(self._engine) as session, session.begin():
            known = sa.select(ReportUseRow).where(ReportUseRow.study == name, ReportUseRow.items == items)
            if session.scalar(known) is None:
                session.add(ReportUseRow(study=name, items=items))

    def report_uses(self, items: str) -> list[str]:
        """Who has looked at the report items with this digest, oldest first: ``study at time``."""
        with Session(self._engine) as session:
            statement = sa.select(ReportUseRow).where(ReportUseRow.items == items).order_by(ReportUseRow.id)
            return [f"{row.study} at {row.created}" for row in session.scalars(statement)]

    def measured(self, name: str, split: str = "search") -> dict[int, Measured]:
        """Every measurement of a split by trial number, without the marks of single items."""
        study_id = self._study_id(name)
        with Session(self._engine) as session:
            rows = session.scalars(_of(study_id, split).order_by(EvaluationRow.number)).all()
        return {row.number: _measured(row, {}) for row in rows}

    def seconds(self, name: str) -> dict[str, float]:
        """Seconds that workers spent, by stage, added up over every measurement of any split."""
        found: Counter[str] = Counter()
        for _, seconds in self.each_seconds(name):
            found.update(seconds)
        return dict(found)

    def each_seconds(self, name: str) -> list[tuple[str, Mapping[str, float]]]:
        """Of every measurement its split, and what a worker spent on it by stage."""
        statement = sa.select(EvaluationRow.split, EvaluationRow.seconds)
        with Session(self._engine) as session:
            rows = session.execute(statement.where(EvaluationRow.study_id == self._study_id(name)))
            return [(split, seconds) for split, seconds in rows]

    def span(self, name: str) -> tuple[str, str] | None:
        """When the first and the last measurement of any split was kept, UTC in ISO 8601; None where there is none."""
        study_id = self._study_id(name)
        times = sa.select(sa.func.min(EvaluationRow.created), sa.func.max(EvaluationRow.created))
        with Session(self._engine) as session:
            first, last = session.execute(times.where(EvaluationRow.study_id == study_id)).one()
        return None if first is None else (first, last)

    def with_marks(self, name: str, number: int, split: str = "search") -> Measured:
        """One measurement with the marks of its items; raises StoreError where there is none."""
        study_id = self._study_id(name)
        with Session(self._engine) as session:
            row = session.scalar(_of(study_id, split).where(EvaluationRow.number == number))
            if row is None:
                raise StoreError(f"trial must be measured on the {split} split, but trial {number} of {name} is not.")
            found = session.scalars(sa.select(MarksRow).where(MarksRow.evaluation_id == row.id))
            return _measured(row, {m.suite: _unpack(m.payload) for m in found})

    def find(self, name: str, recipe_digest: str, split: str = "search") -> Measured | None:
        """A measurement of this recipe on that split, if there is one: it need not be measured again."""
        study_id = self._study_id(name)
        with Session(self._engine) as session:
            statement = _of(study_id, split).where(EvaluationRow.recipe_digest == recipe_digest)
            row = session.scalars(statement.order_by(EvaluationRow.number).limit(1)).first()
        return None if row is None else self.with_marks(name, row.number, split)

    def add_failed(self, name: str, *failed: Failed) -> None:
        """Keep failed attempts with their reasons."""
        with Session(self._engine) as session, session.begin():
            study_id = self._held_row(session, name).id
            session.add_all(
                FailureRow(
                    study_id=study_id,
                    number=one.number,
                    split=one.split,
                    reason=one.reason,
                    traceback=one.traceback,
                    worker=one.worker,
                )
                for one in failed
            )

    def failures(self, name: str) -> dict[int, list[str]]:
        """Reasons of failed attempts by trial number, oldest first."""
        study_id = self._study_id(name)
        reasons: dict[int, list[str]] = {}
        with Session(self._engine) as session:
            statement = sa.select(FailureRow).where(FailureRow.study_id == study_id).order_by(FailureRow.id)
            for row in session.scalars(statement):
                reasons.setdefault(row.number, []).append(row.reason)
        return reasons

    def events(self, name: str, after: Position, limit: int = 500) -> list[Event]:
        """What happened in a study after a position, oldest first; none where there is no such study."""
        return events_after(self._engine, name, after, limit)

    def position(self, name: str) -> Position:
        """The position after everything that has happened in a study so far."""
        return last_position(self._engine, name)

    def workers(self, name: str) -> list[WorkerTally]:
        """Who works for a study now, in the driver's order, and then who did so earlier, on any split."""
        e, f = EvaluationRow, FailureRow
        with Session(self._engine) as session:
            row = self._row(session, name)
            done = sa.select(e.worker, sa.func.count(), sa.func.max(e.created)).where(e.study_id == row.id)
            broken = sa.select(f.worker, sa.func.count(), sa.func.max(f.created)).where(f.study_id == row.id)
            measured = {w: (n, at) for w, n, at in session.execute(done.group_by(e.worker))}
            failed = {w: (n, at) for w, n, at in session.execute(broken.group_by(f.worker))}
            now_there = row.workers if self._is_held(row.id) else []
        nothing = (0, "")
        tallies = {
            w: WorkerTally(
                worker=w,
                measured=measured.get(w, nothing)[0],
                failed=failed.get(w, nothing)[0],
                last=max(measured.get(w, nothing)[1], failed.get(w, nothing)[1]),
            )
            for w in sorted({*measured, *failed} - {""})
        }
        here = [replace(tallies.pop(w["worker"], WorkerTally(worker=w["worker"])), **w) for w in now_there]
        return [*here, *tallies.values()]

    def revision(self, name: str) -> str:
        """Changes whenever what :func:`optimizer.results.results` reads of a study does; raises StoreError."""
        with Session(self._engine) as session:
            row = self._row(session, name)
            measured = sa.select(sa.func.count(), sa.func.max(EvaluationRow.id))
            counted = session.execute(measured.where(EvaluationRow.study_id == row.id)).one()
            life = f"{row.created}:{row.spec_digest[:12]}"
        # A trial's row is there before Optuna is told of it, and both are read.
        return f"{life}:{counted[0]}:{counted[1]}:{self._states(name).get('COMPLETE', 0)}"

    def driver(self, name: str) -> Holder | None:
        """Who holds a study now; None where nobody does. Raises StoreError for an unknown name."""
        with Session(self._engine) as session:
            row = self._row(session, name)
            return Holder.parse(row.holder, row.token or "") if row.holder and self._is_held(row.id) else None

    def add_export(self, name: str, number: int, path: str, digest: str) -> None:
        """Keep that a trial was written to ``path``."""
        with Session(self._engine) as session, session.begin():
            study_id = self._row(session, name).id
            session.add(ExportRow(study_id=study_id, number=number, path=path, digest=digest))

    def exports(self, name: str) -> list[Exported]:
        """The last export to each directory, oldest first; the directory may have changed since."""
        study_id = self._study_id(name)
        with Session(self._engine) as session:
            rows = session.scalars(sa.select(ExportRow).where(ExportRow.study_id == study_id).order_by(ExportRow.id))
            found = [Exported(trial=r.number, path=r.path, digest=r.digest, created=r.created) for r in rows]
        last = {e.path: e for e in found}
        return [e for e in found if last[e.path] is e]

    def _exists(self, name: str) -> bool:
        with Session(self._engine) as session:
            return session.scalar(sa.select(StudyRow.id).where(StudyRow.name == name)) is not None

    def _row(self, session: Session, name: str) -> StudyRow:
        row = session.scalar(sa.select(StudyRow).where(StudyRow.name == name))
        if row is None:
            names = ", ".join(session.scalars(sa.select(StudyRow.name).order_by(StudyRow.id))) or "none"
            raise StoreError(f"the study must be in the database, but there is no {name!r} (studies: {names}).")
        return row

    def _held_row(self, session: Session, name: str) -> StudyRow:
        """The study's row, locked; raises LeaseError where this store held it and somebody else does by now."""
        row = self._row(session, name)
        session.refresh(row, with_for_update=True)
        holder = self._holders.get(name)
        if holder is not None and row.token != holder.token:
            raise LeaseError(f"a study has one driver at a time, but {name} was taken over by {_shown(row.holder)}.")
        return row

    def _study_id(self, name: str) -> int:
        with Session(self._engine) as session:
            known: int | None = session.scalar(sa.select(StudyRow.id).where(StudyRow.name == name))
            return self._row(session, name).id if known is None else known

    def _summary(self, row: StudyRow) -> Summary:
        states, held = self._states(row.name), self._is_held(row.id)
        ended = row.notes.get(_ENDED, {})
        died = row.holder is not None and not held
        return Summary(
            name=row.name,
            planned=row.planned,
            measured=states.get("COMPLETE", 0),
            failed=states.get("FAIL", 0),
            running=states.get("RUNNING", 0),
            created=row.created,
            driver=_shown(row.holder) if held else None,
            trouble=f"its driver, process {_shown(row.holder)}, ended without a word" if died else ended.get("why", ""),
            ended="" if held or died else ended.get("at", ""),
        )

    def _states(self, name: str) -> dict[str, int]:
        """How many trials with a recipe are in each state. Counted in the database: loading them takes seconds."""
        studies = sa.table("studies", sa.column("study_id"), sa.column("study_name"))
        trials = sa.table("trials", sa.column("trial_id"), sa.column("study_id"), sa.column("state"))
        attributes = sa.table("trial_user_attributes", sa.column("trial_id"), sa.column("key"))
        statement = (
            sa.select(sa.cast(trials.c.state, sa.String), sa.func.count())
            .join(studies, studies.c.study_id == trials.c.study_id)
            .join(attributes, attributes.c.trial_id == trials.c.trial_id)
            .where(studies.c.study_name == name, attributes.c.key == "recipe")
            .group_by(trials.c.state)
        )
        with self._engine.connect() as connection:
            return {str(state): int(count) for state, count in connection.execute(statement)}

    def _clear_away(self, name: str) -> None:
        """Optuna's half of a study that was deleted. One that is not marked as such is somebody's, and stays."""
        try:
            study_id = self.trials.get_study_id_from_name(name)
        except KeyError:
            return
        if self.trials.get_study_user_attrs(study_id).get(_DELETED):
            self.trials.delete_study(study_id)

    def _is_held(self, study_id: int) -> bool:
        with Session(self._engine) as session:
            held = sa.select(StudyRow).where(
                StudyRow.id == study_id, StudyRow.held_until >= database.clock(self._engine)
            )
            row = session.scalar(held)
            return row is not None and not Holder.parse(row.holder or "", row.token or "").dead


def _shown(holder: str | None) -> str:
    """``host:pid`` of a holder."""
    if holder is None:
        return "nobody"
    host, pid, _ = holder.rsplit(":", 2)
    return f"{host.split('/')[0]}:{pid}"


def _of(study_id: int, split: str) -> sa.Select[EvaluationRow]:
    return sa.select(EvaluationRow).where(EvaluationRow.study_id == study_id, EvaluationRow.split == split)


def _there(session: Session, study_id: int, measured: Sequence[Measured]) -> set[tuple[int, str]]:
    """Which of these are kept already, by number and split."""
    e = EvaluationRow
    known = sa.select(e.number, e.split).where(e.study_id == study_id, e.number.in_({m.number for m in measured}))
    return {(number, split) for number, split in session.execute(known)}


def _evaluation_row(study_id: int, measured: Measured) -> EvaluationRow:
    return EvaluationRow(
        study_id=study_id,
        number=measured.number,
        split=measured.split,
        recipe=measured.recipe.to_json(),
        recipe_digest=measured.recipe.digest,
        scores={name: score.to_json() for name, score in measured.scores.items()},
        breakdown={
            name: {part: score.to_json() for part, score in parts.items()} for name, parts in measured.breakdown.items()
        },
        digest=measured.digest,
        seconds=dict(measured.seconds),
        worker=measured.worker,
        stopped=measured.stopped,
    )


def _measured(row: EvaluationRow, marks: Mapping[str, Marks]) -> Measured:
    return Measured(
        number=row.number,
        recipe=Recipe.from_json(row.recipe),
        split=row.split,
        scores={name: Score.from_json(score) for name, score in row.scores.items()},
        breakdown={
            name: {part: Score.from_json(score) for part, score in parts.items()}
            for name, parts in row.breakdown.items()
        },
        marks=marks,
        digest=row.digest,
        seconds=row.seconds,
        worker=row.worker,
        stopped=row.stopped,
    )


def _pack(marks: Marks) -> bytes:
    # Not asdict, which copies every item of every column.
    columns = {f.name: getattr(marks, f.name) for f in fields(marks)}
    text = json.dumps(columns, allow_nan=False, separators=(",", ":"))
    return zlib.compress(text.encode(), 1)


def _unpack(payload: bytes) -> Marks:
    columns = json.loads(zlib.decompress(payload))
    return Marks(**{name: tuple(values) for name, values in columns.items()})
