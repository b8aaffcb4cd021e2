"""How the hypervolume grew over a study's trials, and from where on more trials brought little."""

from dataclasses import dataclass

import numpy as np

from optimizer.features import Array
from optimizer.front import hypervolume
from optimizer.results import Results, Row, direction

ENOUGH = 0.99
"""Share of the final hypervolume from which on a study counts as flat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Hypervolume after each trial of ``trials`` (numbers in order), by the posterior means of the whole study.

    Seen from the worst baseline in every objective. ``flat_at`` is the first trial with `ENOUGH` of the final value;
    None where the last trials still added, or nothing is feasible. Empty without a feasible merge or a baseline.
    """

    study: str
    trials: tuple[int, ...]
    values: tuple[float, ...]
    flat_at: int | None

    @property
    def text(self) -> str:
        """In one sentence where it flattened."""
        if not self.trials or not self.values[-1]:
            return "No merge lies beyond the worst baseline yet."
        if self.flat_at is None:
            return f"It still grew in the last trials: `mergefront resume {self.study} --trials 20` may find more."
        later = sum(t > self.flat_at for t in self.trials)
        return f"{ENOUGH:.0%} of it was there after trial {self.flat_at}; the {later} trials since added the rest."


def growth(found: Results) -> Growth:
    """The growth of a study's hypervolume."""
    rows = [r for r in found.merges if r.feasible and not r.stopped]
    corner = worst_baseline(found)
    if not rows or corner is None:
        return Growth(study=found.spec.study, trials=(), values=(), flat_at=None)
    trials = tuple(r.trial for r in found.rows)
    values = _grown(found, {r.trial: r for r in rows}, corner)
    return Growth(study=found.spec.study, trials=trials, values=values, flat_at=_flat_at(trials, values))


def worst_baseline(found: Results) -> Array | None:
    """The worst posterior mean that a baseline has in each objective; None without baselines."""
    values = np.array([_means(found, r) for r in found.baselines])
    if not len(values):
        return None
    worst = [min if o.maximise else max for o in found.spec.optimised]
    return np.array([pick(column) for pick, column in zip(worst, values.T, strict=True)])


def _grown(found: Results, counted: dict[int, Row], corner: Array) -> tuple[float, ...]:
    """The hypervolume is computed anew only where a trial lies outside what is covered already."""
    directions = [direction(o) for o in found.spec.optimised]
    signs = np.array([1.0 if o.maximise else -1.0 for o in found.spec.optimised])
    covered = np.empty((0, len(signs)))
    value, values = 0.0, []
    for row in found.rows:
        point = _means(found, row) * signs
        if row.trial in counted and not (covered >= point).all(axis=1).any():
            covered = np.vstack([covered[~(covered <= point).all(axis=1)], point])
            value = hypervolume(covered * signs, corner.tolist(), directions)
        values.append(value)
    return tuple(values)


def _flat_at(trials: tuple[int, ...], values: tuple[float, ...]) -> int | None:
    """None where the last tenth of the trials still added."""
    place = next(i for i, v in enumerate(values) if v >= ENOUGH * values[-1])
    return trials[place] if values[-1] and place < 0.9 * (len(trials) - 1) else None


def _means(found: Results, row: Row) -> Array:
    return np.array([row.posterior[o.name][0] for o in found.spec.optimised])
