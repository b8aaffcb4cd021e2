"""Samplers by short name, all of them rebuilt from a study and a seed.

A sampler here keeps no state between trials: what it draws depends on its seed, the trial's number and the trials in
the study. A study that is resumed with a rebuilt sampler therefore goes on as if it had never stopped.
"""

from __future__ import annotations

import itertools
import math
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from threadpoolctl import threadpool_limits

from optimizer.features import Array, Space, dead_zone, random_features, shared_distributions, space_of
from optimizer.measurements import Data, data_of, most_telling

NAMES = ("auto", "gp", "tpe", "nsga2", "nsga3", "cmaes", "grid", "random")
"""What `make_sampler` knows."""

OUTLOOK = "mergefront:outlook"
"""System attribute of a trial that ``auto`` proposed: what it promised, see `optimizer.next_point.Proposal`."""

AGAIN = "again"
"""User attribute of a trial that measures an earlier one's merge on further items: that one's number."""

GRID_LIMIT = 10_000
"""Most points that a grid may have."""

_SWEEP_WEIGHTS = (0.0, 0.3, 0.5, 0.7, 1.0)
_SWEEP_SCALES = (0.2, 0.4, 0.6, 0.8, 1.0)
_MOST_CORNERS = 16

if TYPE_CHECKING:
    from optimizer.next_point import Proposal
    from optimizer.surrogate import Surrogate

Distributions = Mapping[str, BaseDistribution]


def make_sampler(name: str = "auto", *, seed: int | None = None, space: Distributions | None = None) -> BaseSampler:
    """An Optuna sampler for any study of merge weights, with one or several objectives.

    ``auto``: a Gaussian process on the merge weights that knows each trial's own noise (trial attribute ``stderr``, one
    standard error an objective), asked for the largest expected gain in hypervolume. ``gp``, ``tpe``, ``nsga2``,
    ``nsga3``, ``random``: Optuna's own. ``cmaes``: CMA-ES on the mean of the objectives (Khalifa et al. 2024,
    arXiv:2412.04144). ``grid``: the sweeps of Aakanksha et al. 2024 (arXiv:2410.10801) and Morrison et al. 2024
    (arXiv:2410.12937), in random order. Trials without parameters (baselines) are kept from all of them.

    Args:
        name: one of `NAMES`. seed: of all that is drawn; chosen at random if None. space: the parameters, where they
            are known; else they are learnt from the first trial.

    Raises:
        ValueError: the name is unknown, the seed negative, or the grid of a known space has more than `GRID_LIMIT`
            points. Where ``space`` is None, the grid raises it when it is first asked.
    """
    if name not in NAMES:
        raise ValueError(f"a sampler must be one of {', '.join(NAMES)}, but got {name!r}.")
    if seed is not None and seed < 0:
        raise ValueError(f"a sampler's seed must be 0 or more, but got {seed}.")
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    if name == "auto":
        return _Auto(seed, space)
    if name == "grid":
        return _Grid(seed, space)
    if name == "cmaes":
        return _CmaEs(seed, space)
    return _Wrapped(_OPTUNA[name], seed)


def drawn_together(study: Study, count: int) -> list[FrozenTrial]:
    """At most ``count`` proposals of a study's sampler that are to run at the same time, as trials to be added to it.

    Cheaper than as many asks: ``auto`` fits and searches once for all of them. None where it has no model yet, and from
    the other samplers, which are asked for one after the other.
    """
    sampler = study.sampler
    return sampler.together(study, count) if isinstance(sampler, _Auto) else []


def _gp(seed: int) -> BaseSampler:
    return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)


def _tpe(seed: int) -> BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, multivariate=True)


def _grouped_tpe(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        # Conditional parameters (a method's own) need Optuna's grouped estimator, which it calls experimental.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)


def _nsga2(seed: int) -> BaseSampler:
    # Optuna's default of 50 would spend most of a study on its first, random generation.
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=20)


