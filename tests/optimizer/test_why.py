"""What a checkpoint does to a front, on studies whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.study import Study
from optuna.trial import create_trial

from optimizer.cli import main
from optimizer.why import STEP, Influence, Why, why
from storage.store import Store

NOISE = 0.02
OBJECTIVES = ("safety", "general")
Truth = Callable[[np.ndarray], np.ndarray]


def mixes(k: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform, corners and random mixes, as a search measures them."""
    spread = rng.dirichlet(np.full(k, 0.7), size=count - k - 1)
    return np.concatenate([np.full((1, k), 1 / k), np.eye(k), spread])


def study_of(names: Sequence[str], w: np.ndarray, truth: Truth, seed: int = 0, kind: str = "w") -> Study:
    values = truth(w) + NOISE * np.random.default_rng([seed, 1]).normal(size=(len(w), 2))
    low, high = (-0.5, 1.0) if kind == "w" else (0.0, 1.2)
    space = {f"{kind}.{name}": FloatDistribution(low, high) for name in names}
    study = optuna.create_study(directions=["maximize"] * 2)
    study.add_trials(
        [
            create_trial(
                params=dict(zip(space, row.tolist(), strict=True)),
                distributions=space,
                values=found.tolist(),
                user_attrs={"stderr": [NOISE] * 2},
            )
            for row, found in zip(w, values, strict=True)
        ]
    )
    return study


def asked(names: Sequence[str], w: np.ndarray, truth: Truth, *, seed: int = 0, kind: str = "w") -> Why:
    weights = {i: dict(zip(names, row.tolist(), strict=True)) for i, row in enumerate(w)}
    return why(study_of(names, w, truth, seed, kind), OBJECTIVES, weights)


def of(found: Why, checkpoint: str) -> Influence:
    return next(c for c in found.checkpoints if c.checkpoint == checkpoint)


def two_skills(w: np.ndarray) -> np.ndarray:
    """a gives safety and b general, each with less and less return; whatever else is there takes their room."""
    return np.stack([np.sqrt(w[:, 0] + 0.05), np.sqrt(w[:, 1] + 0.05)], axis=1)


def test_effects_have_the_sign_and_size_of_the_truth() -> None:
    rng = np.random.default_rng(0)
    w = mixes(3, 50, rng)
    found = asked("abc", w, two_skills)
    assert found.fallback is None
    assert found.on_front
    assert of(found, "a").effect["safety"].verdict == "better"
    assert of(found, "a").effect["general"].verdict == "worse"
    assert of(found, "c").effect["safety"].verdict == "worse"
    around = w[list(found.around)]
    moved = around * (1 - STEP) + STEP * np.eye(3)[0]
    true = (two_skills(moved) - two_skills(around)).mean(axis=0)
    effect = of(found, "a").effect
    assert effect["safety"].low <= true[0] <= effect["safety"].high
    assert effect["general"].low <= true[1] <= effect["general"].high


def test_an_objective_to_minimise_keeps_its_sign_and_turns_the_verdict() -> None:
    w = mixes(3, 40, np.random.default_rng(0))
    study = study_of("abc", w, two_skills)
    turned = optuna.create_study(directions=["maximize", "minimize"])
    for trial in study.trials:
        turned.add_trial(
            create_trial(
                params=trial.params,
                distributions=trial.distributions,
                values=[trial.values[0], -trial.values[1]],
                user_attrs=trial.user_attrs,
            )
        )
    weights = {i: dict(zip("abc", row.tolist(), strict=True)) for i, row in enumerate(w)}
    up, down = (of(why(s, OBJECTIVES, weights), "b").effect["general"] for s in (study, turned))
    assert down.mean == pytest.approx(-up.mean)
    assert (up.verdict, down.verdict) == ("better", "better")


