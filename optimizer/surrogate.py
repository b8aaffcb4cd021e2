"""Gaussian-process model of a study, on the merge weights instead of the raw parameters.

Importing this module imports BoTorch, which takes about two seconds: import it where it is needed, not at the top of a
module that a listing command loads.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from optimizer.angles import Angles
from optimizer.features import Array, Space
from optimizer.measurements import Data, most_telling

with warnings.catch_warnings():
    # GPyTorch's dependencies still script two helpers on import, which recent torch versions announce as deprecated.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
    import torch
    from botorch.exceptions.errors import ModelFittingError
    from botorch.exceptions.warnings import BotorchWarning
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.settings import validate_input_scaling
    from gpytorch.constraints import GreaterThan
    from gpytorch.kernels import MaternKernel
    from gpytorch.likelihoods import FixedNoiseGaussianLikelihood
    from gpytorch.mlls import ExactMarginalLogLikelihood
    from gpytorch.priors import LogNormalPrior
    from gpytorch.utils.warnings import NumericalWarning
    from linear_operator.utils.errors import NanError, NotPSDError

_Models = list[tuple[SingleTaskGP, list[int]]]

FIT_POINTS = 128
"""Most trials that the model's lengthscales are fitted on."""

_NOISE_FLOOR = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A constraint as ``slope * outcome + intercept <= 0``."""

    outcome: int
    slope: float
    intercept: float


class Surrogate:
    """Independent Gaussian processes, one an outcome: the ``m`` objectives, then constraints that they do not explain.

    BoTorch's ``SingleTaskGP`` with Matérn kernels, fitted by maximum a posteriori. Noise is each trial's own variance
    where it is known, else one fitted variance an outcome. Rates are modelled as angles (`optimizer.angles`); all that
    is said is in the outcomes' own units.
    """

    def __init__(self, space: Space, data: Data, like: Surrogate | None = None) -> None:
        """Fits the model.

        Args:
            space: what the trials' parameters mean. data: at least two trials that lie in the space. like: a model of
                fewer of them, whose kernels, noise and units are taken over in place of a fit. One with another
                number of outcomes is left aside.

        Raises:
            ModelFittingError, NotPSDError, NanError: the fit failed (`FIT_ERRORS`).
        """
        self.space = space
        self.objectives = data.values.shape[1]
        outcomes, variances, self.rules = _outcomes(data)
        features = space.encode(data.params)
        # The order in which trials finished must change nothing, not even in the last digit.
        order = np.lexsort(np.concatenate([outcomes, features], axis=1).T)
        self.numbers = tuple(data.numbers[i] for i in order)
        self.features = torch.from_numpy(features[order])
        outcomes, variances = outcomes[order], variances[order]
        self._angles = Angles.of(outcomes, variances)
        if like is not None and like._angles != self._angles:
            like = None
        self.scale: torch.Tensor = torch.from_numpy(_spread(outcomes)) if like is None else like.scale
        angles, variances = self._angles.forward(outcomes, variances)
        self._centre: torch.Tensor = torch.from_numpy(angles.mean(axis=0)) if like is None else like._centre
        self._scale: torch.Tensor = torch.from_numpy(_spread(angles)) if like is None else like._scale
        scaled = (torch.from_numpy(angles) - self._centre) / self._scale
        stated = torch.from_numpy(variances) / self._scale**2
        # Lengthscales are as good from some of the points, and cost the cube of their number.
        some = np.sort(most_telling(data.rows(order), FIT_POINTS))
        self._models: _Models = _fit(self.features[some], scaled[some], stated[some]) if like is None else like._models
        self._noise = noise = _noise(self._models, stated)
        prior = self._kernel(self.features, self.features)
        self._root = _root(prior + torch.diag_embed(noise))
        self._mean = self._constant()
        residual = (scaled.T - self._mean[:, None]).unsqueeze(-1)
        self._alpha = torch.cholesky_solve(residual, self._root)
        self.noise = noise * self._steepness(self._project(self.features)[0]) ** 2

    def _kernel(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        # A model of a single outcome has no batch dimension, hence the reshape.
        blocks = [model.covar_module(a, b).to_dense().reshape(-1, len(a), len(b)) for model, _ in self._models]
        return torch.cat(blocks)[self._order()]

    def _constant(self) -> torch.Tensor:
        return torch.cat([model.mean_module.constant.reshape(-1) for model, _ in self._models])[self._order()]

    def _order(self) -> torch.Tensor:
        return torch.argsort(torch.tensor([i for _, columns in self._models for i in columns]))

    def moments(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Posterior mean and variance of the outcomes (their units, more is better) at ``(n, d)``: two ``(o, n)``.

        Of a rate the mean is that of its angle, put back in units, and the variance is by the delta method.
        """
        mean, half, prior = self._project(x)
        variance = (prior - (half**2).sum(-2)).clamp_min(1e-10)
        return self._to_units(mean), variance * self._steepness(mean) ** 2

    def contrast(self, x: torch.Tensor, coefficients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and stderr ``(o,)`` of a sum over ``(n, d)`` whose ``coefficients (n,)`` add up to 0."""
        mean, covariance = self.posterior(x)
        variance = torch.einsum("n,onk,k->o", coefficients, covariance, coefficients).clamp_min(0.0)
        return mean @ coefficients, variance.sqrt()

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean ``(o, n)`` and covariance ``(o, n, n)`` of the outcomes at ``(n, d)``, in units, as of `moments`."""
        mean, half, _ = self._project(x)
        steepness = self._steepness(mean).unsqueeze(-1)
        covariance = self._kernel(x, x) - half.transpose(-1, -2) @ half
        return self._to_units(mean), covariance * steepness * steepness.transpose(-1, -2)

    def joint(self, x: torch.Tensor) -> Joint:
        """The joint posterior at ``(b, d)``, ready to be sampled and conditioned on."""
        return Joint(self, x)

    def beliefs(self, data: Data, draws: int) -> tuple[Array, Array, Array]:
        """Posterior of the outcomes at these trials: mean and stderr ``(n, o)``, and joint draws ``(draws, n, o)``."""
        x, back = self._canonical(data)
        mean, variance = self.moments(x)
        generator = torch.Generator().manual_seed(0)
        normal = torch.randn(draws, *mean.shape, generator=generator, dtype=torch.float64)
        samples = self.joint(x).draw(normal) if draws else normal
        return mean.T.numpy()[back], variance.sqrt().T.numpy()[back], samples.transpose(1, 2).numpy()[:, back]

    def echoes(self, data: Data, draws: int) -> Array:
        """How far the posterior mean at these trials moves with the noise of the model's own.

        Every draw is one more measurement of all that the model is conditioned on: ``(draws, n, o)``, the second half
        the mirror image of the first.
        """
        x, back = self._canonical(data)
        generator = torch.Generator().manual_seed(0)
        normal = torch.randn(*self.noise.shape, draws // 2, generator=generator, dtype=torch.float64)
        noise = torch.cat([normal, -normal], dim=-1) * self._noise.sqrt().unsqueeze(-1)
        moved = self._kernel(x, self.features) @ torch.cholesky_solve(noise, self._root)
        mean, _, _ = self._project(x)
        units = self._to_units(mean + moved.permute(2, 0, 1)) - self._to_units(mean)
        return np.asarray(units.transpose(1, 2).numpy()[:, back])

    def _canonical(self, data: Data) -> tuple[torch.Tensor, npt.NDArray[np.int_]]:
        """Features of these trials in an order of their own, and where each trial then stands.

        What is drawn must not depend on the order of trials.
        """
        features = self.space.encode(data.params)
        order = np.lexsort(features.T)
        return torch.from_numpy(features[order]), np.argsort(order)

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        cross = self._kernel(self.features, x)
        mean = self._mean[:, None] + (cross.transpose(-1, -2) @ self._alpha).squeeze(-1)
        half = torch.linalg.solve_triangular(self._root, cross, upper=False)
        return mean, half, torch.ones_like(mean)

    def _unscaled(self, scaled: torch.Tensor) -> torch.Tensor:
        return scaled * self._scale[:, None] + self._centre[:, None]

    def _to_units(self, scaled: torch.Tensor) -> torch.Tensor:
        return self._angles.back(self._unscaled(scaled))

    def _steepness(self, scaled: torch.Tensor) -> torch.Tensor:
        """Change in units for a change of ``(o, n)`` by one."""
        return self._scale[:, None] * self._angles.slope(self._unscaled(scaled))


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
        scaled = self._mean + torch.einsum("obk,sok->sob", self._root, normal)
        return self._model._to_units(scaled)

    def together(self, x: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
        """Each draw continued to ``(n, d)`` further points jointly: ``(s, o, n)`` from normals ``(s, o, n)``."""
        mean, half, _ = self._model._project(x)
        cross = self._model._kernel(self._x, x) - self._half.transpose(-1, -2) @ half
        weights = torch.linalg.solve_triangular(self._root, cross, upper=False)
        covariance = self._model._kernel(x, x) - half.transpose(-1, -2) @ half - weights.transpose(-1, -2) @ weights
        scaled = mean + torch.einsum("sob,obn->son", self._normal, weights)
        return self._model._to_units(scaled + torch.einsum("onk,sok->son", _root(covariance), normal))

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


def _fit(features: torch.Tensor, outcomes: torch.Tensor, noise: torch.Tensor) -> _Models:
    """One batched model of the outcomes whose noise is known, and one of the others."""
    known = noise.isfinite().double().mean(0) >= 0.5
    models = []
    for is_known in (True, False):
        columns = [i for i, k in enumerate(known.tolist()) if k is is_known]
        if columns:
            variance = _filled(noise[:, columns]) if is_known else None
            models.append((_fit_batch(features, outcomes[:, columns], variance), columns))
    return models


def _noise(models: _Models, stated: torch.Tensor) -> torch.Tensor:
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
