"""Where a running search stands, from what its driver has in memory: no database is asked, and any thread may look."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from optimizer.baselines import starting_points
from optimizer.features import Array
from optimizer.front import hypervolume, non_dominated
from optimizer.report.figures import Axis, Point, Role, Scatter, Spread, weights_text
from optimizer.results import direction, is_feasible
from optimizer.spec import Spec
from storage.records import FURTHER, Failed, Measured, Outcome
from workers.pool import Busy


class Board:
    """The trials of a search as measured: no model is asked, so this is a preview of the front that a report shows.

    Args:
        measured: what was measured before this run. failed: how many trials had failed. workers: says what they do.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        planned: int,
        measured: Iterable[Measured],
        failed: int,
        workers: Callable[[], Sequence[Busy]],
    ) -> None:
        self.planned = planned
        self.failed = failed
        self.workers = workers
        self._spec = spec
        self._names = _names(spec)
        self._measured: list[Measured] = []
        self._signs = np.array([1.0 if o.maximise else -1.0 for o in spec.optimised])
        self._worst: Array | None = None  # of the baselines in every objective, more is better
        self._outer: Array = np.empty((0, len(self._signs)))  # feasible merges that none dominates, more is better
        for one in measured:
            self._take(one)

    @property
    def measured(self) -> int:
        """How many trials are measured."""
        return len(self._measured)

    def add(self, outcome: Outcome) -> None:
        """One more. A second look counts as a trial, and is on no front: its merge is there already."""
        if isinstance(outcome, Failed):
            self.failed += 1
        else:
            self._take(outcome)

    def hypervolume(self) -> float:
        """What the feasible merges cover beyond the worst baseline in every objective; 0.0 where nothing does."""
        if self._worst is None:
            return 0.0
        directions = [direction(o) for o in self._spec.optimised]
        return hypervolume(self._outer * self._signs, (self._worst * self._signs).tolist(), directions)

    def figure(self) -> Scatter | None:
        """The first two objectives, or the only one over trials; None before anything is measured."""
        found = self._first_looks()
        if not found:
            return None
        optimised = self._spec.optimised
        y = Axis(label=optimised[0].name, objective=optimised[0])
        x = Axis(label=optimised[1].name, objective=optimised[1]) if len(optimised) > 1 else Axis(label="trial")
        front = self._front(found)
        return Scatter(
            name="front",
            title="The front as measured",
            caption="",
            axes=(x, y),
            points=tuple(self._point(m, (x, y), on_front=m.number in front) for m in found),
            whole=len(optimised) <= 2,
        )

    def _take(self, measured: Measured) -> None:
        self._measured.append(measured)
        if measured.split == FURTHER:
            return
        point = np.array(self._values(measured)) * self._signs
        if measured.recipe.digest in self._names:
            self._worst = point if self._worst is None else np.minimum(self._worst, point)
        new = not (self._outer >= point).all(axis=1).any()
        if new and self._counts(measured) and self._is_merge(measured):
            self._outer = np.vstack([self._outer[~(self._outer <= point).all(axis=1)], point])

    def _first_looks(self) -> list[Measured]:
        return [m for m in list(self._measured) if m.split != FURTHER]

    def _front(self, found: Sequence[Measured]) -> set[int]:
        able = [m for m in found if self._counts(m)]
        if not able:
            return set()
        values = np.array([self._values(m) for m in able])
        return {able[i].number for i in non_dominated(values, [direction(o) for o in self._spec.optimised])}

    def _point(self, measured: Measured, axes: tuple[Axis, Axis], *, on_front: bool) -> Point:
        x, y = (
            measured.scores[a.objective.name].mean if a.objective is not None else float(measured.number) for a in axes
        )
        label = self._names.get(measured.recipe.digest, "")
        role = Role.BASELINE if label else Role.FRONT if on_front else Role.DOMINATED
        return Point(
            trial=measured.number,
            label=label,
            role=role if label or self._counts(measured) else Role.INFEASIBLE,
            on_front=on_front,
            picked=False,
            chosen=False,
            weights=weights_text(measured.recipe),
            posterior=(_exactly(x), _exactly(y)),
            measured=(x, y),
            fresh=None,
        )

    def _values(self, measured: Measured) -> list[float]:
        return [measured.scores[o.name].mean for o in self._spec.optimised]

    def _counts(self, measured: Measured) -> bool:
        """Whether it may be on the front."""
        return not measured.stopped and is_feasible(self._spec, {n: s.mean for n, s in measured.scores.items()})

    def _is_merge(self, measured: Measured) -> bool:
        return set(measured.recipe.weights) <= {c.name for c in self._spec.checkpoints}


def _names(spec: Spec) -> dict[str, str]:
    """Digest of a recipe to the baseline that it is."""
    return {spec.space.settled(s.recipe).digest: s.name for s in starting_points(spec) if s.name is not None}


def _exactly(value: float) -> Spread:
    return Spread(mean=value, low=value, high=value)
