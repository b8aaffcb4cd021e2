"""Everything that a request must pass before it is looked at: where it came from, who sends it, what that one may do.

Closed unless said otherwise: a new path needs a token without anybody having to think of it.
"""

import logging
from collections import OrderedDict
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from optimizer.service.problems import Problem
from optimizer.service.settings import Settings
from storage.access import Access, Caller, digest

COOKIE = "mergefront_token"
MOST_BODY = 1_000_000
"""Bytes of a request: as many as a study file may have."""

ANYBODY = Caller(name="anybody on this machine", role="operator")

_log = logging.getLogger(__name__)

_PUBLIC = frozenset({"/healthz", "/readyz", "/login", "/v1/session"})
_READS = frozenset({"GET", "HEAD"})
_LOOK_SECONDS = 1.0
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


class Gate:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, settings: Settings, access: Access) -> None:
        self._app = app
        self._settings = settings
        self._access = access
        self._failures = Failures()
        self._tokens = False
        self._looked = -_LOOK_SECONDS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is refused, pass on what is not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope)
        try:
            scope.setdefault("state", {})["caller"] = await self._admitted(request)
            received = receive if request.method in _READS else await _whole(request, receive)
        except Problem as problem:
            await self._refusal(request, problem)(scope, receive, with_headers)
            return
        await self._app(scope, received, with_headers)

    async def _admitted(self, request: Request) -> Caller | None:
        """Who asks; None on a public path. Raises Problem for what must not pass."""
        unlocked = self._settings.loopback and not await self._closed()
        if unlocked:
            _check_host(request)
        if request.method not in _READS:
            _check_origin(request)
        if unlocked:
            return ANYBODY
        if request.url.path in _PUBLIC or request.url.path.startswith("/static/"):
            return None
        caller = await self._authenticated(request)
        if request.method not in _READS and caller.role != "operator":
            raise Problem(403, f"changes take the role operator, but {caller.name} is a {caller.role}.")
        return caller

    async def _closed(self) -> bool:
        """Whether there are tokens. Once there are it stays closed; before, it is looked up once a second."""
        if not self._tokens and monotonic() - self._looked > _LOOK_SECONDS:
            self._tokens = await run_in_threadpool(self._access.any_token)
            self._looked = monotonic()
        return self._tokens

    async def _authenticated(self, request: Request) -> Caller:
        token = _token(request)
        if token is None:
            raise Problem(401, "a token is needed: `mergefront token create`.", headers={"www-authenticate": "Bearer"})
        return await self.known(address_of(request), token)

    async def known(self, address: str, token: str) -> Caller:
        """Who holds a token. Raises Problem: 401 for a wrong one, 429 where there were too many of them."""
        self._failures.check(address, digest(token))
        caller = await run_in_threadpool(self._access.caller, token)
        if caller is None:
            self._failures.add(address)
            _log.warning("a wrong token from %s", address)
            raise Problem(401, "the token must be one that is in force, but it is not.", headers=_CHALLENGE)
        self._failures.trust(address, digest(token))
        return caller

    def _refusal(self, request: Request, problem: Problem) -> Response:
        """People are shown the page where a token can be given, programs the problem."""
        page = request.method == "GET" and "text/html" in request.headers.get("accept", "")
        if problem.status == 401 and page and not request.url.path.startswith("/v1/"):
            return RedirectResponse("/login", 303)
        return problem.response()


async def _whole(request: Request, receive: Receive) -> Receive:
    """The body, read here and handed on at once. Raises Problem as soon as it is known to be too large."""
    too_large = Problem(413, f"a request must have at most {MOST_BODY:,} bytes, but has more.")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > MOST_BODY:
        raise too_large
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":  # half of a study's text may be a study, too
            raise Problem(400, "a request must come whole, but it broke off.")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MOST_BODY:
            raise too_large
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return waiting.pop() if waiting else await receive()

    return received


_CHALLENGE = {"www-authenticate": 'Bearer error="invalid_token"'}


class Failures:
    """Wrong tokens by address: after ten in a minute no token of it is looked up, but those that were right before."""

    MOST = 10
    SECONDS = 60.0
    _ADDRESSES = 10_000

    def __init__(self) -> None:
        self._times: OrderedDict[str, list[float]] = OrderedDict()
        self._trusted: OrderedDict[tuple[str, str], None] = OrderedDict()

    def check(self, address: str, token_digest: str) -> None:
        """Raises Problem (429) for an address that has failed too often, unless it sends what was right before."""
        now = monotonic()
        recent = [t for t in self._times.get(address, []) if now - t < self.SECONDS]
        if len(recent) < self.MOST or (address, token_digest) in self._trusted:
            return
        wait = self.SECONDS - (now - recent[0])
        raise Problem(429, "too many wrong tokens from this address.", headers={"retry-after": f"{wait + 1:.0f}"})

    def add(self, address: str) -> None:
        """One more wrong token."""
        times = self._times.setdefault(address, [])
        times.append(monotonic())
        del times[: -self.MOST]
        self._times.move_to_end(address)
        _shorten(self._times, self._ADDRESSES)

    def trust(self, address: str, token_digest: str) -> None:
        """A token that was right. It is looked up again all the same: it may be revoked."""
        self._trusted[address, token_digest] = None
        _shorten(self._trusted, self._ADDRESSES)


def _shorten(kept: OrderedDict[Any, Any], most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)


def _token(request: Request) -> str | None:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and token.strip():
        return token.strip()
    return request.cookies.get(COOKIE)


def address_of(request: Request) -> str:
    """Where a request came from."""
    return request.client.host if request.client else "unknown"


def _check_host(request: Request) -> None:
    """DNS rebinding: a page of evil.example whose name suddenly leads here still says evil.example."""
    name = urlsplit(f"//{request.headers.get('host', '')}").hostname
    if name not in _LOCAL_NAMES:
        raise Problem(403, f"without tokens the Host must be this machine, but it is {str(name)[:100]!r}.")


def _check_origin(request: Request) -> None:
    """Cross-site request forgery: a browser says from which page a change comes, and it must be one of ours."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host", ""):
        raise Problem(403, f"changes must come from the service's own pages, but this one is from {origin[:100]!r}.")
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Problem(403, "changes must come from the service's own pages, but this one is from another site's.")
