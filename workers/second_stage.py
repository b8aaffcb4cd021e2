"""What a worker keeps for scorers that mark in a second stage: models loaded once, verdicts that are known."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar, cast

Verdict = Mapping[str, Any]

_Made = TypeVar("_Made")


class SecondStage:
    """One for each worker, for the worker's whole life.

    Args:
        device: where a second model shall run: ``cpu`` or ``cuda[:n]``.
        verdicts: what judges said before, by the digest of what they were asked.
    """

    def __init__(self, *, device: str = "cpu", verdicts: Mapping[str, Verdict] | None = None) -> None:
        self.device = device
        self._known = dict(verdicts or {})
        self._new: dict[str, Verdict] = {}
        self._made: dict[Hashable, object] = {}

    def once(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """What ``make`` gives, made the first time that ``key`` is asked for."""
        if key not in self._made:
            self._made[key] = make()
        return cast(_Made, self._made[key])

    def verdict(self, key: str) -> Verdict | None:
        """What a judge said when it was asked this before."""
        return self._known.get(key)

    def learn(self, verdicts: Mapping[str, Verdict]) -> None:
        """Know what judges have said elsewhere."""
        self._known.update(verdicts)

    def keep(self, key: str, verdict: Verdict) -> None:
        """Remember what a judge said."""
        self._known[key] = self._new[key] = verdict

    def new_verdicts(self) -> dict[str, Verdict]:
        """Those kept since this was asked last. What a trial that failed had found goes out with the next one."""
        found, self._new = self._new, {}
        return found
