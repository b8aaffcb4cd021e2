"""Every sampler on the studies that a search really makes: noisy, with baselines, failures and trials in flight."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from optimizer import surrogate
from optimizer.measurements import MOST_POINTS
from optimizer.next_point import MOST_TOGETHER
from optimizer.samplers import NAMES, OUTLOOK, drawn_together, make_sampler

OPTUNA_MODELS = ("gp", "tpe", "nsga2", "nsga3", "cmaes", "grid", "random")
SPACE = {f"w.{name}": FloatDistribution(-0.5, 1.0) for name in ("a", "b", "c")}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def weights(params: dict[str, float]) -> np.ndarray:
    x = np.array(list(params.values()))
    positive = np.maximum(x, 0.0)
    return positive / positive.sum() if positive.sum() > 0 else np.eye(len(x))[x.argmax()]


def scores(params: dict[str, float], objectives: int) -> list[float]:
    targets = np.array([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5], [0.3, 0.3, 0.4]])[:objectives]
    w = weights(params)
    return [math.exp(-3.0 * float(((w - t) ** 2).sum())) for t in targets]


def tell(study: Study, trial: optuna.Trial, stderr: bool = True) -> None:
    values = scores(trial.params, len(study.directions))
    if stderr:
        trial.set_user_attr("stderr", [0.02] * len(values))
    study.tell(trial, [v if d.name == "MAXIMIZE" else -v for v, d in zip(values, study.directions, strict=True)])


def search(study: Study, trials: int, stderr: bool = True) -> None:
    for _ in range(trials):
        tell(study, study.ask(SPACE), stderr)


def baseline(values: Sequence[float]) -> FrozenTrial:
    return create_trial(values=list(values), user_attrs={"baseline": "base", "stderr": [0.01] * len(values)})


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"must be one of auto, gp, .* but got 'bayes'"):
        make_sampler("bayes")


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more, but got -1"):
        make_sampler("tpe", seed=-1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("directions", [["maximize", "minimize"], ["maximize"]])
def test_a_study_with_baselines_failures_and_odd_trials_goes_on(name: str, directions: list[str]) -> None:
    study = optuna.create_study(directions=directions, sampler=make_sampler(name, seed=3))
    study.add_trial(baseline([0.1] * len(directions)))
    study.enqueue_trial(dict.fromkeys(SPACE, 1.0))
    search(study, 11)
    study.tell(study.ask(SPACE), state=TrialState.FAIL)
    study.add_trial(create_trial(state=TrialState.FAIL))
    study.add_trial(baseline([0.2] * len(directions)))
    study.ask(SPACE)
    study.ask()
    search(study, 2, stderr=False)
    measured = [t for t in study.trials if t.state == TrialState.COMPLETE and t.params]
    assert len(measured) == 13
    assert all(-0.5 <= x <= 1.0 for t in measured for x in t.params.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_rebuilt_sampler_proposes_what_the_first_would_have(name: str) -> None:
    def proposals(rebuild: bool) -> list[dict[str, float]]:
        study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler(name, seed=5))
        study.add_trial(baseline([0.1, 0.1]))
        search(study, 10)
        if rebuild:
            study.sampler = make_sampler(name, seed=5)
        search(study, 2)
        return [t.params for t in study.trials]

    assert proposals(rebuild=True) == proposals(rebuild=False)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "grid"])
def test_trials_in_flight_are_all_different(name: str) -> None:
    study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler(name, seed=0))
    search(study, 10)
    asked = [tuple(study.ask(SPACE).params.values()) for _ in range(3)]
    assert len(set(asked)) == 3


@pytest.mark.parametrize("name", NAMES)
def test_define_by_run_works(name: str) -> None:
    study = optuna.create_study(direction="minimize", sampler=make_sampler(name, seed=1))
    study.optimize(lambda t: -scores({n: t.suggest_float(n, -0.5, 1.0) for n in SPACE}, 1)[0], n_trials=9)
    assert len(study.trials) == 9


@pytest.mark.parametrize("stderr", [True, False])
def test_objectives_that_never_vary_do_not_stop_the_search(stderr: bool) -> None:
    study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler("auto", seed=0))
    for _ in range(10):
        trial = study.ask(SPACE)
        if stderr:
            trial.set_user_attr("stderr", [0.0, 0.0])
        study.tell(trial, [0.5, 1.0])
    assert len({tuple(t.params.values()) for t in study.trials}) == 10


def test_points_measured_many_times_do_not_stop_the_search() -> None:
    study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler("auto", seed=0))
    for _ in range(12):
        study.enqueue_trial(dict.fromkeys(SPACE, 1.0))
    search(study, 14)
    assert len({tuple(t.params.values()) for t in study.trials}) > 1


def test_auto_finds_better_merges_than_chance_and_sets_useless_weights_to_exactly_zero() -> None:
    def searched(name: str) -> Study:
        study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler(name, seed=2))
        for _ in range(15):
            trial = study.ask(SPACE)
            a, b, c = weights(trial.params)
            trial.set_user_attr("stderr", [0.01, 0.01])
            study.tell(trial, [a * math.exp(-c), b * math.exp(-c)])
        return study

    study, chance = searched("auto"), searched("random")
    model_led = [weights(t.params) for t in study.trials[8:]]
    assert any(w[2] == 0.0 and (w < 1.0).all() for w in model_led)
    assert max(min(t.values) for t in study.trials) >= max(min(t.values) for t in chance.trials)


def test_auto_begins_with_the_uniform_merge_and_each_checkpoint_alone() -> None:
    study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler("auto", seed=0))
    search(study, 4)
    found = [weights(t.params).round(3).tolist() for t in study.trials]
    assert found == [[0.333] * 3, [1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_auto_does_not_repeat_what_was_enqueued() -> None:
    study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler("auto", seed=0))
    for corner in ([0.5, 0.5, 0.5], [1.0, -0.1, -0.5]):
        study.enqueue_trial(dict(zip(SPACE, corner, strict=True)))
    search(study, 3)
    assert weights(study.trials[2].params).tolist() == [0, 1, 0]


def test_auto_keeps_to_a_constraint() -> None:
    def share_kept(constrained: bool) -> float:
        study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler("auto", seed=1))
        for _ in range(16):
            trial = study.ask(SPACE)
            if constrained:
                trial.set_constraint("first", 0.8 - scores(trial.params, 2)[0])
            tell(study, trial)
        return float(np.mean([t.values[0] >= 0.79 for t in study.trials[7:]]))

    assert share_kept(True) > share_kept(False)


@pytest.mark.parametrize("name", OPTUNA_MODELS)
def test_trials_that_differ_in_their_constraints_are_no_obstacle(name: str) -> None:
    study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler(name, seed=0))
    for i in range(13):
        trial = study.ask(SPACE)
        if i != 4:
            trial.set_constraint("first", 0.5 - scores(trial.params, 2)[0])
        tell(study, trial)
    assert len(study.trials) == 13


def test_a_constraint_that_nobody_meets_leads_towards_it() -> None:
    study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler("auto", seed=1))
    for _ in range(12):
        trial = study.ask(SPACE)
        trial.set_constraint("first", 2.0 - scores(trial.params, 2)[0])
        tell(study, trial)
    first = [t.values[0] for t in study.trials]
    assert max(first[8:]) >= max(first[:8])


def _layered(trial: optuna.Trial) -> None:
    for group in ("0", "1"):
        for name in "ab":
            trial.suggest_float(f"w.{name}@{group}", -0.5, 1.0)


def _scaled(trial: optuna.Trial) -> None:
    for name in "ab":
        trial.suggest_float(f"scale.{name}", 0.0, 1.2)
    trial.suggest_float("density", 0.3, 1.0)


def _by_method(trial: optuna.Trial) -> None:
    if trial.suggest_categorical("method", ["linear", "ties"]) == "ties":
        trial.suggest_float("density", 0.3, 1.0)
    trial.suggest_float("w.a", -0.5, 1.0)
    trial.suggest_float("w.b", -0.5, 1.0)


@pytest.mark.parametrize(
    ("name", "suggest"),
    [
        *itertools.product(NAMES, [_layered, _scaled]),
        *itertools.product([n for n in NAMES if n not in ("grid", "cmaes")], [_by_method]),
    ],
)
def test_layer_groups_task_vector_scales_and_methods_can_be_searched(
    name: str, suggest: Callable[[optuna.Trial], None]
) -> None:
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        suggest(trial)
        total = sum(v for v in trial.params.values() if isinstance(v, float))
        return total, -abs(total - 0.7)

    study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler(name, seed=0))
    study.optimize(objective, n_trials=12)
    assert len([t for t in study.trials if t.state == TrialState.COMPLETE]) == 12


def test_a_checkpoint_that_came_later_has_weight_zero_in_older_trials() -> None:
    study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler("auto", seed=0))
    search(study, 8)
    larger = {**SPACE, "w.d": FloatDistribution(-0.5, 1.0)}
    study.sampler = make_sampler("auto", seed=0, space=larger)
    assert study.ask(larger).params.keys() == larger.keys()


def test_a_known_space_is_used_from_the_first_trial_on() -> None:
    first = optuna.create_study(sampler=make_sampler("grid", seed=1, space=SPACE)).ask(SPACE).params
    other = optuna.create_study(sampler=make_sampler("grid", seed=2, space=SPACE)).ask(SPACE).params
    assert first != other


def test_the_grid_visits_every_point_once() -> None:
    space = {"w.a": FloatDistribution(-0.5, 1.0), "w.b": FloatDistribution(-0.5, 1.0)}
    study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler("grid", seed=0, space=space))
    for _ in range(15):
        study.tell(study.ask(space), [0.0, 0.0])
    seen = {tuple(weights(t.params).round(6)) for t in study.trials}
    expected = {
        (round(a / (a + b), 6), round(b / (a + b), 6))
        for a in (0, 0.3, 0.5, 0.7, 1)
        for b in (0, 0.3, 0.5, 0.7, 1)
        if a + b > 0
    }
    assert seen == expected


def test_too_large_a_grid_is_refused_with_its_size() -> None:
    space = {f"w.{i}": FloatDistribution(-0.5, 1.0) for i in range(16)}
    with pytest.raises(ValueError, match="at most 10000 points, but 16 parameters at 5 levels make 152587890625"):
        make_sampler("grid", space=space)


@pytest.mark.parametrize("name", ["grid", "cmaes"])
def test_samplers_of_numbers_refuse_a_choice_of_methods(name: str) -> None:
    space = {"method": CategoricalDistribution(["linear", "ties"])}
    with pytest.raises(ValueError, match=f"the {name} sampler needs the same numbers in every trial, but got method"):
        make_sampler(name, space=space)
    study = optuna.create_study(sampler=make_sampler(name, seed=0))
    study.tell(study.ask(space), 0.0)
    with pytest.raises(ValueError, match="but got method"):
        study.ask(space)


def test_an_ask_leaves_the_threads_and_the_random_state_as_they_were() -> None:
    study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler("auto", seed=0))
    search(study, 7)
    torch.manual_seed(1)
    before = torch.get_num_threads(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    search(study, 1)
    after = torch.get_num_threads(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    assert before == after


def test_of_two_thousand_trials_the_model_takes_the_most_telling(monkeypatch: pytest.MonkeyPatch) -> None:
    # What it costs grows with the cube of their number; the seconds are in benchmarks/search_cost.py.
    taken: list[set[int]] = []

    class Watched(surrogate.Surrogate):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            taken.append(set(self.numbers))

    monkeypatch.setattr(surrogate, "Surrogate", Watched)
    rng = np.random.default_rng(0)
    study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler("auto", seed=0))
    raw = rng.uniform(-0.5, 1.0, size=(2000, 3))
    study.add_trials(
        [
            create_trial(params=p, distributions=SPACE, values=scores(p, 2))
            for p in (dict(zip(SPACE, x.tolist(), strict=True)) for x in raw)
        ]
    )
    asked = study.ask(SPACE)
    (numbers,) = taken
    assert len(numbers) == MOST_POINTS
    assert {max(study.trials[:2000], key=lambda t: t.values[i]).number for i in range(2)} <= numbers
    assert study.trials[asked.number].system_attrs[OUTLOOK]["worth"] > 0


def test_several_proposals_of_one_model_are_new_all_different_and_known_by_the_study_alone() -> None:
    def drawn(rebuild: bool) -> list[dict[str, float]]:
        study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler("auto", seed=5))
        search(study, 20)
        for trial in drawn_together(study, 6):
            study.add_trial(trial)
        if rebuild:
            study.sampler = make_sampler("auto", seed=5)
        return [t.params for t in [*study.trials[20:], *drawn_together(study, 6)]]

    found = drawn(rebuild=False)
    assert found == drawn(rebuild=True)
    mixes = np.array([weights(params) for params in found])
    apart = np.abs(mixes[:, None] - mixes[None]).max(axis=2) + np.eye(12)
    assert len(found) == 12
    assert apart.min() > 1e-3


def test_each_of_several_proposals_promises_what_it_adds_to_those_before_it() -> None:
    study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler("auto", seed=0))
    search(study, 14)
    found = drawn_together(study, 99)
    gains = [trial.system_attrs[OUTLOOK]["gain"] for trial in found]
    assert len(found) == MOST_TOGETHER
    assert all(trial.state == TrialState.RUNNING for trial in found)
    assert gains[0] == pytest.approx(max(gains), rel=0.5)
    assert sum(gains[8:]) < sum(gains[:8])
    assert [trial.system_attrs[OUTLOOK]["again"] for trial in found[1:]] == [None] * 15


def test_where_every_merge_is_measured_or_runs_several_proposals_are_still_made() -> None:
    two = {name: FloatDistribution(-0.5, 1.0) for name in ("w.a", "w.b")}
    study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler("auto", seed=0))
    shares = np.linspace(0.0, 1.0, 601)
    mixes = [{"w.a": float(share), "w.b": float(1.0 - share)} for share in shares]
    for mix in mixes[::50]:
        values = [mix["w.a"], mix["w.b"] ** 2]
        study.add_trial(create_trial(params=mix, distributions=two, values=values))
    study.add_trials([create_trial(state=TrialState.RUNNING, params=mix, distributions=two) for mix in mixes])
    assert len(drawn_together(study, 4)) == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_without_a_model_is_asked_for_one_trial_after_the_other(name: str) -> None:
    study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler(name, seed=0))
    search(study, 5)
    assert drawn_together(study, 4) == []


def test_a_search_that_stays_in_the_middle_of_the_front_does_not_end_there() -> None:
    """What was measured must not bound what is worth measuring: here all of it lies between the front's ends."""
    rng = np.random.default_rng(0)
    study = optuna.create_study(directions=["maximize"] * 2, sampler=make_sampler("auto", seed=0))
    ends = np.array([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5]])
    for share in rng.uniform(0.3, 0.7, size=60):
        params = dict(zip(SPACE, (share * ends[0] + (1.0 - share) * ends[1]).tolist(), strict=True))
        values = [v + 0.01 * rng.normal() for v in scores(params, 2)]
        study.add_trial(
            create_trial(params=params, distributions=SPACE, values=values, user_attrs={"stderr": [0.01] * 2})
        )
    search(study, 8)
    best = np.array([scores(t.params, 2) for t in study.trials]).max(axis=0)
    assert (best > 0.87).all()
