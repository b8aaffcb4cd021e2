"""What the service's handlers share, and what they do together."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.responses import JSONResponse, Response

from optimizer.service.feed import Feeds
from optimizer.service.fronts import Fronts, Known
from optimizer.service.gate import address_of
from optimizer.service.problems import Problem
from optimizer.service.reader import Aside
from optimizer.service.runner import Runner
from optimizer.service.settings import Settings
from optimizer.service.shapes import export_body
from optimizer.states import Status, status
from search_spaces.errors import InputError
from storage.access import Answer, Caller, RequestInUse
from storage.errors import StoreError
from storage.jobs import Job
from storage.store import Store, WorkerTally

_MOST_KEY = 200
_TAIL = 256 << 10


class Desk:
    """One service: its database, the processes beside it, and whoever listens."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.settings = settings
        self.store = store
        self.reader = Aside(settings, niceness=10)
        self.checker = Aside(settings, niceness=5)
        self.fronts = Fronts(store, settings.storage, self.reader)
        self.runner = Runner(settings, store)
        self.feeds = Feeds(store, self.watched)

    def close(self) -> None:
        """End the processes beside it; studies and exports go on."""
        self.reader.close()
        self.checker.close()

    async def status(self, study: str) -> Status:
        """How a study stands; a Problem (404) where there is none."""
        try:
            return await asyncio.to_thread(status, self.store, study)
        except InputError as e:
            raise Problem(404, str(e)) from e

    async def known(self, study: str) -> Known:
        """What a study has found; a Problem (404) where there is none, or nothing yet."""
        try:
            return await self.fronts.get(study)
        except StoreError as e:
            raise Problem(404, str(e)) from e

    async def study_body(self, study: str) -> dict[str, Any]:
        """Everything that is said of a study."""
        found = await self.status(study)
        if not found.begun:
            return _body(found, None, [], [])
        known = await self.fronts.get(study)
        workers = await asyncio.to_thread(self.store.workers, study)
        exports = await asyncio.to_thread(self.store.jobs.exports, study)
        return _body(found, known.reading.hypervolume, workers, exports)

    async def watched(self, study: str) -> dict[str, Any] | None:
        """The same for those who listen; None where the study is gone."""
        try:
            return await self.study_body(study)
        except (Problem, StoreError):
            return None

    def log_tail(self, study: str, lines: int) -> str:
        """The last lines of a study's log; empty where there is none here."""
        path = self.settings.log_of(study)
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - _TAIL, 0))
            text = file.read(_TAIL).decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    async def once(
        self, request: Request, said: bytes, act: Callable[[], Awaitable[tuple[Answer, Mapping[str, str]]]]
    ) -> Response:
        """Do what a request asks, and not again where it is sent again with the same Idempotency-Key.

        Args:
            said: what it says beside method and path.
        """
        key = request.headers.get("idempotency-key")
        if key is None:
            answer, headers = await act()
            return JSONResponse(dict(answer.body), answer.status, headers=dict(headers))
        if not (0 < len(key) <= _MOST_KEY and key.isprintable()):
            raise Problem(422, f"an Idempotency-Key must have 1 to {_MOST_KEY} printable characters.")
        return await self._with_key(request, key, said, act)

    async def _with_key(
        self, request: Request, key: str, said: bytes, act: Callable[[], Awaitable[tuple[Answer, Mapping[str, str]]]]
    ) -> Response:
        access, who = self.store.access, caller_of(request).name
        asked = hashlib.sha256(f"{request.method} {request.url.path}?{request.url.query}\n".encode() + said).hexdigest()
        try:
            earlier = await asyncio.to_thread(access.begin, who, key, asked)
        except RequestInUse as e:
            raise Problem(409, "a request with this Idempotency-Key is being answered.") from e
        if earlier is not None:
            return JSONResponse(dict(earlier.body), earlier.status, headers={"idempotent-replayed": "true"})
        kept = False
        try:
            answer, headers = await act()
            await asyncio.to_thread(access.answer, who, key, answer)
            kept = True
        finally:
            if not kept:
                await asyncio.to_thread(access.abandon, who, key)
        return JSONResponse(dict(answer.body), answer.status, headers=dict(headers))

    async def record(self, request: Request, action: str, study: str, detail: Mapping[str, Any]) -> None:
        """Write into the audit what is about to be done."""
        who, address = caller_of(request).name, address_of(request)
        await asyncio.to_thread(self.store.access.record, who, address, action, study, detail)


def caller_of(request: Request) -> Caller:
    """Who the gate let in."""
    caller: Caller = request.state.caller
    return caller


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


TheDesk = Annotated[Desk, Depends(_desk)]


def _body(
    found: Status, hypervolume: float | None, workers: Sequence[WorkerTally], exports: Sequence[Job]
) -> dict[str, Any]:
    document = found.to_json()
    document["progress"] = document["progress"] or None
    return document | {
        "hypervolume": hypervolume,
        "workers": [asdict(w) for w in workers],
        "exports": [export_body(job) for job in exports],
    }
