"""Asks an OpenAI-compatible endpoint over HTTP: many questions at once, patiently, and within limits."""

import json
import os
import random
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from time import monotonic
from typing import Any

import httpx2

from workers.errors import TrialError

_LARGEST = 1 << 20
"""Bytes of one reply that are read."""
_LONGEST_WAIT = 120.0
"""Seconds that we wait for an endpoint that says when to come back, or that we back off at most."""
_TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})

Parse = Callable[[str], Mapping[str, Any] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the judge is, and how patient we are with it.

    Attributes:
        key_from: the environment variable that holds the API key; the key itself is kept nowhere.
        timeout: seconds for one whole reply. retries: further calls after one that failed in a way that may pass.
        backoff: seconds before the first of them, doubled each time, at random between nothing and that.
        concurrency: calls at the same time. budget: most calls of this worker in its life, None for any number.
    """

    url: str
    model: str
    key_from: str | None = None
    timeout: float = 60.0
    retries: int = 5
    backoff: float = 1.0
    concurrency: int = 8
    budget: int | None = None


@dataclass(frozen=True, slots=True)
class Unusable:
    """A question that got no answer we can use, and why."""

    reason: str


Answer = Mapping[str, Any] | Unusable


@dataclass(frozen=True, slots=True)
class _Again:
    """A failure that may pass; ``wait`` seconds, where the endpoint says."""

    reason: str
    wait: float | None = None


class JudgeClient:
    """One for each endpoint and worker. Its budget counts every call, retries too."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._calls = 0
        self._lock = Lock()

    @property
    def calls(self) -> int:
        """Calls so far."""
        return self._calls

    def ask(self, payloads: Sequence[Mapping[str, Any]], parse: Parse) -> Generator[tuple[int, Answer], None, None]:
        """The place of each chat-completion payload and what ``parse`` finds in the reply to it, as they come in.

        Close it to leave early: what is waiting is not asked any more.

        Raises: TrialError where the endpoint refuses us (a wrong key, an unknown model), or where the budget is spent.
        """
        stop = Event()
        threads = ThreadPoolExecutor(self._endpoint.concurrency)
        with self._open() as http:
            futures = {threads.submit(self._answer, http, p, parse, stop): i for i, p in enumerate(payloads)}
            try:
                for future, answer in _until_refused(futures, stop):
                    yield futures[future], answer
            finally:
                stop.set()
                threads.shutdown(wait=False, cancel_futures=True)

    def _open(self) -> httpx2.Client:
        return httpx2.Client(
            headers=_headers(self._endpoint),
            timeout=self._endpoint.timeout,
            limits=httpx2.Limits(max_connections=self._endpoint.concurrency),
        )

    def _answer(self, http: httpx2.Client, payload: Mapping[str, Any], parse: Parse, stop: Event) -> Answer:
        reason = "it was not asked"
        for attempt in range(self._endpoint.retries + 1):
            if stop.is_set():
                break
            try:
                reply = self._call(http, payload)
            except TrialError:
                stop.set()  # here and not where it is heard of: calls that wait would have begun by then
                raise
            if isinstance(reply, _Again):
                reason = reply.reason
                if attempt < self._endpoint.retries:
                    stop.wait(self._pause(attempt) if reply.wait is None else min(reply.wait, _LONGEST_WAIT))
                continue
            text = _content(reply) if isinstance(reply, bytes) else reply
            if isinstance(text, Unusable):
                return text
            verdict = parse(text)
            return Unusable(f"its answer has no verdict: {_short(text)}") if verdict is None else verdict
        return Unusable(reason)

    def _pause(self, attempt: int) -> float:
        """Full jitter: workers that were turned away together do not come back together."""
        return random.uniform(0, min(self._endpoint.backoff * 2**attempt, _LONGEST_WAIT))

    def _call(self, http: httpx2.Client, payload: Mapping[str, Any]) -> bytes | Unusable | _Again:
        self._spend()
        deadline = monotonic() + self._endpoint.timeout
        try:
            with http.stream("POST", f"{self._endpoint.url.rstrip('/')}/chat/completions", json=payload) as reply:
                return self._read(reply, deadline)
        except httpx2.TimeoutException:
            return _Again(f"no reply within {self._endpoint.timeout:g} s")
        except (httpx2.TransportError, httpx2.DecodingError) as e:
            return _Again(f"no reply ({type(e).__name__}: {e})")

    def _read(self, reply: httpx2.Response, deadline: float) -> bytes | Unusable | _Again:
        status = f"{reply.status_code} {reply.reason_phrase}".strip()
        if reply.status_code in _TRY_AGAIN:
            return _Again(f"it replied {status}", _wait_told(reply.headers.get("retry-after")))
        if not reply.is_success:
            raise TrialError(f"a judge must take our requests, but {self._endpoint.url} replied {status}.")
        body = bytearray()
        for part in reply.iter_bytes():
            body += part
            if len(body) > _LARGEST:
                return Unusable(f"its reply is larger than {_LARGEST // 1024} KiB")
            if monotonic() > deadline:
                return _Again(f"no whole reply within {self._endpoint.timeout:g} s")
        return bytes(body)

    def _spend(self) -> None:
        with self._lock:
            if self._endpoint.budget is not None and self._calls >= self._endpoint.budget:
                raise TrialError(f"a judge may be called {self._endpoint.budget} times (budget), and all are spent.")
            self._calls += 1


def _until_refused(futures: Iterable[Future[Answer]], stop: Event) -> Iterator[tuple[Future[Answer], Answer]]:
    """The answers as they come in. After a refusal it waits for what is under way, and so paid for, and then raises."""
    refusal: TrialError | None = None
    for future in as_completed(futures):
        if future.cancelled():
            continue
        error = future.exception()
        if isinstance(error, TrialError):
            refusal = refusal or error
            stop.set()
            for waiting in futures:
                waiting.cancel()
        elif refusal is None or not isinstance(future.result(), Unusable):
            yield future, future.result()
    if refusal is not None:
        raise refusal


def api_key(variable: str) -> str:
    """The key that an environment variable holds; raises ValueError, which does not show it, where it holds none."""
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        held = "it holds something else" if key else "it is not set"
        raise ValueError(f"the environment variable {variable} must hold the judge's API key, but {held}.")
    return key


def _headers(endpoint: Endpoint) -> dict[str, str]:
    if endpoint.key_from is None:
        return {}
    try:
        return {"Authorization": f"Bearer {api_key(endpoint.key_from)}"}
    except ValueError as e:
        raise TrialError(f"on this worker {e}") from None


def _content(body: bytes) -> str | Unusable:
    """What the model wrote, of a chat completion."""
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return Unusable(f"its reply is no chat completion: {_short(body.decode('utf-8', 'replace'))}")
    return text if isinstance(text, str) and text.strip() else Unusable("its answer is empty")


def _wait_told(header: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds them or a date (RFC 9110, 10.2.3)."""
    if header is None:
        return None
    try:
        return max(float(header), 0.0)
    except ValueError:
        pass
    try:
        return max((parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 80 else f"{line[:80]}...")
