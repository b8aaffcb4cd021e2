"""Gaussian-process model of a study, on the merge weights instead of the raw parameters.

A simplex coordinate enters the model as the weight that it becomes, so that two parameter vectors that build the
same merge are one point. Importing this module imports BoTorch, which takes about two seconds: import it where it is
needed, not at the top of a module that a listing command loads.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import threadpool_limits

with warnings.catch_warnings():
    # GPyTorch's dependencies still script two helpers on import, which recent torch versions announce as deprecated.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
    import torch
    from botorch.exceptions.errors import ModelFittingError
    from botorch.exceptions.warnings import BotorchWarning
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.settings import validate_input_scaling
    from botorch.utils.multi_objective.pareto import is_non_dominated
    from gpytorch.constraints import GreaterThan
    from gpytorch.kernels import MaternKernel
    from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
    from gpytorch.mlls import ExactMarginalLogLikelihood
    from gpytorch.priors import LogNormalPrior
    from gpytorch.utils.warnings import NumericalWarning
    from linear_operator.utils.errors import NanError, NotPSDError

Array = npt.NDArray[np.float64]

MOST_POINTS = 350
"""Most trials that one model is conditioned on: those nearest to the front, and a spread of the others."""

LATER = ("w.", "scale.")
"""Parameters that an older trial may lack: a checkpoint that it did not have took no part in it."""

FIT_POINTS = 128
"""Most trials that the model's lengthscales are fitted on."""

_ABSENT = -0.25
_NOISE_FLOOR = 1e-4


# --- parameters and features -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The model's view of a search space: ``d`` features, one a parameter, all in [0, 1].

    Parameters ``w.<checkpoint>[@<group>]`` of one group become the weights of a simplex; any other number becomes its
    place within its range. The set of valid features is convex.
    """

    distributions: Mapping[str, FloatDistribution | IntDistribution]
    simplexes: tuple[tuple[int, ...], ...]
    scalars: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        """Parameter names in feature order."""
        return list(self.distributions)

    def encode(self, params: Sequence[Mapping[str, float]]) -> Array:
        """Features ``(n, d)`` of ``n`` trials' parameters. A checkpoint that a trial does not name has weight 0."""
        columns = [_column(name, d, params, name.startswith("w.")) for name, d in self.distributions.items()]
        features = np.stack(columns, axis=1) if columns else np.zeros((len(params), 0))
        for group in self.simplexes:
            features[:, group] = dead_zone(features[:, group])
        return features

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Whether parameters say where in the space a trial lies."""
        lacking = self.distributions.keys() - params.keys()
        return len(lacking) < len(self.distributions) and all(name.startswith(LATER) for name in lacking)

    def decode(self, features: Array) -> dict[str, float | int]:
        """Parameters that give the features ``(d,)``: a group's largest weight at its upper bound, zeros below 0."""
        values = np.array(features, dtype=float)
        for group in self.simplexes:
            values[list(group)] = values[list(group)] / values[list(group)].max()
        in_simplex = {i for group in self.simplexes for i in group}
        return {
            name: _undo_weight(values[i], d) if i in in_simplex else _undo_scalar(values[i], d)
            for i, (name, d) in enumerate(self.distributions.items())
        }

    def project(self, features: Array) -> Array:
        """Nearest valid features ``(n, d)``: onto each simplex (exact zeros appear), and into [0, 1] elsewhere."""
        projected = np.clip(features, 0.0, 1.0)
        for group in self.simplexes:
            projected[:, group] = _onto_simplex(features[:, group])
        return projected


def space_of(distributions: Mapping[str, BaseDistribution]) -> Space | None:
    """The space of these parameters, or None where one of them is no number (a categorical, say)."""
    numbers = {n: d for n, d in sorted(distributions.items()) if isinstance(d, (FloatDistribution, IntDistribution))}
    if len(numbers) < len(distributions):
        return None
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(numbers):
        if name.startswith("w."):
            groups.setdefault(name.partition("@")[2], []).append(i)
    return Space(
        distributions=numbers,
        simplexes=tuple(tuple(group) for group in groups.values()),
        scalars=tuple(i for i, name in enumerate(numbers) if not name.startswith("w.")),
    )


