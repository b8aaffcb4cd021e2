"""A study that begins with what an earlier one knows: a real store, a real worker, one checkpoint more."""

from collections.abc import Callable, Iterator
from math import log
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial

from optimizer import api, loop
from optimizer.baselines import by_loss, starting_points
from optimizer.preflight import Report
from optimizer.results import results
from optimizer.spec import Spec, load_spec
from optimizer.study import DriverStudy
from optimizer.warm_start import INHERITED, WarmStart, extended
from search_spaces.errors import InputError
from storage.store import Store
from tests.conftest import Counting
from workers.worker import Worker

PRINTS = {name: name[0] * 32 for name in ("base", "alpha", "beta", "gamma")}


@pytest.fixture
def made(study_file: Callable[..., Path]) -> Callable[..., Spec]:
    def make(name: str, checkpoints: str, **search: Any) -> Spec:
        named = [{"name": c, "model": f"models/{c}"} for c in checkpoints.split()]
        known = {"trials": 9, "sampler": "random", "seed": 3, "evaluation": {"items": 12}}
        return load_spec(study_file(study=name, checkpoints=named, search=known | search))

    return make


@pytest.fixture
def store(storage: str) -> Iterator[Store]:
    store = Store.open(storage, create=True)
    yield store
    store.close()


def run(store: Store, spec: Spec) -> Counting:
    pool = Counting(Worker(spec.setup(device="cpu")))
    loop.search(DriverStudy(store, spec.study), pool, lambda _: None)
    return pool


def begin(store: Store, spec: Spec, **prints: str) -> None:
    found = Report(problems=(), warnings=(), fingerprints=PRINTS | prints)
    api._create(store, spec, spec.search.trials, found)


def trials(store: Store, name: str) -> list[FrozenTrial]:
    return store.optuna_study(name, optuna.samplers.RandomSampler()).get_trials()


@pytest.fixture
def first(store: Store, made: Callable[..., Spec]) -> Spec:
    spec = made("first", "alpha beta")
    begin(store, spec)
    run(store, spec)
    return spec


@pytest.mark.usefixtures("first")
def test_measurements_are_taken_over_and_measured_by_nobody(store: Store, made: Callable[..., Spec]) -> None:
    spec = made("second", "alpha beta gamma", warm_start="first")
    begin(store, spec)
    asked = {a.recipe.digest for a in run(store, spec).asked}
    before = store.measured("first")
    taken = {t.number: t.user_attrs[INHERITED]["trial"] for t in trials(store, "second") if INHERITED in t.user_attrs}
    # All but the base and Model Stock of two, which are no merges of three, and each merge once.
    searched = [before[t.number].recipe.digest for t in trials(store, "first") if t.params]
    assert [before[n].recipe.digest for n in taken.values()] == list(dict.fromkeys(searched))
    for number, origin in taken.items():
        mine = store.measured("second")[number]
        assert mine.scores == before[origin].scores
        assert mine.recipe.digest == before[origin].recipe.digest
        assert mine.recipe.weights["gamma"] == (0.0,)
        assert mine.recipe.digest not in asked
        assert store.with_marks("second", number).marks == store.with_marks("first", origin).marks


@pytest.mark.usefixtures("first")
def test_what_is_taken_over_costs_no_planned_trial_and_keeps_its_name(store: Store, made: Callable[..., Spec]) -> None:
    spec = made("second", "alpha beta gamma", warm_start="first")
    begin(store, spec)
    run(store, spec)
    assert DriverStudy(store, "second").counts() == (9, 0, 9)
    labels = [t.user_attrs.get("baseline") for t in trials(store, "second") if t.user_attrs.get("baseline")]
    assert sorted(labels) == sorted(s.name for s in starting_points(spec) if s.name)
    inherited = {t.user_attrs.get("baseline") for t in trials(store, "second") if INHERITED in t.user_attrs}
    assert inherited == {"alpha", "beta", None}
    (summary,) = [s for s in store.studies() if s.name == "second"]
    assert (summary.measured, summary.planned) == (9, 9)
    taken = [t for t in trials(store, "second") if INHERITED in t.user_attrs]
    assert len(results(store, "second").rows) == 9 + len(taken)


