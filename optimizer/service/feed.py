"""Events as they happen: one look at the database a second for each study that is watched, however many listen."""

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from optimizer.patience import UNREACHABLE, first_line
from storage.events import Event, Position
from storage.store import Store

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_BATCH = 500
_TAIL = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One server-sent event; ``data`` is JSON on one line."""

    id: str
    event: str
    data: str


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

    async def follow(self, study: str, after: Position) -> AsyncIterator[Message]:
        """Everything after a position, then what happens; ends when the study is deleted.

        ``measured`` and ``failed`` carry the position after them. ``state`` comes at once and at every change, with
        the position that the listener had.
        """
        feed = self._feeds.setdefault(study, _Feed(self._store, study, self._state))
        feed.join()
        position, state = after, ""
        try:
            while True:
                seen = feed.turn
                events = await feed.after(position)
                for event in events:
                    position = event.position
                    yield Message(id=str(position), event=event.name, data=_line(dict(event.data)))
                if feed.state != state:
                    state = feed.state
                    yield Message(id=str(position), event="state", data=state)
                if feed.gone:
                    return
                if not events:
                    await feed.changed(seen)
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
        self._tail: deque[Event] = deque(maxlen=_TAIL)
        self._end: Position | None = None
        self._news = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    def join(self) -> None:
        self.listeners += 1
        if self._task is None:
            self._task = asyncio.create_task(self._look())

    def leave(self) -> None:
        self.listeners -= 1
        if not self.listeners and self._task is not None:
            self._task.cancel()

    async def changed(self, seen: int) -> None:
        """Wait until a turn after ``seen`` has brought something."""
        async with self._news:
            await self._news.wait_for(lambda: self.turn != seen)

    async def after(self, position: Position) -> list[Event]:
        """The events after a position: of memory where it reaches back so far, else of the database."""
        if position == self._end:
            return []
        kept = list(self._tail)
        place = next((i for i, event in enumerate(kept) if event.position == position), None)
        if place is not None:
            return kept[place + 1 :]
        return await asyncio.to_thread(self._store.events, self._study, position, _BATCH)

    async def _look(self) -> None:
        while not self.gone:
            try:
                await self._turn()
            except UNREACHABLE as e:
                _log.warning("events wait for the database: %s", first_line(e), extra={"study": self._study})
            await asyncio.sleep(_LOOK_SECONDS)

    async def _turn(self) -> None:
        if self._end is None:
            self._end = await asyncio.to_thread(self._store.position, self._study)
        events = await asyncio.to_thread(self._store.events, self._study, self._end, _BATCH)
        found = await self._state(self._study)
        state = self.state if found is None else _line(found)
        if not events and state == self.state and found is not None:
            return
        self._tail.extend(events)
        self._end = events[-1].position if events else self._end
        self.state, self.gone = state, found is None
        self.turn += 1
        async with self._news:
            self._news.notify_all()


def _line(document: dict[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"))