def test_a_checkpoint_that_harms_is_to_be_left_out() -> None:
    def truth(w: np.ndarray) -> np.ndarray:
        return two_skills(w) - 0.8 * w[:, 2:3]

    rng = np.random.default_rng(1)
    # Nobody has looked for the front yet: every mix has some of c.
    w = np.concatenate([rng.dirichlet([1.0, 1.0, 1.0], size=40), [[0.0, 0.0, 1.0]]])
    w = np.maximum(w, [0.0, 0.0, 0.1])
    w /= w.sum(axis=1, keepdims=True)
    found = asked("abc", w, truth)
    bad = of(found, "c")
    assert not bad.negligible
    assert bad.harmful
    assert bad.advice == "leave it out: the front gains without it"
    assert {c.verdict for c in bad.effect.values()} == {"worse"}
    assert [c.checkpoint for c in found.checkpoints if c.harmful] == ["c"]


def test_a_checkpoint_that_the_front_does_without_is_to_be_left_out() -> None:
    # As a search ends: c was tried and let go of, but for a trace here and there.
    w = mixes(2, 50, np.random.default_rng(2))
    trace = np.random.default_rng(3).uniform(0.0, 0.015, size=(50, 1))
    w = np.concatenate([np.hstack([w * (1 - trace), trace]), np.eye(3)[2:], np.full((1, 3), 1 / 3)])
    found = asked("abc", w, two_skills)
    unused = of(found, "c")
    assert unused.negligible
    assert unused.advice.startswith("leave it out: below 2%")
    assert of(found, "a").needed
    assert not of(found, "a").negligible


def test_of_a_checkpoint_that_does_nothing_no_effect_is_claimed() -> None:
    def truth(w: np.ndarray) -> np.ndarray:
        a, b = w[:, 0], w[:, 1]
        share = a / np.maximum(a + b, 1e-9)
        return np.stack([np.sqrt(share), np.sqrt(1 - share)], axis=1)

    w = mixes(3, 60, np.random.default_rng(3))
    w = w[w[:, 2] < 0.8]
    idle = of(asked("abc", w, truth), "c")
    assert {c.verdict for c in idle.effect.values()} == {"open"}
    assert idle.left_out
    assert {c.verdict for c in idle.left_out.values()} == {"open"}
    assert idle.advice == "no loss can be told without it"
    assert not idle.needed


def test_a_pair_that_interferes_is_found_and_stands_first() -> None:
    def truth(w: np.ndarray) -> np.ndarray:
        interference = 1.5 * w[:, 0] * w[:, 1]
        gains = w @ np.array([[0.6, 0.2], [0.6, 0.2], [0.2, 0.6], [0.3, 0.3]])
        return gains - np.stack([interference, np.zeros(len(w))], axis=1)

    found = asked("abcd", mixes(4, 70, np.random.default_rng(4)), truth)
    first = found.pairs[0]
    assert (first.a, first.b) == ("a", "b")
    assert first.interferes
    assert first.blend["safety"].verdict == "worse"
    # Half of the merge is theirs: by the truth, -1.5 times a quarter of a half each.
    assert first.blend["safety"].low <= -1.5 / 16 <= first.blend["safety"].high
    assert [p for p in found.pairs if p.interferes] == [first]


@pytest.mark.parametrize("interfering", [True, False])
def test_task_vectors_interfere_when_both_together_do_less_than_each_adds(interfering: bool) -> None:
    def truth(w: np.ndarray) -> np.ndarray:
        both = 0.8 * w[:, 0] * w[:, 1] * interfering
        return np.stack([0.5 * w[:, 0] + 0.4 * w[:, 1] - both, 0.3 * w[:, 2] + 0.1 * w[:, 0]], axis=1)

    w = np.random.default_rng(5).uniform(0.0, 1.2, size=(60, 3))
    found = asked("abc", w, truth, kind="scale")
    assert [(p.a, p.b) for p in found.pairs if p.interferes] == [("a", "b")] * interfering
    assert of(found, "b").effect["general"].verdict == "open"
    assert of(found, "c").needed


