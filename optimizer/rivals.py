"""Whom a candidate races against: the front as it stands, with the values of its members' items."""

import optuna
from optuna.trial import TrialState

from optimizer.front import posterior_front
from optimizer.measurements import MOST_POINTS
from storage.records import Rival
from storage.store import Store


class Rivals:
    """The front by posterior of the trials that answered everything. Each member's items are read once."""

    def __init__(self, store: Store, name: str, study: optuna.Study) -> None:
        self._store = store
        self._name = name
        self._study = study
        self._complete = 0
        self._members: dict[int, Rival] = {}

    def against(self, number: int) -> tuple[Rival, ...] | None:
        """The rivals of a trial; None for a baseline, which is not raced."""
        trials = self._study.get_trials(deepcopy=False)
        if any(t.number == number and t.user_attrs.get("baseline") for t in trials):
            return None
        complete = sum(t.state == TrialState.COMPLETE for t in trials)
        if complete != self._complete:
            front = posterior_front(self._study, MOST_POINTS)
            self._members = {n: self._members.get(n) or self._read(n) for n in front}
            self._complete = complete
        return tuple(self._members.values())

    def _read(self, number: int) -> Rival:
        marks = self._store.with_marks(self._name, number).marks
        return Rival(number=number, values={suite: found.values for suite, found in marks.items()})
