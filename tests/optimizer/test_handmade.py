"""What people make by hand: chosen by a model whose truth is known, measured by a real worker."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.study import Study
from optuna.trial import create_trial

from optimizer import loop
from optimizer.handmade import Merit, handmade
from optimizer.spec import BEST_SLIDER, GREEDY_SOUP, Spec, load_spec
from optimizer.study import DriverStudy, create_study
from storage.store import Store
from workers.pool import LocalPool
from workers.worker import Worker

NAMES = ("alpha", "beta", "gamma")
Truth = Callable[[np.ndarray], np.ndarray]


@pytest.fixture
def spec(study_file: Callable[..., Path]) -> Spec:
    return load_spec(study_file(search={"trials": 18, "sampler": "random", "seed": 3}))


def measured(truth: Truth, count: int = 40) -> Study:
    rng = np.random.default_rng(0)
    w = np.concatenate([np.eye(3), np.full((1, 3), 1 / 3), rng.dirichlet(np.ones(3), size=count)])
    space = {f"w.{name}": FloatDistribution(-0.5, 1.0) for name in NAMES}
    study = optuna.create_study(directions=["maximize"] * 2)
    for row, values in zip(w, truth(w) + 0.005 * rng.normal(size=(len(w), 2)), strict=True):
        params = dict(zip(space, row.tolist(), strict=True))
        attrs = {"stderr": [0.005, 0.005]}
        study.add_trial(create_trial(params=params, distributions=space, values=values.tolist(), user_attrs=attrs))
    return study


def test_the_greedy_soup_leaves_out_what_makes_it_worse(spec: Spec) -> None:
    def truth(w: np.ndarray) -> np.ndarray:
        good = np.sqrt(w[:, 0]) + np.sqrt(w[:, 1])
        return np.stack([good / 2 - w[:, 2], good / 2 - w[:, 2]], axis=1)

    soup, _ = handmade(spec, measured(truth))
    assert soup.name == GREEDY_SOUP
    assert soup.recipe.weights == {"alpha": (0.5,), "beta": (0.5,), "gamma": (0.0,)}


def test_the_best_slider_mixes_the_best_of_each_objective(spec: Spec) -> None:
    def truth(w: np.ndarray) -> np.ndarray:
        distance = ((w - [0.0, 0.7, 0.3]) ** 2).sum(axis=1)
        return np.stack([w[:, 2] - distance, w[:, 1] - distance], axis=1)

    _, stop = handmade(spec, measured(truth))
    weights = stop.recipe.mean_weights()
    assert stop.name == BEST_SLIDER
    assert weights["alpha"] == 0.0
    assert weights["beta"] == pytest.approx(0.7, abs=0.11)


def test_of_few_trials_nothing_is_made(spec: Spec) -> None:
    assert handmade(spec, optuna.create_study(directions=["maximize"] * 2)) == []


def test_a_constraint_comes_before_any_gain(study_file: Callable[..., Path]) -> None:
    document = load_spec(study_file()).document()
    document["objectives"][0]["at_least"] = 0.9
    merit = Merit(Spec.model_validate(document), [{"safety": 0.0, "general": 0.0}, {"safety": 1.0, "general": 1.0}])
    assert merit({"safety": 0.9, "general": 0.1}) > merit({"safety": 0.89, "general": 1.0})
    assert merit({"safety": 0.95, "general": 0.1}) > merit({"safety": 0.9, "general": 0.1})


def test_a_studys_last_trials_are_what_people_make_by_hand_and_a_resumed_one_makes_them_once(
    spec: Spec, storage: str
) -> None:
    store = Store.open(storage, create=True)
    create_study(store, spec, trials=18, fingerprints={})
    worker = Worker(spec.setup(device="cpu"))

    def run() -> list[str | None]:
        study = DriverStudy(store, "tiny")
        loop.search(study, LocalPool(lambda: worker), lambda _: None)
        trials = store.optuna_study("tiny", optuna.samplers.RandomSampler()).get_trials()
        return [t.user_attrs.get("baseline") for t in trials if "recipe" in t.user_attrs]

    labels = run()
    assert len(labels) == 18
    assert labels[-2:] == [GREEDY_SOUP, BEST_SLIDER]
    assert set(labels[6:-2]) == {None}
    store.set_planned("tiny", 20)
    assert run() == [*labels, None, None]
    store.close()
