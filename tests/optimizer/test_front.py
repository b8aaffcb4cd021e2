"""The front by posterior mean, and the plain geometry under it."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from optuna.distributions import FloatDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, create_trial

from optimizer.front import fit, hypervolume, knee, non_dominated, posterior, posterior_front, posterior_of, spread

MAX, MIN = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
SPACE = {f"w.{name}": FloatDistribution(-0.5, 1.0) for name in "abc"}
points = arrays(float, st.tuples(st.integers(1, 12), st.just(3)), elements=st.integers(0, 4).map(float))


def study_of(trials: Sequence[FrozenTrial], directions: Sequence[str] = ("maximize", "maximize")) -> Study:
    study = optuna.create_study(directions=list(directions))
    study.add_trials(list(trials))
    return study


def measured(
    weights: np.ndarray, values: Sequence[float], stderr: float | None = 0.03, constraint: float | None = None
) -> FrozenTrial:
    return create_trial(
        params=dict(zip(SPACE, weights.tolist(), strict=True)),
        distributions=SPACE,
        values=list(values),
        user_attrs={} if stderr is None else {"stderr": [stderr] * len(values)},
        constraints=None if constraint is None else {"first": constraint},
    )


def truth(w: np.ndarray) -> np.ndarray:
    targets = np.array([[0.8, 0.2, 0.0], [0.0, 0.3, 0.7]])
    return np.exp(-2.0 * ((w[:, None, :] - targets) ** 2).sum(-1))


def noisy_trials(
    count: int = 30, seed: int = 0, at_least: float | None = None, stderr: float = 0.03
) -> list[FrozenTrial]:
    rng = np.random.default_rng(seed)
    w = rng.dirichlet(np.ones(3), size=count)
    values = truth(w) + stderr * rng.normal(size=(count, 2))
    limits = [None if at_least is None else at_least - float(v[0]) for v in values]
    return [measured(a, v.tolist(), stderr=stderr, constraint=c) for a, v, c in zip(w, values, limits, strict=True)]


@given(points, st.permutations([MAX, MIN, MAX]))
def test_the_front_of_a_front_is_itself(values: np.ndarray, directions: list[StudyDirection]) -> None:
    front = values[non_dominated(values, directions)]
    assert non_dominated(front, directions) == list(range(len(front)))


@given(points, st.randoms(use_true_random=False))
def test_the_order_of_points_does_not_matter(values: np.ndarray, random: object) -> None:
    order = np.random.default_rng(len(values)).permutation(len(values))
    directions = [MAX, MIN, MAX]
    assert sorted(order[non_dominated(values[order], directions)].tolist()) == non_dominated(values, directions)


@given(points)
def test_a_dominated_point_changes_nothing(values: np.ndarray) -> None:
    worse = np.concatenate([values, values[:1] - [1.0, 1.0, 0.0]])
    assert non_dominated(worse, [MAX] * 3) == non_dominated(values, [MAX] * 3)


def test_values_that_are_no_numbers_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="NaN"):
        non_dominated(np.array([[1.0, math.nan]]), [MAX, MAX])


def test_hypervolume_is_the_volume_of_the_union_of_boxes() -> None:
    assert hypervolume(np.array([[1.0, 2.0], [2.0, 1.0]]), [0.0, 0.0], [MAX, MAX]) == pytest.approx(3.0)
    assert hypervolume(np.array([[-1.0, 2.0], [-2.0, 1.0]]), [0.0, 0.0], [MIN, MAX]) == pytest.approx(3.0)
    assert hypervolume(np.array([[1.0, 1.0, 2.0], [2.0, 1.0, 1.0]]), [0.0] * 3, [MAX] * 3) == pytest.approx(3.0)
    assert hypervolume(np.array([[3.0], [1.0]]), [1.0], [MAX]) == pytest.approx(2.0)
    assert hypervolume(np.zeros((0, 2)), [0.0, 0.0], [MAX, MAX]) == 0.0
    assert hypervolume(np.array([[-1.0, 5.0]]), [0.0, 0.0], [MAX, MAX]) == 0.0


def test_the_knee_bulges_most_whatever_the_units() -> None:
    values = np.array([[0.0, 1000.0], [0.8, 900.0], [1.0, 0.0]])
    assert knee(values, [MAX, MAX]) == 1
    assert knee(values * [1.0, -1.0], [MAX, MIN]) == 1
    with pytest.raises(ValueError, match="at least 1 point"):
        knee(np.zeros((0, 2)), [MAX, MAX])


@pytest.mark.parametrize(
    ("count", "expected"), [(2, [0, 12]), (3, [0, 6, 12]), (4, [0, 4, 8, 12]), (5, [0, 3, 6, 9, 12])]
)
def test_points_are_spread_evenly_along_a_front(count: int, expected: list[int]) -> None:
    place = np.linspace(0.0, 1.0, 13)
    values = np.stack([1.0 - place, 1000.0 * place], axis=1)
    assert spread(values, [MAX, MAX], count) == expected
    assert spread(values * [1.0, -1.0], [MAX, MIN], count) == expected


@given(points, st.integers(1, 6))
def test_a_spread_holds_as_many_points_as_were_asked_for_each_once(values: np.ndarray, count: int) -> None:
    directions = [MAX] * 3
    if count > len(values):
        with pytest.raises(ValueError, match="can be spread, but got"):
            spread(values, directions, count)
        return
    chosen = spread(values, directions, count)
    assert len(set(chosen)) == count
    assert [values[i, 0] for i in chosen] == sorted((values[i, 0] for i in chosen), reverse=True)


def test_few_trials_fall_back_to_raw_means_and_say_so() -> None:
    trials = noisy_trials(5)
    study = study_of(trials)
    result = posterior(study)
    assert result.fallback is not None
    assert "fewer than" in result.fallback
    assert list(result.front) == [t.number for t in study.best_trials]
    assert result.trials[2].mean == tuple(trials[2].values)


def test_a_study_without_trials_has_no_front() -> None:
    assert posterior_front(study_of([])) == []
    assert posterior_front(study_of([create_trial(state=optuna.trial.TrialState.FAIL)])) == []


def test_the_posterior_is_nearer_to_the_truth_than_the_measurements() -> None:
    study = study_of(noisy_trials(40))
    result = posterior(study)
    assert result.fallback is None
    w = np.array([[t.params[n] for n in SPACE] for t in study.trials])
    believed = np.array([result.trials[t.number].mean for t in study.trials])
    raw = np.array([t.values for t in study.trials])
    assert ((believed - truth(w)) ** 2).mean() < 0.5 * ((raw - truth(w)) ** 2).mean()
    assert all(0.0 < s < 0.03 for e in result.trials.values() for s in e.stderr)


def test_means_on_the_front_are_lowered_alike_by_what_being_chosen_adds_and_no_others() -> None:
    study = study_of(noisy_trials(30, stderr=0.06))
    result, found = posterior(study), fit(study)
    assert found.model is not None
    means = found.model.beliefs(found.data.rows(found.rows), 0)[0]
    less = means - np.array([result.trials[found.data.numbers[row]].mean for row in found.rows])
    front = np.isin([found.data.numbers[row] for row in found.rows], result.front)
    assert less[front] == pytest.approx(np.tile(less[front][0], (front.sum(), 1)))
    assert (less[front] > 0.002).all()
    assert (less[front] < 0.06).all()
    assert less[~front] == pytest.approx(0.0)


def test_a_front_does_not_promise_what_luck_does() -> None:
    luck, excess = [], []
    for seed in range(8):
        study = study_of(noisy_trials(30, seed=seed, stderr=0.06))
        result = posterior(study)
        excess.append(_above_truth(study, {n: result.trials[n].mean for n in result.front}))
        luck.append(_above_truth(study, {t.number: t.values for t in study.best_trials}))
    assert np.mean(luck) > 0.01
    assert abs(np.mean(excess)) < 0.4 * np.mean(luck)


def test_a_long_study_promises_no_more_than_it_holds() -> None:
    study = study_of(noisy_trials(1000, stderr=0.06))
    result = posterior(study)
    luck = _above_truth(study, {t.number: t.values for t in study.best_trials})
    assert luck > 0.05
    assert abs(_above_truth(study, {n: result.trials[n].mean for n in result.front})) < 0.1 * luck


def test_trials_that_a_model_is_not_conditioned_on_are_predicted_by_it() -> None:
    study = study_of(noisy_trials(300, stderr=0.06))
    found = fit(study, most=100)
    result = posterior_of(found)
    assert list(result.front) == posterior_front(study, most=100)
    assert found.model is not None
    assert len(found.model.numbers) == 100
    w = np.array([[t.params[n] for n in SPACE] for t in study.trials])
    off = np.array([result.trials[t.number].mean for t in study.trials]) - truth(w)
    others = [t.number for t in study.trials if t.number not in found.model.numbers]
    assert np.abs(off[others]).mean() < 0.5 * 0.06 * math.sqrt(2 / math.pi)
    assert 0.0 < np.median([result.trials[n].stderr for n in others]) < 0.03


def _above_truth(study: Study, means: Mapping[int, Sequence[float]]) -> float:
    w = np.array([[study.trials[n].params[name] for name in SPACE] for n in means])
    return float((np.array([*means.values()]) - truth(w)).mean())


def test_a_front_is_the_front_of_the_means_that_it_reports() -> None:
    for limit in (None, 0.6):
        result = posterior(study_of(noisy_trials(30, at_least=limit)))
        able = [n for n, e in result.trials.items() if limit is None or e.mean[0] >= limit]
        best = non_dominated(np.array([result.trials[n].mean for n in able]), [MAX, MAX])
        assert list(result.front) == [able[i] for i in best]


def test_directions_only_turn_the_sign() -> None:
    trials = noisy_trials(20)
    turned = [measured(np.array([*t.params.values()]), [t.values[0], -t.values[1]]) for t in trials]
    up, down = posterior(study_of(trials)), posterior(study_of(turned, ("maximize", "minimize")))
    assert up.front == down.front
    assert down.trials[3].mean[1] == pytest.approx(-up.trials[3].mean[1])


def test_the_order_of_trials_does_not_matter() -> None:
    trials = noisy_trials(25)
    order = np.random.default_rng(1).permutation(len(trials))
    straight, shuffled = posterior(study_of(trials)), posterior(study_of([trials[i] for i in order]))
    assert sorted(int(order[i]) for i in shuffled.front) == list(straight.front)
    assert shuffled.trials[0].mean == straight.trials[int(order[0])].mean


def test_trials_without_stderr_get_a_fitted_noise() -> None:
    bare = [measured(np.array([*t.params.values()]), t.values, stderr=None) for t in noisy_trials(30)]
    result = posterior(study_of(bare))
    assert result.fallback is None
    assert all(math.isfinite(s) and s > 0.0 for e in result.trials.values() for s in e.stderr)


def test_baselines_outside_the_space_keep_their_raw_means() -> None:
    base = create_trial(values=[2.0, 2.0], user_attrs={"stderr": [0.01, 0.01]})
    silent = create_trial(values=[0.0, 0.0])
    result = posterior(study_of([base, silent, *noisy_trials(20)]))
    assert result.trials[0].mean == (2.0, 2.0)
    assert result.trials[0].stderr == (0.01, 0.01)
    assert math.isnan(result.trials[1].stderr[0])
    assert result.front == (0,)
    assert result.trials[0].on_front > 0.99


def test_chances_to_be_on_the_front_are_probabilities_that_favour_the_front() -> None:
    result = posterior(study_of(noisy_trials(30)))
    chances = {n: e.on_front for n, e in result.trials.items()}
    assert all(0.0 <= c <= 1.0 for c in chances.values())
    others = [c for n, c in chances.items() if n not in result.front]
    assert np.mean([chances[n] for n in result.front]) > np.mean(others)


def test_infeasible_trials_are_left_out() -> None:
    study = study_of(noisy_trials(30, at_least=0.6))
    result = posterior(study)
    assert result.front
    assert all(result.trials[n].mean[0] >= 0.6 and result.trials[n].feasible >= 0.4 for n in result.front)
    assert any(e.feasible < 0.1 for e in result.trials.values())


def test_a_constraint_of_its_own_is_modelled_too() -> None:
    rng = np.random.default_rng(0)
    w = rng.dirichlet(np.ones(3), size=24)
    trials = [measured(a, v, constraint=float(a[0] ** 2 - 0.2)) for a, v in zip(w, truth(w).tolist(), strict=True)]
    result = posterior(study_of(trials))
    assert result.front
    assert all(w[n, 0] ** 2 < 0.25 for n in result.front)


def test_a_constraint_that_nobody_meets_leaves_the_front_empty() -> None:
    assert posterior_front(study_of(noisy_trials(20, at_least=5.0))) == []
    assert posterior_front(study_of(noisy_trials(4, at_least=5.0))) == []


def test_constant_objectives_and_infinite_values_do_no_harm() -> None:
    rng = np.random.default_rng(0)
    flat = [measured(w, [0.5, 1.0], stderr=0.0) for w in rng.dirichlet(np.ones(3), size=10)]
    assert len(posterior_front(study_of([*flat, create_trial(values=[math.inf, 0.0])]))) >= 1


def test_one_objective_is_modelled_as_it_is_beside_others() -> None:
    trials = noisy_trials(20)
    alone = [measured(np.array([*t.params.values()]), t.values[:1]) for t in trials]
    single, both = posterior(study_of(alone, ["maximize"])), posterior(study_of(trials))
    assert len(single.front) == 1
    others = [n for n in both.trials if n not in {*single.front, *both.front}]
    assert [single.trials[n].mean[0] for n in others] == pytest.approx(
        [both.trials[n].mean[0] for n in others], abs=1e-3
    )


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 1000))
def test_a_second_look_sees_the_same(seed: int) -> None:
    study = study_of(noisy_trials(12, seed=seed))
    assert posterior(study) == posterior(study)


def test_a_listing_does_not_import_the_model() -> None:
    code = "import sys, optimizer.front, optimizer.samplers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