def _nsga3(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        # Optuna has called it experimental since 2023.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna.samplers.NSGAIIISampler(seed=seed, population_size=20)


def _random(seed: int) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


_OPTUNA: Mapping[str, Callable[[int], BaseSampler]] = {
    "gp": _gp,
    "tpe": _tpe,
    "nsga2": _nsga2,
    "nsga3": _nsga3,
    "random": _random,
}


# --- Optuna's own samplers, kept from what they cannot take ----------------------------------------------------------


class _View(Study):
    """A study without the finished trials that Optuna's samplers break on.

    These are trials without parameters, with values that are not finite, or with another set of constraints than most.
    """

    def __init__(self, study: Study) -> None:
        self.__dict__.update(study.__dict__)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = super()._get_trials(deepcopy=deepcopy, states=None, use_cache=use_cache)
        return [t for t in _usable(trials) if states is None or t.state in states]

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        return self._get_trials(deepcopy, states)


def _usable(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that are not finished, and COMPLETE ones with parameters, finite values and the same constraints."""
    kept = [t for t in trials if t.state != TrialState.COMPLETE or (t.params and np.all(np.isfinite(t.values)))]
    kinds = Counter(frozenset(t.constraints) for t in kept if t.state == TrialState.COMPLETE)
    usual = max(kinds, key=lambda kind: (kinds[kind], len(kind)), default=None)
    return [t for t in kept if t.state != TrialState.COMPLETE or frozenset(t.constraints) == usual]


class _Stateless(BaseSampler):
    """A sampler whose every draw comes from its seed and the trial's number."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def _draw_seed(self, number: int, salt: str = "") -> int:
        entropy = [self._seed, number, zlib.crc32(salt.encode())]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])


class _Wrapped(_Stateless):
    """One of Optuna's samplers, made anew for each call and shown a `_View`."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        super().__init__(seed)
        self._make = make

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._make(self._draw_seed(trial.number)).infer_relative_search_space(_View(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        inner = self._make(self._draw_seed(trial.number))
        view = _View(study)
        # Optuna's grouped TPE remembers here what it needs below.
        inner.infer_relative_search_space(view, trial)
        with threadpool_limits(1):
            # Optuna's Gaussian process is several times slower on two threads than on one.
            return inner.sample_relative(view, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        inner = self._make(self._draw_seed(trial.number, param_name))
        return inner.sample_independent(_View(study), trial, param_name, param_distribution)


# --- samplers of our own ---------------------------------------------------------------------------------------------


class _Joint(_Stateless):
    """A sampler that proposes all parameters together, in the features of `optimizer.features.Space`."""

    def __init__(self, seed: int, space: Distributions | None) -> None:
        super().__init__(seed)
        self._known = dict(space) if space else None
        self._other = _Wrapped(_grouped_tpe, seed)
        if self._known is not None:
            self._accept(self._known)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        distributions = self._known or _distributions(study, trial)
        if not self._accept(distributions):
            return self._other.infer_relative_search_space(study, trial)
        return {name: d for name, d in (distributions or {}).items() if not d.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        distributions = self._known or _distributions(study, trial)
        space = space_of(distributions) if distributions else None
        if search_space.keys() <= trial.system_attrs.get("fixed_params", {}).keys():
            return {}  # nothing is left to be chosen
        if space is None:
            return self._other.sample_relative(study, trial, search_space)
        params = self._propose(study, trial, space)
        return {name: params[name] for name in search_space}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        # The first trial of a study whose parameters are not known yet: the uniform merge.
        if isinstance(param_distribution, FloatDistribution) and not _any_measured(study):
            high = param_distribution.high
            return high if param_name.startswith("w.") else (param_distribution.low + high) / 2
        return self._other.sample_independent(study, trial, param_name, param_distribution)

    def _accept(self, distributions: Distributions | None) -> bool:
        """Whether this sampler can search these parameters; if not it raises ValueError, or they go to grouped TPE."""
        raise NotImplementedError

    def _propose(self, study: Study, trial: FrozenTrial, space: Space) -> dict[str, Any]:
        raise NotImplementedError


def _distributions(study: Study, trial: FrozenTrial) -> Distributions | None:
    return shared_distributions([t for t in study.get_trials(deepcopy=False) if t.number != trial.number])


def _all_numbers(distributions: Distributions | None) -> bool:
    numbers = (FloatDistribution, IntDistribution)
    return distributions is not None and all(isinstance(d, numbers) for d in distributions.values())


def _require_numbers(name: str, distributions: Distributions | None) -> None:
    if not _all_numbers(distributions):
        got = ", ".join(distributions) if distributions else "parameters that come and go"
        raise ValueError(f"the {name} sampler needs the same numbers in every trial, but got {got}.")


def _any_measured(study: Study) -> bool:
    return any(t.params for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def _seen(study: Study, trial: FrozenTrial, space: Space) -> Array:
    """Features ``(n, d)`` of every trial that has been asked for, but for the failed ones."""
    states = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING, TrialState.PRUNED)
    trials = study.get_trials(deepcopy=False, states=states)
    return space.encode([p for t in trials if t.number != trial.number and (p := _params(t, space))])


def _params(trial: FrozenTrial, space: Space) -> dict[str, Any]:
    """A trial's parameters in the space, those that it is still to be given included; empty if it lies outside."""
    params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    return params if space.holds(params) else {}