def shared_distributions(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution] | None:
    """The parameters of these trials, or None where they differ in more than a checkpoint that came later.

    Before a trial is COMPLETE it is the one with the most parameters that counts.
    """
    complete = [t.distributions for t in trials if t.state == TrialState.COMPLETE and t.distributions]
    if not complete:
        return max((t.distributions for t in trials), key=len, default={})
    union = {name: d for distributions in complete for name, d in distributions.items()}
    for distributions in complete:
        changed = any(union[name] != d for name, d in distributions.items())
        if changed or any(not name.startswith(LATER) for name in union.keys() - distributions.keys()):
            return None
    return union


def dead_zone(x: Array) -> Array:
    """Merge weights ``(n, k)`` of dead-zone coordinates ``(n, k)``: relu(x) / sum relu(x), the largest if all are 0."""
    positive = np.maximum(x, 0.0)
    total = positive.sum(axis=1, keepdims=True)
    one_hot = np.eye(x.shape[1])[np.argmax(x, axis=1)]
    return np.where(total > 0.0, positive / np.where(total > 0.0, total, 1.0), one_hot)


def _column(
    name: str, d: FloatDistribution | IntDistribution, params: Sequence[Mapping[str, float]], raw: bool
) -> Array:
    values = np.array([float(p.get(name, d.low)) for p in params])
    if raw:
        return values
    low, high = (math.log(d.low), math.log(d.high)) if d.log else (d.low, d.high)
    values = np.log(values) if d.log else values
    return np.clip((values - low) / (high - low), 0.0, 1.0) if high > low else np.zeros(len(params))


def _undo_weight(value: float, d: FloatDistribution | IntDistribution) -> float:
    return float(value * d.high) if value > 0.0 else float(max(_ABSENT, d.low))


def _undo_scalar(value: float, d: FloatDistribution | IntDistribution) -> float | int:
    if d.log:
        number = math.exp(math.log(d.low) + value * (math.log(d.high) - math.log(d.low)))
    else:
        number = d.low + value * (d.high - d.low)
    if d.step:
        number = d.low + round((number - d.low) / d.step) * d.step
    number = min(max(number, d.low), d.high)
    return round(number) if isinstance(d, IntDistribution) else float(number)


