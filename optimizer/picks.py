"""Pick expressions: which trial of a front somebody wants, in words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from optuna.study import StudyDirection

from optimizer.front import knee, non_dominated
from search_spaces.errors import InputError

_PICK = re.compile(r"^\s*(?:(?P<goal>max|min)\s+(?P<objective>\S+)|knee)(?:\s+where\s+(?P<conditions>.+?))?\s*$")
_CONDITION = re.compile(r"^\s*(?P<objective>\S+)\s*(?P<sign>>=|<=)\s*(?P<bound>[-+.\deE]+)\s*$")

Means = Mapping[int, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extreme:
    """The best, or the worst, of one objective. Among equally good trials ``directions`` decide, in their order."""

    objective: str
    maximise: bool
    directions: Mapping[str, bool]

    @property
    def objectives(self) -> tuple[str, ...]:
        """What it names."""
        return (self.objective,)

    def best(self, means: Means) -> int:
        """The trial that is most of it."""
        order = {self.objective: self.maximise} | {n: d for n, d in self.directions.items() if n != self.objective}

        def merit(number: int) -> tuple[float, ...]:
            values = means[number]
            return (*(values[o] if more else -values[o] for o, more in order.items() if o in values), -number)

        return max(means, key=merit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """Where the front of these objectives bulges most: beyond it, a little more of one costs much of the others."""

    directions: Mapping[str, bool]

    @property
    def objectives(self) -> tuple[str, ...]:
        """What it looks at."""
        return tuple(self.directions)

    def best(self, means: Means) -> int:
        """The knee of the trials that no other of them dominates."""
        turns = [StudyDirection.MAXIMIZE if more else StudyDirection.MINIMIZE for more in self.directions.values()]
        numbers = sorted(means)
        values = np.array([[means[n][o] for o in self.directions] for n in numbers])
        front = non_dominated(values, turns)
        return numbers[front[knee(values[front], turns)]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """A parsed pick expression: the best of one objective, or the knee, where bounds on objectives hold."""

    text: str
    goal: Extreme | Knee
    conditions: tuple[tuple[str, bool, float], ...]

    @classmethod
    def parse(cls, text: str, directions: Mapping[str, bool], optimised: Sequence[str] | None = None) -> "Pick":
        """Read ``max OBJECTIVE``, ``min OBJECTIVE`` or ``knee``, then ``[where OBJECTIVE >= NUMBER [and ...]]``.

        Args:
            directions: of every objective, whether more is better. optimised: those that a knee is of; None for all.
        Raises: InputError where it reads otherwise.
        """
        found = _PICK.match(text)
        if found is None:
            raise InputError(
                "--pick must read like 'max general where safety >= 0.95' or 'knee where safety >= 0.95', "
                f"but got {text!r}."
            )
        goal: Extreme | Knee
        if found["goal"]:
            goal = Extreme(objective=found["objective"], maximise=found["goal"] == "max", directions=directions)
        else:
            goal = Knee(directions={n: d for n, d in directions.items() if optimised is None or n in optimised})
        conditions = [c for c in re.split(r"\s+and\s+", found["conditions"] or "") if c]
        pick = cls(text=text, goal=goal, conditions=tuple(_condition(c) for c in conditions))
        unknown = [n for n in [*goal.objectives, *(c[0] for c in pick.conditions)] if n not in directions]
        if unknown:
            raise InputError(f"--pick must name objectives ({', '.join(directions)}), but names {unknown[0]}.")
        return pick

    def choose(self, means: Means) -> int:
        """The trial that this expression picks; raises InputError where none meets its conditions."""
        allowed = {n: values for n, values in means.items() if self._holds(values)}
        if not allowed:
            best = {
                o: (max if least else min)((v[o] for v in means.values() if o in v), default=float("nan"))
                for o, least, _ in self.conditions
            }
            nearest = ", ".join(f"{name} {value:.3f}" for name, value in best.items()) or "there is no such merge"
            raise InputError(f"a trial must meet {self.text!r}, but none does (best on its own: {nearest}).")
        return self.goal.best(allowed)

    def _holds(self, values: Mapping[str, float]) -> bool:
        if any(name not in values for name in self.goal.objectives):
            return False
        return all(
            name in values and (values[name] >= bound if least else values[name] <= bound)
            for name, least, bound in self.conditions
        )


def _condition(text: str) -> tuple[str, bool, float]:
    found = _CONDITION.match(text)
    try:
        if found is not None and isfinite(bound := float(found["bound"])):
            return found["objective"], found["sign"] == ">=", bound
    except ValueError:
        pass
    raise InputError(f"a condition of --pick must read like 'safety >= 0.95', but got {text!r}.")