@pytest.mark.usefixtures("first")
def test_a_crash_while_trials_are_taken_over_loses_and_doubles_none(
    store: Store, made: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    spec = made("second", "alpha beta gamma", warm_start="first")
    begin(store, spec)
    for owner, name in ((optuna.Study, "ask"), (Store, "add_measured"), (optuna.Study, "tell")):
        original, calls = getattr(owner, name), 0

        def crash(*arguments: Any, original: Any = original, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise Crash
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, crash)
        with pytest.raises(Crash):
            DriverStudy(store, "second")
        monkeypatch.setattr(owner, name, original)
    run(store, spec)
    done = [t.user_attrs[INHERITED]["trial"] for t in trials(store, "second") if INHERITED in t.user_attrs and t.values]
    assert sorted(done) == sorted(set(done))
    start = WarmStart.from_notes(store.notes("second"))
    assert start is not None
    assert len(done) == len(start.trials) > 2
    assert DriverStudy(store, "second").counts() == (9, 0, 9)


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize(
    ("change", "reason"),
    [({"evaluation": {"items": 13}}, "their search items differ"), ({}, "torch has another version")],
)
def test_where_measurements_are_others_the_front_is_measured_again(
    store: Store,
    made: Callable[..., Spec],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, Any],
    reason: str,
) -> None:
    if not change:
        monkeypatch.setattr("optimizer.study.versions", lambda: {"torch": "0"})
    spec = made("second", "alpha beta gamma", warm_start="first", **change)
    begin(store, spec)
    assert reason in caplog.text
    asked = [a.recipe.digest for a in run(store, spec).asked]
    front = [r for r in results(store, "first").slider if extended(r.recipe, spec.space) is not None]
    start = WarmStart.from_notes(store.notes("second"))
    assert start is not None
    assert set(start.trials) <= {r.trial for r in front}
    assert len(start.trials) == min(len(front), 3)
    taken = [extended(store.measured("first")[n].recipe, spec.space) for n in start.trials]
    again = {spec.space.settled(recipe).digest for recipe in taken if recipe is not None}
    assert len(again) == len(start.trials)
    assert len(asked) == len(set(asked))
    assert again <= set(asked)
    assert not any(INHERITED in t.user_attrs for t in trials(store, "second"))


@pytest.mark.usefixtures("first")
def test_another_model_under_the_same_name_is_refused_with_both_fingerprints(
    store: Store, made: Callable[..., Spec]
) -> None:
    with pytest.raises(InputError, match="same models, but beta has fingerprint 999999999999 here and bbbbbbbbbbbb in"):
        begin(store, made("second", "alpha beta gamma", warm_start="first"), beta="9" * 32)
    assert [s.name for s in store.studies()] == ["first"]


def test_a_checkpoint_that_is_gone_is_refused(store: Store, made: Callable[..., Spec]) -> None:
    begin(store, made("first", "alpha beta gamma"))
    with pytest.raises(InputError, match="same checkpoints or fewer, but first has beta, which second has not"):
        begin(store, made("second", "alpha gamma", warm_start="first"))


def test_an_unknown_study_and_itself_are_refused(store: Store, made: Callable[..., Spec]) -> None:
    with pytest.raises(InputError, match="there is no 'third'"):
        begin(store, made("second", "alpha beta", warm_start="third"))
    with pytest.raises(InputError, match="search.warm_start must name another study, but names second"):
        made("second", "alpha beta", warm_start="second")


def test_a_recipe_of_another_method_or_shape_is_no_recipe_of_the_space(made: Callable[..., Spec]) -> None:
    spec = made("second", "alpha beta gamma")
    known = starting_points(made("first", "alpha beta"))[0].recipe
    wider = extended(known, spec.space)
    assert wider is not None
    assert wider.weights == {"alpha": (0.5,), "beta": (0.5,), "gamma": (0.0,)}
    document = spec.document()
    document["search_space"]["method"] = "task_arithmetic"
    assert extended(known, Spec.model_validate(document).space) is None


@pytest.mark.parametrize(("method", "weights"), [("linear", (0.2, 0.2, 0.6)), ("task_arithmetic", (1 / 3, 1 / 3, 1.0))])
def test_examples_give_a_free_guess(
    study_file: Callable[..., Path], method: str, weights: tuple[float, float, float]
) -> None:
    named = [
        {"name": n, "model": f"models/{n}", "examples": e} for n, e in (("alpha", 10), ("beta", 10), ("gamma", 30))
    ]
    spec = load_spec(study_file(checkpoints=named, search_space={"method": method}))
    guess = starting_points(spec)[-1]
    assert guess.name is None
    assert tuple(guess.recipe.mean_weights().values()) == pytest.approx(weights)
    del named[0]["examples"]
    spec = load_spec(study_file(checkpoints=named))
    assert starting_points(spec)[-1].name is not None


@pytest.mark.parametrize(("method", "weights"), [("linear", (0.2, 0.2, 0.6)), ("task_arithmetic", (1 / 3, 1 / 3, 1.0))])
def test_losses_give_a_free_guess_whose_weights_are_the_probabilities_of_right_tokens(
    study_file: Callable[..., Path], method: str, weights: tuple[float, float, float]
) -> None:
    spec = load_spec(study_file(search_space={"method": method}))
    guess = by_loss(spec, {"alpha": log(10) + 900.0, "beta": log(10) + 900.0, "gamma": log(10 / 3) + 900.0})
    assert guess.name is None
    assert tuple(guess.recipe.mean_weights().values()) == pytest.approx(weights, rel=1e-3)


def test_losses_that_differ_by_another_engines_last_bits_give_the_same_guess(study_file: Callable[..., Path]) -> None:
    spec = load_spec(study_file())
    losses = {"alpha": 1.21, "beta": 0.4, "gamma": 2.0}
    assert by_loss(spec, losses) == by_loss(spec, {name: loss + 1e-6 for name, loss in losses.items()})
