"""Our own tables, beside Optuna's in the same database. They hold what Optuna cannot."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, LargeBinary, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Document = dict[str, Any]
Documents = list[Document]


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Base(DeclarativeBase):
    """Registry of our tables; every name begins with ``mergefront_``."""

    metadata = MetaData(
        naming_convention={
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        }
    )
    type_annotation_map = {Document: JSON, Documents: JSON, str: Text, bytes: LargeBinary}  # noqa: RUF012 (SQLAlchemy's own form)


class StudyRow(Base):
    """A study: its spec as parsed, what it may search, how many trials are planned, and which driver holds it.

    ``held_until`` is in seconds since 1970 by the database's clock; ``token`` is the holder's secret; ``workers`` says
    what each one does: ``{"worker", "doing", "since"}``.
    """

    __tablename__ = "mergefront_study"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    spec: Mapped[Document]
    spec_digest: Mapped[str] = mapped_column(String(64))
    space_digest: Mapped[str] = mapped_column(String(64))
    planned: Mapped[int]
    versions: Mapped[Document]
    created: Mapped[str] = mapped_column(String(32), default=now)
    notes: Mapped[Document] = mapped_column(default=dict)
    holder: Mapped[str | None]
    token: Mapped[str | None] = mapped_column(String(32))
    held_until: Mapped[float | None]
    workers: Mapped[Documents] = mapped_column(default=list)


class CheckpointRow(Base):
    """A model that a study reads, with the fingerprint of its content when the study began."""

    __tablename__ = "mergefront_checkpoint"
    __table_args__ = (UniqueConstraint("study_id", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("mergefront_study.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(200))
    fingerprint: Mapped[str] = mapped_column(String(64))


class EvaluationRow(Base):
    """One measurement: a trial's recipe on one split. The search split's row is written before Optuna is told."""

    __tablename__ = "mergefront_evaluation"
    __table_args__ = (UniqueConstraint("study_id", "number", "split"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("mergefront_study.id", ondelete="CASCADE"))
    number: Mapped[int]
    split: Mapped[str] = mapped_column(String(16))
    recipe: Mapped[Document]
    recipe_digest: Mapped[str] = mapped_column(String(64), index=True)
    scores: Mapped[Document]
    breakdown: Mapped[Document]
    digest: Mapped[str] = mapped_column(String(64))
    seconds: Mapped[Document]
    worker: Mapped[str] = mapped_column(String(200))
    created: Mapped[str] = mapped_column(String(32), default=now)
    stopped: Mapped[str] = mapped_column(default="")


class MarksRow(Base):
    """The outcome of every item of one suite in one evaluation: zlib-compressed JSON of the four columns."""

    __tablename__ = "mergefront_marks"

    evaluation_id: Mapped[int] = mapped_column(
        ForeignKey("mergefront_evaluation.id", ondelete="CASCADE"), primary_key=True
    )
    suite: Mapped[str] = mapped_column(String(300), primary_key=True)
    payload: Mapped[bytes]


class FailureRow(Base):
    """An attempt that did not come to an end."""

    __tablename__ = "mergefront_failure"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("mergefront_study.id", ondelete="CASCADE"), index=True)
    number: Mapped[int]
    split: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str]
    traceback: Mapped[str]
    worker: Mapped[str] = mapped_column(String(200))
    created: Mapped[str] = mapped_column(String(32), default=now)


class ExportRow(Base):
    """A directory that was written from a trial."""

    __tablename__ = "mergefront_export"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("mergefront_study.id", ondelete="CASCADE"), index=True)
    number: Mapped[int]
    path: Mapped[str]
    digest: Mapped[str] = mapped_column(String(64))
    created: Mapped[str] = mapped_column(String(32), default=now)


class VerdictRow(Base):
    """What a judge said, by the digest of everything that it was asked with; shared by all studies."""

    __tablename__ = "mergefront_verdict"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    verdict: Mapped[Document]
    created: Mapped[str] = mapped_column(String(32), default=now)


class ReportUseRow(Base):
    """A set of report items, by the digest of its items, that a study has looked at."""

    __tablename__ = "mergefront_report_use"

    id: Mapped[int] = mapped_column(primary_key=True)
    items: Mapped[str] = mapped_column(String(64), index=True)
    study: Mapped[str] = mapped_column(String(200))
    created: Mapped[str] = mapped_column(String(32), default=now)


class JobRow(Base):
    """What the service was asked to do: a study to launch or resume, or an export to write; a process does each.

    ``slot`` is the study's name while a driver's job is not over, so that a study has one at a time; ``holder``,
    ``token`` and ``held_until`` are a lease as in StudyRow.
    """

    __tablename__ = "mergefront_job"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(32), unique=True)
    study: Mapped[str] = mapped_column(String(200), index=True)
    slot: Mapped[str | None] = mapped_column(String(200), unique=True)
    kind: Mapped[str] = mapped_column(String(16))
    request: Mapped[Document]
    who: Mapped[str] = mapped_column(String(200))
    created: Mapped[str] = mapped_column(String(32), default=now)
    holder: Mapped[str | None]
    token: Mapped[str | None] = mapped_column(String(32))
    held_until: Mapped[float | None]
    progress: Mapped[Document] = mapped_column(default=dict)
    ended: Mapped[str | None] = mapped_column(String(32))
    code: Mapped[int | None]
    message: Mapped[str] = mapped_column(default="")


class TokenRow(Base):
    """Who may use the service. The token itself is kept nowhere, only its SHA-256."""

    __tablename__ = "mergefront_token"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    created: Mapped[str] = mapped_column(String(32), default=now)
    revoked: Mapped[str | None] = mapped_column(String(32))


class AuditRow(Base):
    """A change that somebody made through the service, or to who may use it. Rows are added and never changed."""

    __tablename__ = "mergefront_audit"

    id: Mapped[int] = mapped_column(primary_key=True)
    created: Mapped[str] = mapped_column(String(32), default=now)
    who: Mapped[str] = mapped_column(String(200))
    address: Mapped[str] = mapped_column(String(100))
    action: Mapped[str] = mapped_column(String(32))
    about: Mapped[str] = mapped_column(String(200))
    detail: Mapped[Document]


class RequestRow(Base):
    """A request with an Idempotency-Key: what it asked (a digest), and the answer once there is one."""

    __tablename__ = "mergefront_request"
    __table_args__ = (UniqueConstraint("who", "key"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    who: Mapped[str] = mapped_column(String(200))
    key: Mapped[str] = mapped_column(String(200))
    digest: Mapped[str] = mapped_column(String(64))
    created: Mapped[float]
    status: Mapped[int | None]
    answer: Mapped[Document] = mapped_column(default=dict)
