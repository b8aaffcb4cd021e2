"""The referee of a race: what racing.py asks about, taken from one trial's values and its rivals'."""

from collections.abc import Mapping, Sequence

import numpy as np

from storage.records import Rival
from workers.errors import TrialError
from workers.racing import Gap, Rules, verdict
from workers.scores import Aggregation
from workers.sheet import Asked, Objective, Sheet, Standing

_Values = Sequence[float | None]


class Referee:
    """Looks at one trial after each rung and says why it shall stop, if it shall.

    Args:
        sheet: that the trial answers. rivals: members of the front, with the values of all their items.
    """

    def __init__(self, sheet: Sheet, rivals: Sequence[Rival], rules: Rules) -> None:
        self._objectives = sheet.objectives
        self._looks = sheet.looks
        self._rivals = rivals
        self._rules = rules

    def __call__(self, standing: Standing) -> str:
        """Why the trial stops, with how much it has answered; empty where it goes on, or nothing can be said yet."""
        try:
            gaps = [self._gap(o, standing) for o in self._objectives] if self._rivals else []
            constraints = {name: gap for o in self._objectives for name, gap in _constraints(o, standing).items()}
        except TrialError:
            return ""  # a language without a scored item so far
        numbers = [rival.number for rival in self._rivals]
        reason = verdict(gaps, numbers, constraints, rules=self._rules, looks=self._looks)
        asked = sum(map(len, standing.asked.values()))
        whole = sum(len(suite.items) for objective in self._objectives for suite in objective.suites)
        return f"{reason} after {asked} of {whole} items" if reason else ""

    def _gap(self, objective: Objective, standing: Standing) -> Gap:
        """By how much the candidate is better than each rival, on items that both have scored."""
        aggregation, own = standing.aggregations[objective.name], standing.values[objective.name]
        theirs = [_values(rival.values, objective, standing.asked) for rival in self._rivals]
        pairs = [_difference(aggregation, own, values) for values in theirs]
        scale = (1.0 if objective.maximise else -1.0) / _width(objective)
        return Gap(
            mean=scale * np.array([mean for mean, _ in pairs]),
            parts=scale * np.stack([parts for _, parts in pairs]),
            kinds=_kinds(aggregation),
            pseudo=None if objective.bounds is None else (0.0, 1.0),
        )


def _constraints(objective: Objective, standing: Standing) -> dict[str, Gap]:
    """By how much each of the objective's constraints is met."""
    limits = {"at_least": (objective.at_least, 1.0), "at_most": (objective.at_most, -1.0)}
    aggregation = standing.aggregations[objective.name]
    found = {}
    for name, (limit, sign) in limits.items():
        if limit is None:
            continue
        mean, parts = aggregation.contributions(standing.values[objective.name])
        scale = sign / _width(objective)
        found[f"{objective.name} {name} {limit}"] = Gap(
            mean=np.array(scale * (mean - limit)),
            parts=scale * parts,
            kinds=_kinds(aggregation),
            pseudo=_ends([scale * (end - limit) for end in objective.bounds or ()]),
        )
    return found


def _difference(aggregation: Aggregation, own: _Values, theirs: _Values) -> tuple[float, np.ndarray]:
    paired = [a is not None and b is not None for a, b in zip(own, theirs, strict=True)]
    mine = aggregation.contributions([v if both else None for v, both in zip(own, paired, strict=True)])
    other = aggregation.contributions([v if both else None for v, both in zip(theirs, paired, strict=True)])
    return mine[0] - other[0], mine[1] - other[1]


def _values(values: Mapping[str, _Values], objective: Objective, asked: Asked) -> list[float | None]:
    return [values[suite.key][place] for suite in objective.suites for place in asked[suite.key]]


def _kinds(aggregation: Aggregation) -> np.ndarray:
    kinds = aggregation.clusters
    distinct = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    return np.array([distinct[kind] for kind in kinds], dtype=np.intp)


def _ends(ends: Sequence[float]) -> tuple[float, float] | None:
    return (sum(ends), sum(end**2 for end in ends)) if ends else None


def _width(objective: Objective) -> float:
    low, high = objective.bounds or (0.0, 1.0)
    return high - low
