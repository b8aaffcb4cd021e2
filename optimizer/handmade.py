"""The merges that people make by hand, which a search must beat: a greedy soup, and the best stop of a slider.

Neither can be written down before anything is measured, so they are a study's last trials. What the search knows by
then decides for them: each step asks the study's model, and the merge that comes out is measured like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import optuna

from optimizer.baselines import Baseline
from optimizer.front import Fit, fit
from optimizer.spec import BEST_SLIDER, GREEDY_SOUP, Spec
from search_spaces.recipe import Recipe

Means = Mapping[str, float]

_STOPS = 19
"""Of the slider between two checkpoints: every twentieth."""


class Merit:
    """One number for a merge: how far it keeps the constraints, then the mean of its objectives (Khalifa et al. 2024).

    Every objective is scaled to the range of the study's merges, so that units do not matter.
    """

    def __init__(self, spec: Spec, population: Iterable[Means]) -> None:
        self._spec = spec
        known = list(population)
        self._low = {o.name: min(m[o.name] for m in known) for o in spec.optimised}
        self._width = {o.name: max(m[o.name] for m in known) - self._low[o.name] or 1.0 for o in spec.optimised}

    def __call__(self, means: Means) -> tuple[float, float]:
        """More is better; the first number is 0 where all constraints hold, and less than that where they do not."""
        broken = [max(v, 0.0) for o in self._spec.optimised for v in o.violations(means[o.name]).values()]
        return -sum(broken), self.mean(means, [o.name for o in self._spec.optimised])

    def mean(self, means: Means, objectives: Iterable[str]) -> float:
        """The mean of some objectives, each scaled to [0, 1]."""
        turned = {o.name: 1.0 if o.maximise else -1.0 for o in self._spec.optimised}
        return float(np.mean([turned[n] * (means[n] - self._low[n]) / self._width[n] for n in objectives]))


def handmade(spec: Spec, study: optuna.Study) -> list[Baseline]:
    """Greedy soup and best slider, by the study's model; none where there is no model or one checkpoint alone."""
    found = fit(study)
    names = [c.name for c in spec.checkpoints]
    if found.model is None or len(names) < 2:
        return []
    guess = _Guess(spec, found)
    soup, stop = _greedy(guess, names), _best_stop(guess, names)
    return [Baseline(name=GREEDY_SOUP, recipe=guess.blend(soup)), Baseline(name=BEST_SLIDER, recipe=guess.blend(stop))]


class _Guess:
    """What the model thinks of a merge with the same weights in all layers."""

    def __init__(self, spec: Spec, found: Fit) -> None:
        assert found.model is not None
        self.spec = spec
        self._found = found
        self._model = found.model
        inside = found.data.rows(found.rows)
        means = [self._named(row) for row in (inside.values * found.signs).tolist()]
        self.merit = Merit(spec, means)

    def blend(self, weights: Mapping[str, float]) -> Recipe:
        return self.spec.space.blend(weights)

    def means(self, weights: Mapping[str, float]) -> dict[str, float]:
        import torch

        features = self._model.space.encode([self._numbers(weights)])
        mean, _ = self._model.moments(torch.from_numpy(features))
        return self._named((mean[: self._model.objectives, 0].numpy() * self._found.signs).tolist())

    def of(self, weights: Mapping[str, float]) -> tuple[float, float]:
        """The merit that is expected."""
        return self.merit(self.means(weights))

    def _numbers(self, weights: Mapping[str, float]) -> dict[str, float]:
        return {n: float(v) for n, v in self.spec.space.to_parameters(self.blend(weights)).items()}

    def _named(self, row: Iterable[float]) -> dict[str, float]:
        return {o.name: value for o, value in zip(self.spec.optimised, row, strict=True)}


def _greedy(guess: _Guess, names: list[str]) -> dict[str, float]:
    """From the best checkpoint down, each joins the plain average where that makes it no worse (arXiv:2203.05482)."""
    ordered = sorted(names, key=lambda n: guess.of({n: 1.0}), reverse=True)
    soup, best = {ordered[0]: 1.0}, guess.of({ordered[0]: 1.0})
    for name in ordered[1:]:
        larger = dict.fromkeys([*soup, name], 1 / (len(soup) + 1))
        merit = guess.of(larger)
        if merit >= best:
            soup, best = larger, merit
    return soup


def _best_stop(guess: _Guess, names: list[str]) -> dict[str, float]:
    """The best mix of two checkpoints: the best by the first objective, and the best by all others."""
    corners = {n: guess.means({n: 1.0}) for n in names}
    objectives = [o.name for o in guess.spec.optimised]
    a = max(names, key=lambda n: guess.merit.mean(corners[n], objectives[:1]))
    b = max((n for n in names if n != a), key=lambda n: guess.merit.mean(corners[n], objectives[1:] or objectives))
    stops = [i / (_STOPS + 1) for i in range(1, _STOPS + 1)]
    return max(({a: x, b: 1.0 - x} for x in stops), key=guess.of)