def test_the_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Four checkpoints, smooth interfering objectives, ten studies: 160 single intervals, at least 90 % right."""
    right = []
    for seed in range(10):
        rng = np.random.default_rng([seed, 9])
        targets = rng.dirichlet(np.ones(4), size=2)

        def truth(w: np.ndarray, targets: np.ndarray = targets) -> np.ndarray:
            return np.asarray(np.exp(-1.5 * ((w[:, None, :] - targets) ** 2).sum(axis=2)))

        w = mixes(4, 45, rng)
        found = asked("abcd", w, truth, seed=seed)
        around = w[list(found.around)]
        for place, name in enumerate("abcd"):
            moved = around * (1 - STEP) + STEP * np.eye(4)[place]
            held = (around[:, place] > 0) & (around[:, place] < 1)
            without = around[held] * (1 - np.eye(4)[place])
            without /= without.sum(axis=1, keepdims=True)
            true = (truth(moved) - truth(around)).mean(axis=0), (truth(without) - truth(around[held])).mean(axis=0)
            for i, objective in enumerate(OBJECTIVES):
                known = of(found, name).effect[objective], of(found, name).left_out[objective]
                right += [c.low <= t[i] <= c.high for c, t in zip(known, true, strict=True)]
    assert np.mean(right) >= 0.9


def test_layer_groups_move_together() -> None:
    rng = np.random.default_rng(6)
    w = mixes(2, 40, rng)
    names = {f"w.{name}@{group}": FloatDistribution(-0.5, 1.0) for group in "01" for name in "ab"}
    study = optuna.create_study(directions=["maximize"] * 2)
    for row, value in zip(w, two_skills(w).tolist(), strict=True):
        params = dict(zip(names, [*row, *row], strict=True))
        study.add_trial(
            create_trial(params=params, distributions=names, values=value, user_attrs={"stderr": [NOISE] * 2})
        )
    found = why(study, OBJECTIVES, {i: {"a": x, "b": y} for i, (x, y) in enumerate(w.tolist())})
    assert of(found, "a").effect["safety"].verdict == "better"
    assert [(p.a, p.b) for p in found.pairs] == [("a", "b")]


def test_without_a_model_there_are_weights_and_the_reason() -> None:
    w = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    found = asked("abc", w, two_skills)
    assert found.fallback is not None
    assert "fewer than" in found.fallback
    assert of(found, "c").negligible
    assert of(found, "a").largest == 1.0
    assert not found.pairs
    assert not any(c.effect or c.left_out for c in found.checkpoints)


def test_a_choice_of_methods_has_no_model() -> None:
    study = optuna.create_study(directions=["maximize"] * 2)
    methods = {"method": CategoricalDistribution(["linear", "ties"])}
    for _ in range(10):
        study.add_trial(create_trial(params={"method": "ties"}, distributions=methods, values=[0.0, 0.0]))
    assert why(study, OBJECTIVES, {0: {"a": 1.0}}).fallback is not None


def test_where_no_merge_is_feasible_all_of_them_are_looked_at() -> None:
    w = mixes(3, 30, np.random.default_rng(7))
    study = study_of("abc", w, two_skills)
    strict = optuna.create_study(directions=["maximize"] * 2)
    for trial in study.trials:
        strict.add_trial(
            create_trial(
                params=trial.params,
                distributions=trial.distributions,
                values=trial.values,
                user_attrs=trial.user_attrs,
                constraints={"safety at_least 2": 2.0 - trial.values[0]},
            )
        )
    found = why(strict, OBJECTIVES, {i: dict(zip("abc", row.tolist(), strict=True)) for i, row in enumerate(w)})
    assert not found.on_front
    assert len(found.around) == 16
    assert of(found, "a").effect["safety"].verdict == "better"


def test_a_study_of_nothing_says_nothing() -> None:
    found = why(optuna.create_study(directions=["maximize"] * 2), OBJECTIVES, {})
    assert (found.checkpoints, found.pairs, found.around) == ((), (), ())


def test_the_command_names_what_matters(known_study: Callable[..., Store], capsys: pytest.CaptureFixture[str]) -> None:
    known_study(lambda name, _split, objective, place, _item: float(place % 3 > (name == objective)))
    assert main(["why", "tiny", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [c["checkpoint"] for c in document["checkpoints"]] == ["alpha", "beta", "gamma"]
    assert "fewer than 8 trials" in document["fallback"]
    assert main(["why", "tiny"]) == 0
    shown = capsys.readouterr()
    assert "alpha" in shown.out
    assert "only weights" in shown.err