def _is_new(point: Array, seen: Array) -> bool:
    return len(seen) == 0 or float(np.abs(seen - point).max(axis=1).min()) > 1e-6


class _Auto(_Joint):
    """Uniform and corners, some random mixes, then the point with the largest expected gain in hypervolume.

    Parameters that are no numbers, or that come and go from trial to trial, are left to Optuna's grouped TPE.
    """

    def __init__(self, seed: int, space: Distributions | None) -> None:
        super().__init__(seed, space)
        # Saves work and changes nothing: which trials a model is fitted on is decided by the study alone.
        self._fitted: tuple[tuple[int, ...], Surrogate] | None = None

    def _accept(self, distributions: Distributions | None) -> bool:
        return _all_numbers(distributions)

    def _propose(self, study: Study, trial: FrozenTrial, space: Space) -> dict[str, Any]:
        from optimizer import surrogate

        rng = np.random.default_rng([self._seed, trial.number])
        data = data_of(study)
        inside = data.inside(space)
        if len(inside) < _enough(space):
            seen = _seen(study, trial, space)
            random = random_features(space, 1, rng)[0]
            return space.decode(next((p for p in _corners(space) if _is_new(p, seen)), random))
        with surrogate.one_thread(self._draw_seed(trial.number)):
            proposal = _best_point(space, data.rows(inside), _pending(study, space, trial), rng, _once(study))
        if proposal is None:
            return space.decode(random_features(space, 1, rng)[0])
        # As Optuna's own samplers leave behind what they know; a driver may read it.
        study._storage.set_trial_system_attr(trial._trial_id, OUTLOOK, _outlook(proposal))
        return space.decode(proposal.features)

    def together(self, study: Study, count: int) -> list[FrozenTrial]:
        """At most ``count`` trials to be added to the study and run at the same time, all from one model.

        None where the study has no model yet: it is asked for one trial after the other then.
        """
        from optimizer import next_point, surrogate

        trials = study.get_trials(deepcopy=False)
        distributions = self._known or shared_distributions(trials)
        space = space_of(distributions) if distributions and self._accept(distributions) else None
        if distributions is None or space is None:
            return []
        data = data_of(study)
        inside = data.inside(space)
        if len(inside) < _enough(space):
            return []
        number = len(trials)
        rng = np.random.default_rng([self._seed, number])
        with surrogate.one_thread(self._draw_seed(number)):
            try:
                model = self._model(space, data.rows(inside), trials)
                found = next_point.propose_several(model, _pending(study, space), count, rng, _once(study))
            except surrogate.FIT_ERRORS:
                return []
        return [
            create_trial(
                state=TrialState.RUNNING,
                params=space.decode(proposal.features),
                distributions=dict(distributions),
                system_attrs={OUTLOOK: _outlook(proposal)},
            )
            for proposal in found
        ]

    def _model(self, space: Space, data: Data, trials: Sequence[FrozenTrial]) -> Surrogate:
        """Of all trials, fitted on those that were done when their number had last grown by a tenth."""
        from optimizer.surrogate import Surrogate

        done = sorted(range(len(data.numbers)), key=lambda i: (_ended(trials[data.numbers[i]]), i))
        first = data.rows(np.array(sorted(done[: _last_milestone(len(done))])))
        if self._fitted is None or self._fitted[0] != first.numbers:
            self._fitted = first.numbers, Surrogate(space, first.rows(most_telling(first)))
        return Surrogate(space, data.rows(most_telling(data)), like=self._fitted[1])


