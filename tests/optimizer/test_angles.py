"""Rates as the angles that the model works on."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import create_trial

from optimizer.angles import Angles
from optimizer.front import fit, posterior

ITEMS = 200


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def test_rates_are_told_by_their_range_and_their_noise() -> None:
    rates = column(0.0, 0.1, 0.5, 0.9)
    noise = rates * (1.0 - rates) / ITEMS
    assert Angles.of(rates, noise).floor == (0.0,)
    assert Angles.of(-rates, noise).floor == (-1.0,)
    for values, variances in ((2.0 * rates, noise), (rates - 0.5, noise), (rates, 0.0 * noise + 0.01)):
        assert math.isnan(Angles.of(values, variances).floor[0])
    for unknown in (0.0 * noise, np.full((4, 1), math.nan)):
        assert math.isnan(Angles.of(rates, unknown).floor[0])


def test_the_noise_of_a_rate_is_the_same_wherever_it_lies() -> None:
    rates = np.array([0.2, 0.5, 0.9, 0.95])
    measured = np.random.default_rng(0).binomial(ITEMS, rates, size=(20_000, 4)) / ITEMS
    angles, variances = Angles((0.0,) * 4).forward(measured, measured * (1.0 - measured) / ITEMS)
    assert angles.var(axis=0) == pytest.approx([1 / (4 * ITEMS)] * 4, rel=0.1)
    assert np.median(variances, axis=0) == pytest.approx([1 / (4 * ITEMS)] * 4)


@pytest.mark.parametrize("floor", [0.0, -1.0])
def test_the_mean_angle_of_many_measurements_is_that_of_the_rate(floor: float) -> None:
    rates, items = np.array([0.1, 0.5, 0.9, 0.95]), 50
    measured = np.random.default_rng(0).binomial(items, rates, size=(100_000, 4)) / items
    angles, _ = Angles((floor,) * 4).forward(measured + floor, measured * (1.0 - measured) / items)
    back = Angles((floor,) * 4).back(torch.from_numpy(angles.mean(axis=0)[:, None])).numpy()[:, 0]
    # Without drawing in they would lie up to .0045 too far out.
    assert back - floor == pytest.approx(rates, abs=8e-4)


def test_a_rate_at_its_end_is_as_uncertain_as_the_others() -> None:
    _, variances = Angles((0.0,)).forward(column(0.0, 0.5, 0.9, 1.0, 1.0), column(0.0, 1e-3, 1e-3, 0.0, math.nan))
    assert variances[:, 0] == pytest.approx([1.89e-3, 1e-3, 2.78e-3, 1.89e-3, math.nan], abs=1e-5, nan_ok=True)
    _, none = Angles((0.0,)).forward(column(0.0, 1.0), column(0.0, 0.0))
    assert np.isnan(none).all()


def test_what_is_no_rate_stays_as_it_is() -> None:
    plain = Angles((math.nan,))
    values, variances = column(-3.0, 7.0), column(0.1, math.nan)
    angles, same = plain.forward(values, variances)
    assert angles.tolist() == values.tolist()
    assert np.array_equal(same, variances, equal_nan=True)
    x = torch.tensor([[-3.0, 7.0]], dtype=torch.float64)
    assert torch.equal(plain.back(x), x)
    assert torch.equal(plain.slope(x), torch.ones_like(x))


@pytest.mark.parametrize("floor", [0.0, -1.0])
def test_there_and_back_is_the_same_rate(floor: float) -> None:
    values = floor + np.linspace(0.0, 1.0, 11)[:, None]
    angles, _ = Angles((floor,)).forward(values, np.full((11, 1), math.nan))
    assert Angles((floor,)).back(torch.from_numpy(angles.T)).numpy()[0] == pytest.approx(values[:, 0])


def test_the_slope_is_that_of_the_way_back_and_never_zero() -> None:
    rate, step = Angles((0.0,)), 1e-6
    x = torch.tensor([[0.5, 0.9, 1.2]], dtype=torch.float64)
    change = (rate.back(x + step) - rate.back(x)) / step
    assert rate.slope(x).numpy() == pytest.approx(change.numpy(), abs=1e-5)
    assert float(rate.slope(torch.tensor([[2.0]]))) > 0.0


def cliff(w: np.ndarray) -> np.ndarray:
    """A rate that falls from nearly 1 to nearly 0, as refusals do."""
    return np.asarray(0.98 / (1.0 + np.exp(14.0 * (((w - [0.5, 0.4, 0.1]) ** 2).sum(axis=1) - 0.3))))


def study_on(scale: float, w: np.ndarray, direction: StudyDirection = StudyDirection.MAXIMIZE) -> Study:
    """One objective; with a scale of 100 it is in percent, which nothing tells from any other number."""
    study = optuna.create_study(direction=direction)
    space: dict[str, BaseDistribution] = {f"w.{i}": FloatDistribution(-0.5, 1.0) for i in range(3)}
    found = np.random.default_rng(1).binomial(ITEMS, cliff(w)) / ITEMS
    found = found if direction == StudyDirection.MAXIMIZE else 1.0 - found
    for row, rate in zip(w, found.tolist(), strict=True):
        stderr = math.sqrt(rate * (1.0 - rate) / (ITEMS - 1))
        params = dict(zip(space, row.tolist(), strict=True))
        attributes = {"stderr": [scale * stderr]}
        study.add_trial(create_trial(params=params, distributions=space, value=scale * rate, user_attrs=attributes))
    return study


def test_a_cliff_is_known_better_as_a_rate() -> None:
    rng = np.random.default_rng(0)
    w, elsewhere = rng.dirichlet(np.full(3, 0.7), size=30), rng.dirichlet(np.full(3, 0.7), size=200)
    errors = []
    for scale in (1.0, 100.0):
        model = fit(study_on(scale, w)).model
        assert model is not None
        mean, _ = model.moments(torch.from_numpy(elsewhere))
        errors.append(np.sqrt(np.mean((mean[0].numpy() / scale - cliff(elsewhere)) ** 2)))
    assert errors[0] < 0.8 * errors[1]


def test_a_rate_to_minimise_is_the_same_rate() -> None:
    w = np.random.default_rng(0).dirichlet(np.full(3, 0.7), size=20)
    up, down = posterior(study_on(1.0, w)), posterior(study_on(1.0, w, StudyDirection.MINIMIZE))
    assert up.front == down.front
    for number, estimate in up.trials.items():
        assert 0.0 <= estimate.mean[0] <= 1.0
        assert down.trials[number].mean[0] == pytest.approx(1.0 - estimate.mean[0], abs=1e-4)
        assert down.trials[number].stderr[0] == pytest.approx(estimate.stderr[0], rel=1e-2)
