"""Fronts that are ready to be handed out. Working one out takes a second or more; asking must not."""

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from time import monotonic

from optimizer.service.reader import Aside, Reading, reading
from storage.store import Store

_KEPT = 32
_LOOK_SECONDS = 0.2
"""For so long a look at a study's revision is good enough for the next request."""

_SHARE = 10
"""While a study runs, a front is worked out anew when the last time was this many times as long ago as it took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a study has found, and of which revision that is."""

    revision: str
    reading: Reading
    at: float
    seconds: float

    @property
    def tag(self) -> str:
        """Names the revision, for an ETag."""
        return hashlib.sha256(self.revision.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    revision: str
    driven: bool
    at: float


class Fronts:
    """The newest front of each study.

    Of a study that nobody drives it is always that of all its trials. While one runs, trials come in faster than a
    front can be worked out: then the last one is handed out, and the next is worked out meanwhile.
    """

    def __init__(self, store: Store, url: str, reader: Aside) -> None:
        self._store = store
        self._url = url
        self._reader = reader
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._looks: dict[str, _Look] = {}
        self._work: dict[str, asyncio.Task[Known]] = {}

    async def get(self, study: str) -> Known:
        """The front of a study; raises StoreError for an unknown one."""
        look = await self._look(study)
        known = self._known.get(study)
        if known is not None and known.revision == look.revision:
            return known
        if known is None or not look.driven:
            return await self._worked_out(study, look.revision)
        if monotonic() - known.at > _SHARE * known.seconds:
            self._begin(study, look.revision)
        return known

    async def revision(self, study: str) -> str:
        """The study's revision at this moment, or a fifth of a second ago."""
        return (await self._look(study)).revision

    def hypervolume(self, study: str) -> float | None:
        """The last hypervolume that was worked out."""
        known = self._known.get(study)
        return None if known is None else known.reading.hypervolume

    def forget(self, study: str) -> None:
        """The study is gone."""
        self._known.pop(study, None)
        self._looks.pop(study, None)

    async def _worked_out(self, study: str, revision: str) -> Known:
        """Wait for it. What others have begun may be of an earlier revision: then once more."""
        while True:
            known = await asyncio.shield(self._begin(study, revision))
            if known.revision == revision:
                return known

    def _begin(self, study: str, revision: str) -> asyncio.Task[Known]:
        """The work that is under way for a study, or that begins now."""
        if study not in self._work:
            task = asyncio.create_task(self._work_out(study, revision))
            self._work[study] = task
            task.add_done_callback(lambda _: self._work.pop(study, None))
        return self._work[study]

    async def _work_out(self, study: str, revision: str) -> Known:
        begun = monotonic()
        found = await self._reader.run(reading, self._url, study, revision)
        known = Known(revision=revision, reading=found, at=monotonic(), seconds=monotonic() - begun)
        self._known[study] = known
        self._known.move_to_end(study)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return known

    async def _look(self, study: str) -> _Look:
        look = self._looks.get(study)
        if look is None or monotonic() - look.at > _LOOK_SECONDS:
            look = await asyncio.to_thread(self._look_now, study)
            self._looks[study] = look
        return look

    def _look_now(self, study: str) -> _Look:
        at = monotonic()
        return _Look(revision=self._store.revision(study), driven=self._store.driver(study) is not None, at=at)