def _ended(trial: FrozenTrial) -> float:
    return math.inf if trial.datetime_complete is None else trial.datetime_complete.timestamp()


def _last_milestone(count: int) -> int:
    """The last of numbers that grow by a tenth which is not above ``count``."""
    milestone = 1
    while (following := milestone + 1 + milestone // 10) <= count:
        milestone = following
    return milestone


def _outlook(proposal: Proposal) -> dict[str, Any]:
    return {key: value for key, value in asdict(proposal).items() if key != "features"}


def _enough(space: Space) -> int:
    return min(len(space.names), 16) + 4


def _pending(study: Study, space: Space, trial: FrozenTrial | None = None) -> Array:
    """Features ``(n, d)`` of the trials that run, ``trial`` left out."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    own = None if trial is None else trial.number
    return space.encode([p for t in trials if t.number != own and (p := _params(t, space))])


def _once(study: Study) -> set[int]:
    """Trials that need no second look or had it: stopped by a race, measured again, or a second look themselves."""
    once = set()
    for trial in study.get_trials(deepcopy=False):
        if AGAIN in trial.user_attrs:
            once |= {trial.number, int(trial.user_attrs[AGAIN])}
        if trial.user_attrs.get("stopped"):
            once.add(trial.number)
    return once


def _best_point(space: Space, data: Data, pending: Array, rng: np.random.Generator, once: set[int]) -> Proposal | None:
    """None where no model can be fitted: a study goes on without one rather than not at all."""
    from optimizer import next_point, surrogate

    try:
        model = surrogate.Surrogate(space, data.rows(most_telling(data)))
        return next_point.propose(model, pending, rng, once)
    except surrogate.FIT_ERRORS:
        return None


def _corners(space: Space) -> Iterable[Array]:
    """The uniform merge, then each checkpoint alone where there are not too many of them."""
    middle = np.full(len(space.names), 0.5)
    for group in space.simplexes:
        middle[list(group)] = 1.0 / len(group)
    yield middle
    sizes = {len(group) for group in space.simplexes}
    if len(sizes) != 1 or max(sizes) > _MOST_CORNERS:
        return
    for place in range(sizes.pop()):
        corner = middle.copy()
        for group in space.simplexes:
            corner[list(group)] = 0.0
            corner[group[place]] = 1.0
        yield corner


class _Grid(_Joint):
    """The published sweeps, in an order drawn from the seed; after the last point it starts again."""

    def _accept(self, distributions: Distributions | None) -> bool:
        _require_numbers("grid", distributions)
        space = space_of(distributions or {})
        if space is not None:
            _check_grid(space)
        return True

    def _propose(self, study: Study, trial: FrozenTrial, space: Space) -> dict[str, Any]:
        points = _grid_points(space)
        order = np.random.default_rng([self._seed]).permutation(len(points))
        seen = _seen(study, trial, space)
        unseen = (points[i] for i in order if _is_new(points[i], seen))
        return space.decode(next(unseen, points[order[trial.number % len(points)]]))


def _check_grid(space: Space) -> None:
    count = math.prod(len(levels) for levels in _levels(space))
    if count > GRID_LIMIT:
        raise ValueError(
            f"a grid must have at most {GRID_LIMIT} points, but {len(space.names)} parameters at "
            f"{len(_SWEEP_WEIGHTS)} levels make {count}: use another sampler, or fewer checkpoints."
        )


def _levels(space: Space) -> list[tuple[float, ...]]:
    return [_SWEEP_SCALES if i in space.scalars else _SWEEP_WEIGHTS for i in range(len(space.names))]


def _grid_points(space: Space) -> Array:
    """Features ``(n, d)`` of all different points of the grid."""
    _check_grid(space)
    points = np.array(list(itertools.product(*_levels(space))))
    for group in space.simplexes:
        points = points[points[:, group].any(axis=1)]
        points[:, group] = dead_zone(points[:, group])
    for i in space.scalars:
        d = list(space.distributions.values())[i]
        points[:, i] = np.clip((points[:, i] - d.low) / (d.high - d.low), 0.0, 1.0)
    return np.asarray(np.unique(points.round(12), axis=0))


class _CmaEs(_Joint):
    """CMA-ES on the mean of the objectives. Every generation is replayed from the study, so nothing is pickled into it.

    A trial that breaks a constraint ranks below all that keep theirs.
    """

    def _accept(self, distributions: Distributions | None) -> bool:
        _require_numbers("cmaes", distributions)
        return True

    def _propose(self, study: Study, trial: FrozenTrial, space: Space) -> dict[str, Any]:
        import cmaes

        names = space.names
        low, high = (
            np.array([getattr(d, end) for d in space.distributions.values()], dtype=float) for end in ("low", "high")
        )
        if len(names) == 1:
            # The strategy needs two dimensions; one weight has nothing to be searched anyway.
            return {names[0]: float(np.random.default_rng([self._seed, trial.number]).uniform(low[0], high[0]))}
        strategy = cmaes.CMA(
            mean=np.full(len(names), 0.5),
            sigma=1 / 6,
            bounds=np.tile([0.0, 1.0], (len(names), 1)),
            seed=self._draw_seed(trial.number),
            n_max_resampling=10 * len(names),
        )
        told = [
            (
                (np.array([t.params[n] for n in names], dtype=float) - low) / np.maximum(high - low, 1e-12),
                loss,
            )
            for t, loss in _losses(study)
            if all(n in t.params for n in names)
        ]
        size = strategy.population_size
        for start in range(0, len(told) - size + 1, size):
            strategy.tell(told[start : start + size])
        values = low + strategy.ask() * (high - low)
        return {n: _rounded(v, space.distributions[n]) for n, v in zip(names, values, strict=True)}


def _rounded(value: float, distribution: FloatDistribution | IntDistribution) -> float | int:
    if isinstance(distribution, IntDistribution):
        return round(value)
    return float(min(max(value, distribution.low), distribution.high))


def _losses(study: Study) -> list[tuple[FrozenTrial, float]]:
    """The sampler's own trials with minus their mean objective, infeasible ones last."""
    signs = np.array([-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in study.directions])
    trials = [
        t
        for t in _usable(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        if "fixed_params" not in t.system_attrs
    ]
    losses = [float(np.mean(signs * np.array(t.values))) for t in trials]
    excess = [sum(max(c, 0.0) for c in t.constraints.values()) for t in trials]
    worst = max(losses, default=0.0) + 1.0
    return [(t, worst + e if e > 0.0 else loss) for t, loss, e in zip(trials, losses, excess, strict=True)]
