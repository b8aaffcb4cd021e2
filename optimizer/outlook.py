"""What the sampler foretells, and what a driver makes of it: a second look at a finalist, or an early end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from optimizer.samplers import AGAIN, OUTLOOK
from optimizer.spec import Spec
from storage.records import FURTHER

STOPPED = "stopped_early"
"""The study's note of an early end."""

SPENT = "budget_spent"
"""The study's note of an end by its budget."""

_LOOKS = 5
"""How many proposals must agree on the end: a single forecast is noisy itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Why a search ends: ``ahead`` more trials promise a ``gain`` of hypervolume below its ``noise``, both shares."""

    trials: int
    ahead: int
    gain: float
    noise: float

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the study's notes."""
        return {"trials": self.trials, "ahead": self.ahead, "gain": self.gain, "noise": self.noise}


def end_of(trials: Sequence[FrozenTrial], ahead: int) -> End | None:
    """The end of a search whose trials are these; None where it should go on.

    A trial's expected gain shrinks as the search goes on, so ``ahead`` times the next one's is more than so many would
    bring.
    """
    looks = [t.system_attrs[OUTLOOK] for t in trials if OUTLOOK in t.system_attrs][-_LOOKS:]
    if len(looks) < _LOOKS:
        return None
    gain = ahead * sum(look["gain"] for look in looks) / len(looks)
    noise = sum(look["noise"] for look in looks) / len(looks)
    return End(trials=len(trials), ahead=ahead, gain=gain, noise=noise) if gain < noise else None


def end_text(notes: Mapping[str, Any]) -> str:
    """An early end in one line; empty where there was none."""
    if SPENT in notes:
        found = notes[SPENT]
        return f"ended after {found['trials']} trials: {found['spent']:.3g} of {found['budget']:.3g} GPU hours spent"
    found = notes.get(STOPPED)
    if found is None:
        return ""
    return (
        f"stopped early after {found['trials']} trials: {found['ahead']} more promised {found['gain']:.1%} of "
        f"hypervolume, less than its noise ({found['noise']:.1%})"
    )


class SecondLooks:
    """Which finalist is measured again in place of a new merge. They take at most a share of the planned trials."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._possible: bool | None = None if spec.search.evaluation.items else False

    def due(self, trial: FrozenTrial, trials: Sequence[FrozenTrial], planned: int) -> int | None:
        """The trial to look at again before ``trial`` is measured; None where the new merge promises more."""
        look = trial.system_attrs.get(OUTLOOK)
        if look is None or look["again"] is None or look["worth_again"] <= look["worth"]:
            return None
        known = [int(t.user_attrs[AGAIN]) for t in trials if AGAIN in t.user_attrs]
        spent = len(known) + 1 > self._spec.search.evaluation.remeasure * planned
        return None if spent or look["again"] in known or not self._items() else int(look["again"])

    def _items(self) -> bool:
        """Whether every objective of the search has further items; suites are read when it is first asked."""
        if self._possible is None:
            plans = [plan for plan in self._spec.setup(device="cpu").objectives if not plan.watched]
            self._possible = all(suite.load()[FURTHER].items for plan in plans for suite in plan.suites)
        return self._possible
