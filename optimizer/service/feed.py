"""Events as they happen: one look at the database a second for each study that is watched, however many listen."""

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from optimizer.patience import UNREACHABLE, first_line
from storage.events import Event, Position
from storage.store import Store

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_BATCH = 500
_TAIL = 500
_PING_SECONDS = 15.0


State = Callable[[str], Awaitable[dict[str, Any] | None]]
"""How a study stands; None where there is none any more."""


class Feeds:
    """The events of every study that somebody listens to.

    Args:
        state: asked once a second for each study that is watched.
    """

    def __init__(self, store: Store, state: State) -> None:
        self._store = store
        self._state = state
        self._feeds: dict[str, _Feed] = {}

    @property
    def listeners(self) -> int:
        """How many listen now."""
        return sum(feed.listeners for feed in self._feeds.values())

    def position(self, study: str) -> Position | None:
        """Where a study is now, if anybody listens to it already."""
        feed = self._feeds.get(study)
        return None if feed is None else feed.end

    async def follow(self, study: str, after: Position) -> AsyncIterator[bytes]:
        """Server-sent events: everything after a position, then what happens; ends when the study is deleted.

        ``measured`` and ``failed`` carry the position after them. ``state`` comes at once and at every change, with
        the position that the listener had.
        """
        feed = self._feeds.setdefault(study, _Feed(self._store, study, self._state))
        feed.join()
        position, state = after, ""
        try:
            while True:
                seen, news = feed.turn, feed.news
                events = await feed.after(position)
                position = events[-1].position if events else position
                chunk = b"".join(map(feed.encoded, events))
                if feed.state != state:
                    state = feed.state
                    chunk += _encoded("state", position, state)
                if chunk:
                    yield chunk
                if feed.gone:
                    return
                if not events and feed.turn == seen and not await _within(news, _PING_SECONDS):
                    yield b": ping\n\n"
        finally:
            feed.leave()
            if not feed.listeners and self._feeds.get(study) is feed:
                del self._feeds[study]


class _Feed:
    """One study's newest events, looked up for all who listen to it."""

    def __init__(self, store: Store, study: str, state: State) -> None:
        self.listeners = 0
        self.turn = 0
        self.state = ""
        self.gone = False
        self._store = store
        self._study = study
        self._state = state
        self.end: Position | None = None
        self.news = asyncio.Event()
        self._tail: deque[tuple[Event, bytes]] = deque(maxlen=_TAIL)
        self._task: asyncio.Task[None] | None = None

    def join(self) -> None:
        self.listeners += 1
        if self._task is None:
            self._task = asyncio.create_task(self._look())

    def leave(self) -> None:
        self.listeners -= 1
        if not self.listeners and self._task is not None:
            self._task.cancel()

    async def after(self, position: Position) -> list[Event]:
        """The events after a position: of memory where it reaches back so far, else of the database."""
        if position == self.end:
            return []
        kept = [event for event, _ in self._tail]
        place = next((i for i in reversed(range(len(kept))) if kept[i].position == position), None)
        if place is not None:
            return kept[place + 1 :]
        return await asyncio.to_thread(self._store.events, self._study, position, _BATCH)

    def encoded(self, event: Event) -> bytes:
        """An event as it is sent; written once for all who listen."""
        known = next((sent for kept, sent in reversed(self._tail) if kept is event), None)
        return known or _encoded(event.name, event.position, _line(dict(event.data)))

    async def _look(self) -> None:
        while not self.gone:
            try:
                await self._turn()
            except UNREACHABLE as e:
                _log.warning("events wait for the database: %s", first_line(e), extra={"study": self._study})
            await asyncio.sleep(_LOOK_SECONDS)

    async def _turn(self) -> None:
        if self.end is None:
            self.end = await asyncio.to_thread(self._store.position, self._study)
        events = await asyncio.to_thread(self._store.events, self._study, self.end, _BATCH)
        found = await self._state(self._study)
        state = self.state if found is None else _line(found)
        if not events and state == self.state and found is not None:
            return
        self._tail.extend((e, _encoded(e.name, e.position, _line(dict(e.data)))) for e in events)
        self.end = events[-1].position if events else self.end
        self.state, self.gone = state, found is None
        self.turn += 1
        news, self.news = self.news, asyncio.Event()
        news.set()


def _line(document: dict[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"))


def _encoded(name: str, position: Position, data: str) -> bytes:
    """One server-sent event (HTML standard, 9.2); ``data`` is JSON on one line."""
    return f"event: {name}\ndata: {data}\nid: {position}\n\n".encode()


async def _within(news: asyncio.Event, seconds: float) -> bool:
    """Whether there was news in time."""
    try:
        async with asyncio.timeout(seconds):
            await news.wait()
    except TimeoutError:
        return False
    return True
