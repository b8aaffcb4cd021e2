"""Who may use the service: tokens with a role, an audit of every change, and answers kept for requests sent twice."""

import getpass
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from storage import database
from storage.errors import StoreError
from storage.tables import AuditRow, RequestRow, TokenRow, now

Role = Literal["viewer", "operator"]
ROLES: tuple[Role, ...] = ("viewer", "operator")

_PREFIX = "mf_"
_KEPT_SECONDS = 24 * 3600.0
_STALE_SECONDS = 600.0
"""After so long a request without an answer counts as one whose process died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks: a token's name and role."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One line of the list of tokens."""

    name: str
    role: str
    created: str
    revoked: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One change: when, by whom, from where, what, to what."""

    created: str
    who: str
    address: str
    action: str
    about: str
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a request was answered."""

    status: int
    body: Mapping[str, Any]


class RequestInUse(Exception):  # noqa: N818 (it is in use)
    """The same request is being answered at this moment."""


class Access:
    """Tokens, audit and answers in one database."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def create(self, name: str, role: Role) -> str:
        """Make a token and return it, for the one time that it is seen. Raises StoreError where the name is taken.

        It has 256 random bits, so that a plain SHA-256 of it can be kept: there is nothing to guess from.
        """
        token = _PREFIX + secrets.token_urlsafe(32)
        row = TokenRow(name=name, role=role, digest=digest(token))
        try:
            with Session(self._engine) as session, session.begin():
                session.add(row)
                session.add(_entry(_local(), "", "create token", name, {"role": role}))
        except IntegrityError as e:
            raise StoreError(f"token names must be unique, revoked ones included, but there is {name!r}.") from e
        return token

    def revoke(self, name: str) -> None:
        """A token that opens nothing any more. Raises StoreError where there is none of that name in force."""
        with Session(self._engine) as session, session.begin():
            statement = sa.update(TokenRow).where(TokenRow.name == name, TokenRow.revoked.is_(None))
            done = session.execute(statement.values(revoked=now()))
            if not done.rowcount:  # type: ignore[attr-defined]  # an UPDATE's result is a cursor's
                raise StoreError(f"only a token that is in force can be revoked, but there is no {name!r}.")
            session.add(_entry(_local(), "", "revoke token", name, {}))

    def tokens(self) -> list[Token]:
        """Every token that there was, oldest first."""
        with Session(self._engine) as session:
            rows = session.scalars(sa.select(TokenRow).order_by(TokenRow.id)).all()
            return [Token(name=r.name, role=r.role, created=r.created, revoked=r.revoked) for r in rows]

    def any_token(self) -> bool:
        """Whether a token was ever made. Revoking the last one does not open what was closed."""
        with Session(self._engine) as session:
            return session.scalar(sa.select(TokenRow.id).limit(1)) is not None

    def caller(self, token: str) -> Caller | None:
        """Who holds this token; None where nobody does, or does no more."""
        with Session(self._engine) as session:
            known = sa.select(TokenRow).where(TokenRow.digest == digest(token), TokenRow.revoked.is_(None))
            row = session.scalar(known)
            return None if row is None else Caller(name=row.name, role=row.role)  # type: ignore[arg-type]  # of create()

    def record(self, who: str, address: str, action: str, about: str, detail: Mapping[str, Any]) -> None:
        """Write down a change before it is made."""
        with Session(self._engine) as session, session.begin():
            session.add(_entry(who, address, action, about, detail))

    def audit(self) -> list[Entry]:
        """Every change, oldest first."""
        with Session(self._engine) as session:
            rows = session.scalars(sa.select(AuditRow).order_by(AuditRow.id)).all()
            return [
                Entry(created=r.created, who=r.who, address=r.address, action=r.action, about=r.about, detail=r.detail)
                for r in rows
            ]

    def begin(self, who: str, key: str, asked: str) -> Answer | None:
        """Begin a request with an idempotency key; its answer where it has had one, which are kept for a day.

        Args:
            asked: a digest of all that the request says.
        Raises: StoreError where the key was used for another request; RequestInUse where it is being answered.
        """
        with Session(self._engine) as session:
            clock = float(session.scalar(sa.select(database.clock(self._engine))) or 0.0)
        self._drop_old(clock)
        try:
            with Session(self._engine) as session, session.begin():
                session.add(RequestRow(who=who, key=key, digest=asked, created=clock))
        except IntegrityError:
            return self._earlier(who, key, asked)
        return None

    def answer(self, who: str, key: str, answer: Answer) -> None:
        """Keep what a request was answered."""
        with Session(self._engine) as session, session.begin():
            statement = sa.update(RequestRow).where(RequestRow.who == who, RequestRow.key == key)
            session.execute(statement.values(status=answer.status, answer=dict(answer.body)))

    def abandon(self, who: str, key: str) -> None:
        """A request that came to nothing may be sent again with the same key."""
        with Session(self._engine) as session, session.begin():
            session.execute(sa.delete(RequestRow).where(RequestRow.who == who, RequestRow.key == key))

    def _earlier(self, who: str, key: str, asked: str) -> Answer:
        with Session(self._engine) as session:
            row = session.scalar(sa.select(RequestRow).where(RequestRow.who == who, RequestRow.key == key))
        if row is None or (row.digest == asked and row.status is None):
            raise RequestInUse
        if row.digest != asked:
            raise StoreError("an Idempotency-Key belongs to one request, but this one was used for another.")
        return Answer(status=row.status or 0, body=row.answer)

    def _drop_old(self, clock: float) -> None:
        stale = sa.and_(RequestRow.status.is_(None), RequestRow.created < clock - _STALE_SECONDS)
        with Session(self._engine) as session, session.begin():
            session.execute(sa.delete(RequestRow).where(sa.or_(stale, RequestRow.created < clock - _KEPT_SECONDS)))


def digest(text: str) -> str:
    """SHA-256 (hex) of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _entry(who: str, address: str, action: str, about: str, detail: Mapping[str, Any]) -> AuditRow:
    return AuditRow(who=who, address=address, action=action, about=about, detail=dict(detail))


def _local() -> str:
    """Whoever uses the command line."""
    try:
        return f"command line ({getpass.getuser()})"
    except (KeyError, OSError):  # a container's user without a name
        return "command line"