def _onto_simplex(v: Array) -> Array:
    """Euclidean projection of each row onto the simplex (Duchi et al. 2008)."""
    ordered = -np.sort(-v, axis=1)
    excess = np.cumsum(ordered, axis=1) - 1.0
    ranks = np.arange(1, v.shape[1] + 1)
    last = np.sum(ordered - excess / ranks > 0.0, axis=1) - 1
    shift = excess[np.arange(len(v)), last] / (last + 1)
    weights = np.maximum(v - shift[:, None], 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


# --- what a study has measured ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """COMPLETE trials as arrays, every objective turned so that more is better.

    ``values`` and ``variances`` are ``(n, m)``, the latter NaN where a trial has no ``stderr``; ``constraints`` is
    ``(n, c)``, NaN where a trial does not state one, and 0 or less is feasible.
    """

    numbers: tuple[int, ...]
    params: tuple[Mapping[str, Any], ...]
    values: Array
    variances: Array
    constraints: Array

    def inside(self, space: Space) -> npt.NDArray[np.int_]:
        """Which trials lie in the space: baselines such as the base model do not."""
        return np.array([i for i, p in enumerate(self.params) if space.holds(p)], dtype=int)

    def rows(self, index: npt.NDArray[np.int_]) -> Data:
        """The same for some of the trials."""
        return Data(
            numbers=tuple(self.numbers[i] for i in index),
            params=tuple(self.params[i] for i in index),
            values=self.values[index],
            variances=self.variances[index],
            constraints=self.constraints[index],
        )


def signs(study: Study) -> Array:
    """``(m,)``: 1 for an objective to maximise, -1 for one to minimise."""
    return np.array([1.0 if d == StudyDirection.MAXIMIZE else -1.0 for d in study.directions])


def data_of(study: Study) -> Data:
    """All COMPLETE trials with finite values, in order of their number."""
    trials = [
        t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if np.all(np.isfinite(t.values))
    ]
    m = len(study.directions)
    names = sorted({name for t in trials for name in t.constraints})
    constraints = [[t.constraints.get(name, math.nan) for name in names] for t in trials]
    return Data(
        numbers=tuple(t.number for t in trials),
        params=tuple(t.params for t in trials),
        values=np.array([t.values for t in trials], dtype=float).reshape(-1, m) * signs(study),
        variances=np.array([_variances(t, m) for t in trials], dtype=float).reshape(-1, m),
        constraints=np.array(constraints, dtype=float).reshape(len(trials), len(names)),
    )


def _variances(trial: FrozenTrial, m: int) -> list[float]:
    stderr = trial.user_attrs.get("stderr")
    if not isinstance(stderr, (list, tuple)) or len(stderr) != m:
        return [math.nan] * m
    return [float(s) ** 2 if isinstance(s, (int, float)) and math.isfinite(s) else math.nan for s in stderr]


def most_telling(data: Data, most: int = MOST_POINTS) -> npt.NDArray[np.int_]:
    """Rows of at most ``most`` trials: the half nearest to the front, and an even spread of the others."""
    if len(data.numbers) <= most:
        return np.arange(len(data.numbers))
    low, high = data.values.min(axis=0), data.values.max(axis=0)
    scaled = (data.values - low) / np.where(high > low, high - low, 1.0)
    order = np.lexsort(np.concatenate([data.values, data.variances], axis=1).T)
    directions = np.random.default_rng(0).exponential(size=(64, scaled.shape[1])) + 1e-2
    utility = np.min(scaled[:, None, :] / directions, axis=2)
    regret = np.min(utility.max(axis=0) - utility, axis=1)[order]
    ranked = order[np.argsort(regret, kind="stable")]
    near, rest = ranked[: most // 2], ranked[most // 2 :]
    return np.concatenate([near, rest[np.linspace(0, len(rest) - 1, most - len(near)).astype(int)]])


# --- the model -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A constraint as ``slope * outcome + intercept <= 0``."""

    outcome: int
    slope: float
    intercept: float


class Surrogate:
    """Independent Gaussian processes, one an outcome: the ``m`` objectives, then constraints that they do not explain.

    BoTorch's ``SingleTaskGP`` with Matérn kernels, fitted by maximum a posteriori. Noise is each trial's own variance
    where it is known, else one fitted variance an outcome.
    """

    def __init__(self, space: Space, data: Data) -> None:
        """Fits the model.

        Args:
            space: what the trials' parameters mean. data: at least two trials that lie in the space.

        Raises:
            ModelFittingError, NotPSDError, NanError: the fit failed (`FIT_ERRORS`).
        """
        self.space = space
        self.objectives = data.values.shape[1]
        outcomes, variances, self.rules = _outcomes(data)
        features = space.encode(data.params)
        # The order in which trials finished must change nothing, not even in the last digit.
        order = np.lexsort(np.concatenate([outcomes, features], axis=1).T)
        self.features = torch.from_numpy(features[order])
        outcomes, variances = outcomes[order], variances[order]
        self._centre = torch.from_numpy(outcomes.mean(axis=0))
        self.scale = torch.from_numpy(_spread(outcomes))
        scaled = (torch.from_numpy(outcomes) - self._centre) / self.scale
        stated = torch.from_numpy(variances) / self.scale**2
        # Lengthscales are as good from some of the points, and cost the cube of their number.
        some = np.sort(most_telling(data.rows(order), FIT_POINTS))
        self._models = _fit(self.features[some], scaled[some], stated[some])
        noise = _noise(self._models, stated)
        prior = self._kernel(self.features, self.features)
        self._root = _root(prior + torch.diag_embed(noise))
        self._mean = self._constant()
        residual = (scaled.T - self._mean[:, None]).unsqueeze(-1)
        self._alpha = torch.cholesky_solve(residual, self._root)

    def _kernel(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        # A model of a single outcome has no batch dimension, hence the reshape.
        blocks = [model.covar_module(a, b).to_dense().reshape(-1, len(a), len(b)) for model, _ in self._models]
        return torch.cat(blocks)[self._order()]

    def _constant(self) -> torch.Tensor:
        return torch.cat([model.mean_module.constant.reshape(-1) for model, _ in self._models])[self._order()]

    def _order(self) -> torch.Tensor:
        return torch.argsort(torch.tensor([i for _, columns in self._models for i in columns]))

    def moments(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Posterior mean and variance of the outcomes (their units, more is better) at ``(n, d)``: two ``(o, n)``."""
        mean, half, prior = self._project(x)
        variance = (prior - (half**2).sum(-2)).clamp_min(1e-10)
        return self._to_units(mean), variance * self.scale[:, None] ** 2

    def joint(self, x: torch.Tensor) -> Joint:
        """The joint posterior at ``(b, d)``, ready to be sampled and conditioned on."""
        return Joint(self, x)

    def beliefs(self, data: Data, draws: int) -> tuple[Array, Array, Array]:
        """Posterior of the outcomes at these trials: mean and stderr ``(n, o)``, and joint draws ``(draws, n, o)``."""
        features = self.space.encode(data.params)
        # In canonical order again: the draws must not depend on the order of trials.
        order = np.lexsort(features.T)
        x = torch.from_numpy(features[order])
        mean, variance = self.moments(x)
        generator = torch.Generator().manual_seed(0)
        normal = torch.randn(draws, *mean.shape, generator=generator, dtype=torch.float64)
        samples = self.joint(x).draw(normal)
        back = np.argsort(order)
        return mean.T.numpy()[back], variance.sqrt().T.numpy()[back], samples.transpose(1, 2).numpy()[:, back]

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        cross = self._kernel(self.features, x)
        mean = self._mean[:, None] + (cross.transpose(-1, -2) @ self._alpha).squeeze(-1)
        half = torch.linalg.solve_triangular(self._root, cross, upper=False)
        return mean, half, torch.ones_like(mean)

    def _to_units(self, scaled: torch.Tensor) -> torch.Tensor:
        return scaled * self.scale[:, None] + self._centre[:, None]


class Joint:
    """Joint posterior of the outcomes at ``b`` points, and what draws of it say about further points."""

    def __init__(self, model: Surrogate, x: torch.Tensor) -> None:
        self._model = model
        self._x = x
        self._mean, self._half, _ = model._project(x)
        covariance = model._kernel(x, x) - self._half.transpose(-1, -2) @ self._half
        self._root = _root(covariance)

    def draw(self, normal: torch.Tensor) -> torch.Tensor:
        """Draws ``(s, o, b)`` from standard normal numbers ``(s, o, b)``, in units."""
        self._normal = normal
        scaled = self._mean + (self._root @ normal.unsqueeze(-1)).squeeze(-1)
        return self._model._to_units(scaled)

    def extend(self, x: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
        """Each draw continued to ``(n, d)`` further points, one by one: ``(s, o, n)`` from normals ``(s, o)``."""
        mean, half, prior = self._model._project(x)
        cross = self._model._kernel(self._x, x) - self._half.transpose(-1, -2) @ half
        weights = torch.linalg.solve_triangular(self._root, cross, upper=False)
        variance = (prior - (half**2).sum(-2) - (weights**2).sum(-2)).clamp_min(1e-12)
        scaled = mean + torch.einsum("sob,obn->son", self._normal, weights) + normal.unsqueeze(-1) * variance.sqrt()
        return self._model._to_units(scaled)


def _root(covariance: torch.Tensor) -> torch.Tensor:
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype)
    for jitter in (1e-8, 1e-7, 1e-6, 1e-5, 1e-4):
        root: torch.Tensor
        root, failed = torch.linalg.cholesky_ex(covariance + jitter * identity)
        if not bool(failed.any()):
            return root
    raise NotPSDError("a covariance matrix must be positive definite, but this one is not with 1e-4 added.")


def _outcomes(data: Data) -> tuple[Array, Array, tuple[Rule, ...]]:
    """What has to be modelled: objectives, then the constraints that are no straight line of one of them."""
    outcomes, variances, rules = [*data.values.T], [*data.variances.T], []
    for column in data.constraints.T:
        rule = _line(data.values, column)
        if rule is None:
            rule = Rule(outcome=len(outcomes), slope=1.0, intercept=0.0)
            outcomes.append(np.where(np.isfinite(column), column, np.nanmean(column)))
            variances.append(np.full(len(column), math.nan))
        rules.append(rule)
    return np.stack(outcomes, axis=1), np.stack(variances, axis=1), tuple(rules)


def _line(values: Array, constraint: Array) -> Rule | None:
    known = np.isfinite(constraint)
    y = constraint[known]
    size = np.abs(y).max() + 1e-12
    if np.ptp(y) <= 1e-12 * size:
        return Rule(outcome=0, slope=0.0, intercept=float(y[0]))
    for i, x in enumerate(values[known].T):
        if np.ptp(x) > 0.0:
            slope, intercept = np.polyfit(x, y, 1)
            if np.abs(slope * x + intercept - y).max() < 1e-9 * size:
                return Rule(outcome=i, slope=float(slope), intercept=float(intercept))
    return None


def _spread(outcomes: Array) -> Array:
    spread = outcomes.std(axis=0)
    return np.where(spread > 1e-9 * (1.0 + np.abs(outcomes).max(axis=0)), spread, 1.0)


def _fit(features: torch.Tensor, outcomes: torch.Tensor, noise: torch.Tensor) -> list[tuple[SingleTaskGP, list[int]]]:
    """One batched model of the outcomes whose noise is known, and one of the others."""
    known = noise.isfinite().double().mean(0) >= 0.5
    models = []
    for is_known in (True, False):
        columns = [i for i, k in enumerate(known.tolist()) if k is is_known]
        if columns:
            variance = _filled(noise[:, columns]) if is_known else None
            models.append((_fit_batch(features, outcomes[:, columns], variance), columns))
    return models


def _noise(models: list[tuple[SingleTaskGP, list[int]]], stated: torch.Tensor) -> torch.Tensor:
    """Noise variances ``(o, n)`` in scaled units: stated, or as fitted."""
    noise = torch.empty_like(stated).T
    for model, columns in models:
        if isinstance(model.likelihood, FixedNoiseGaussianLikelihood):
            noise[columns] = _filled(stated[:, columns]).T
        else:
            noise[columns] = model.likelihood.noise.reshape(-1, 1)
    return noise


def _filled(noise: torch.Tensor) -> torch.Tensor:
    """Unknown variances become the median. A stated variance near 0 (every item right) is not believed."""
    typical = noise.nanmedian(dim=0).values
    return torch.where(noise.isfinite(), noise, typical).maximum(0.1 * typical).clamp_min(_NOISE_FLOOR)


def _fit_batch(features: torch.Tensor, outcomes: torch.Tensor, noise: torch.Tensor | None) -> SingleTaskGP:
    count = outcomes.shape[1]
    kernel = _kernel(features.shape[1], torch.Size([count] if count > 1 else []))
    with validate_input_scaling(False):
        model = SingleTaskGP(features, outcomes, noise, covar_module=kernel, outcome_transform=None)
    likelihood = ExactMarginalLogLikelihood(model.likelihood, model)
    with warnings.catch_warnings():
        # An optimiser that stops at its step limit, or a jittered Cholesky factor, still leaves a usable model.
        warnings.simplefilter("ignore", BotorchWarning)
        warnings.simplefilter("ignore", NumericalWarning)
        fit_gpytorch_mll(likelihood, optimizer_kwargs={"options": {"maxiter": 75}})
    return model.eval().requires_grad_(False)


def _kernel(features: int, batch: torch.Size) -> MaternKernel:
    """Matérn 5/2 with one lengthscale a feature, 0.5 to 1.4 a priori.

    BoTorch's default prior expects distances that grow with the dimension, as in a cube. Two mixes on a simplex are
    never farther apart than the square root of 2, however many checkpoints there are.
    """
    prior = LogNormalPrior(loc=-0.2, scale=0.5)
    lengthscale = GreaterThan(2.5e-2, transform=None, initial_value=0.8)
    return MaternKernel(
        nu=2.5,
        ard_num_dims=features,
        batch_shape=batch,
        lengthscale_prior=prior,
        lengthscale_constraint=lengthscale,
    )


@contextmanager
def one_thread(seed: int) -> Iterator[None]:
    """One thread and a random state of its own within; both are put back after.

    BLAS counts as well as torch: on matrices this small its threads only wait for one another, and an ask cost two to
    three times the processor time.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), threadpool_limits(1):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


FIT_ERRORS = (ModelFittingError, NotPSDError, NanError)
"""What a model that cannot be fitted raises."""


# --- where to measure next -------------------------------------------------------------------------------------------

_DRAWS = 64
_DIRECTIONS = 32
_ROUNDS = 6


def propose(model: Surrogate, pending: Array, rng: np.random.Generator) -> Array:
    """Features ``(d,)`` of the point with the largest expected gain in hypervolume, noise and pending points included.

    Noisy expected hypervolume improvement (Daulton et al. 2021, arXiv:2105.08195): the front that a new point must
    beat is drawn from the posterior, never taken from the measurements. The hypervolume itself is an average over
    directions of the best Chebyshev utility (Golovin and Zhang 2020, arXiv:2006.04655), which serves one objective as
    well as five; for one objective this is noisy expected improvement.

    Args:
        model: the fitted model. pending: features ``(p, d)`` of trials in flight. rng: all chance comes from it.
    """
    gain = _Gain(model, torch.from_numpy(pending), rng)
    front = gain.front()
    pool = _starts(model.space, front, rng)
    scores = gain(pool)
    for spread in np.geomspace(0.3, 0.02, _ROUNDS):
        best = np.argsort(-scores)[:10]
        children = _children(model.space, pool[best], front, spread, rng)
        pool = np.concatenate([pool[best], children])
        scores = np.concatenate([scores[best], gain(children)])
    known = np.concatenate([model.features.numpy(), pending])
    for i in np.argsort(-scores):
        if np.abs(known - pool[i]).max(axis=1).min() > 1e-3:
            return np.asarray(pool[i])
    return np.asarray(random_features(model.space, 1, rng)[0])


class _Gain:
    """Expected gain in hypervolume of single further points."""

    def __init__(self, model: Surrogate, pending: torch.Tensor, rng: np.random.Generator) -> None:
        self._model = model
        mean, variance = model.moments(model.features)
        self._measure = _measure(model, mean)
        self._rules = model.rules
        self._directions = _directions(_DIRECTIONS, model.objectives, rng)
        self._kept = self._near_front(mean, variance.sqrt())
        baseline = torch.cat([model.features[self._kept], pending])
        self._joint = model.joint(baseline)
        outcomes = len(mean)
        engine = torch.quasirandom.SobolEngine(outcomes * (len(baseline) + 1), scramble=True, seed=_seed(rng))
        uniform = engine.draw(_DRAWS, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
        normal = (torch.erfinv(2 * uniform - 1) * math.sqrt(2)).reshape(_DRAWS, outcomes, -1)
        self._best = self._utility(self._joint.draw(normal[..., :-1].contiguous())).amax(-1)
        self._normal = normal[..., -1]

    def front(self) -> Array:
        """Features ``(b, d)`` of the measured points that may be on the front."""
        return self._model.features[self._kept].numpy()

    def __call__(self, features: Array) -> Array:
        draws = self._joint.extend(torch.from_numpy(features), self._normal)
        gain = self._utility(draws) - self._best.unsqueeze(-1)
        # The tiny slope below zero orders points none of whose draws improves anything.
        return torch.where(gain > 0.0, gain, 1e-6 * gain).mean(dim=(0, 1)).numpy()

    def _utility(self, outcomes: torch.Tensor) -> torch.Tensor:
        """``(s, o, n)`` to ``(s, directions, n)``; where a constraint is broken, minus a little of the excess."""
        worst, size = self._measure
        m = self._model.objectives
        scaled = (outcomes[:, :m] - worst[:, None]) / size[:, None]
        utility = (scaled.unsqueeze(1) / self._directions[:, :, None]).amin(2).clamp_min(0.0) ** m
        excess = self._excess(outcomes).unsqueeze(1)
        return torch.where(excess > 0.0, -1e-3 * excess, utility)

    def _excess(self, outcomes: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(outcomes[:, 0])
        for rule in self._rules:
            spread = float(self._model.scale[rule.outcome]) * max(abs(rule.slope), 1e-12)
            total += (rule.slope * outcomes[:, rule.outcome] + rule.intercept).clamp_min(0.0) / spread
        return total

    def _near_front(self, mean: torch.Tensor, spread: torch.Tensor, most: int = 48) -> torch.Tensor:
        """Which measured points have a fair chance to be on the front."""
        middle = self._utility(mean.unsqueeze(0))[0]
        hopeful = self._utility(self._hopeful(mean, spread).unsqueeze(0))[0]
        margin = (hopeful - middle.amax(-1, keepdim=True)).amax(0)
        ranked = torch.argsort(margin, descending=True, stable=True)[:most]
        fair = ranked[margin[ranked] >= 0.0]
        return fair if len(fair) >= 3 else ranked[:3]

    def _hopeful(self, mean: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
        signs = torch.ones(len(mean), dtype=mean.dtype)
        for rule in self._rules:
            if rule.outcome >= self._model.objectives:
                signs[rule.outcome] = -1.0
        return mean + 2.0 * signs[:, None] * spread


def _measure(model: Surrogate, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reference point and the range above it: two ``(m,)``.

    The point lies a tenth of the front's range below its worst corner, or at the lower quartile of all measured
    points where that is lower: a front that is still short must not put its own extensions out of bounds.
    """
    values = mean[: model.objectives].T
    feasible = torch.ones(len(values), dtype=torch.bool)
    for rule in model.rules:
        feasible &= rule.slope * mean[rule.outcome] + rule.intercept <= 0.0
    chosen = values[feasible] if int(feasible.sum()) > 1 else values
    front = chosen[is_non_dominated(chosen)]
    low, high = front.amin(0), chosen.amax(0)
    everything = (values.amax(0) - values.amin(0)).clamp_min(1e-9)
    size = torch.where(high - low > 0.05 * everything, high - low, everything)
    reference = torch.minimum(low - 0.1 * size, values.quantile(0.25, dim=0))
    return reference, high - reference


def _directions(count: int, m: int, rng: np.random.Generator) -> torch.Tensor:
    """Directions ``(count, m)`` spread evenly over the positive part of the unit sphere."""
    if m == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if m == 2:
        angle = (torch.arange(count, dtype=torch.float64) + rng.random()) * (math.pi / 2 / count)
        return torch.stack([angle.sin(), angle.cos()], dim=1).clamp_min(1e-3)
    engine = torch.quasirandom.SobolEngine(m, scramble=True, seed=_seed(rng))
    uniform = engine.draw(count, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    normal = torch.erfinv(uniform)
    return torch.clamp(normal / torch.linalg.vector_norm(normal, dim=1, keepdim=True), min=1e-3)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def random_features(space: Space, count: int, rng: np.random.Generator) -> Array:
    """Features ``(count, d)``: sparse and dense mixes in equal parts, other numbers uniform."""
    features = rng.random((count, len(space.names)))
    for group in space.simplexes:
        features[:, group] = _random_weights(len(group), count, rng)
    _share_groups(space, features, rng)
    return features


def _random_weights(k: int, count: int, rng: np.random.Generator) -> Array:
    raw = rng.exponential(size=(count, k))
    members = rng.integers(1, k + 1, size=count)
    sparse = rng.random(count) < 0.5
    rank = np.argsort(np.argsort(rng.random((count, k)), axis=1), axis=1)
    raw[sparse[:, None] & (rank >= members[:, None])] = 0.0
    return np.asarray(raw / raw.sum(axis=1, keepdims=True))


def _share_groups(space: Space, features: Array, rng: np.random.Generator) -> None:
    """Half of the rows use one mix in all layer groups: most good merges differ little from one layer to the next."""
    if len({len(group) for group in space.simplexes}) == 1 and len(space.simplexes) > 1:
        shared = np.flatnonzero(rng.random(len(features)) < 0.5)
        mix = features[shared][:, space.simplexes[0]]
        for group in space.simplexes[1:]:
            for place, column in enumerate(group):
                features[shared, column] = mix[:, place]


def _starts(space: Space, front: Array, rng: np.random.Generator) -> Array:
    pairs = rng.integers(len(front), size=(2, 192))
    share = rng.random((192, 1))
    mixes = share * front[pairs[0]] + (1.0 - share) * front[pairs[1]]
    near = _children(space, front[rng.integers(len(front), size=16)], front, 0.3, rng)
    return np.concatenate([random_features(space, 256, rng), mixes, near])


def _children(space: Space, parents: Array, front: Array, spread: float, rng: np.random.Generator) -> Array:
    """Twenty-four neighbours of each parent: some coordinates jittered, a step to another mix, or weights dropped."""
    base = np.repeat(parents, 24, axis=0)
    kind = np.tile(np.arange(24) % 3, len(parents))
    share = rng.random((len(base), 1))
    mask = rng.random(base.shape) < np.maximum(share, 1.5 / base.shape[1])
    jittered = base + spread * rng.normal(size=base.shape) * mask * rng.random((len(base), 1))
    others = np.concatenate([random_features(space, len(base) // 2, rng), front])
    step = spread * rng.random((len(base), 1))
    moved = base + step * (others[rng.integers(len(others), size=len(base))] - base)
    dropped = base * (rng.random(base.shape) >= 1.0 / base.shape[1])
    children = np.where(kind[:, None] == 0, jittered, np.where(kind[:, None] == 1, moved, dropped))
    return space.project(children)
