from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.records import Score
from workers.errors import TrialError
from workers.scores import Across, Aggregation, Bounds, plain_score
from workers.suites import Item

UNIT = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Valued:
    """One item's value in one suite."""

    suite: str
    item: Item
    value: float | None


def objective_score(valued: list[Valued], across: Across, bounds: Bounds) -> Score:
    return Aggregation([(v.suite, v.item) for v in valued], across, bounds).score([v.value for v in valued])


def valued(values: list[float | None], lang: str = "aa", suite: str = "s", **more: str) -> list[Valued]:
    return [
        Valued(suite=suite, item=Item(id=f"{lang}{i}", prompt="p", lang=lang, **more), value=v)
        for i, v in enumerate(values)
    ]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=50).filter(lambda v: float(np.var(v)) > 1e-9))
def test_one_language_gives_the_mean_and_its_usual_standard_error(values: list[float]) -> None:
    score = objective_score(valued(list(values)), "mean", UNIT)
    assert score.mean == pytest.approx(np.mean(values))
    assert score.stderr == pytest.approx(np.std(values, ddof=1) / sqrt(len(values)), rel=1e-6)


def test_languages_count_alike_however_many_items_each_has() -> None:
    items = valued([1.0, 1.0]) + valued([0.0, 1.0, 0.0, 0.0], "bb")
    assert objective_score(items, "mean", UNIT).mean == pytest.approx((1.0 + 0.25) / 2)
    assert objective_score(items, "min", UNIT).mean == 0.25
    assert objective_score(items, {"aa": 3.0, "bb": 1.0}, UNIT).mean == pytest.approx((3 * 1.0 + 0.25) / 4)


def test_the_soft_minimum_lies_between_minimum_and_mean() -> None:
    items = valued([0.8, 0.9, 0.7]) + valued([0.5, 0.4, 0.6], "bb")
    soft = objective_score(items, "softmin", UNIT).mean
    assert objective_score(items, "min", UNIT).mean < soft < objective_score(items, "mean", UNIT).mean


def test_translations_of_one_prompt_count_as_one() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, 40).astype(float)
    together = [
        Valued(suite="s", item=Item(id=f"{i}{lang}", prompt="p", lang=lang, group=str(i)), value=float(v))
        for i, v in enumerate(values)
        for lang in ("aa", "bb", "cc")
    ]
    alone = objective_score(valued(list(values)), "mean", UNIT)
    assert objective_score(together, "mean", UNIT).stderr == pytest.approx(alone.stderr)


def test_the_clustered_standard_error_is_that_of_many_draws() -> None:
    rng = np.random.default_rng(1)

    def draw() -> list[Valued]:
        found = []
        for i in range(60):
            hard = rng.normal(0, 0.2)
            found += [
                Valued(
                    suite="s",
                    item=Item(id=f"{i}{lang}", prompt="p", lang=lang, group=str(i)),
                    value=0.5 + hard + rng.normal(0, 0.1),
                )
                for lang in ("aa", "bb")
            ]
        return found

    scores = [objective_score(draw(), "mean", None) for _ in range(300)]
    assert np.mean([s.stderr for s in scores]) == pytest.approx(np.std([s.mean for s in scores]), rel=0.15)


def test_how_many_items_are_harmful_is_no_noise() -> None:
    items = valued([0.0] * 50, label="harmful") + [
        Valued(suite="s", item=Item(id=f"b{i}", prompt="p", lang="aa", label="benign"), value=1.0) for i in range(50)
    ]
    score = objective_score(items, "mean", UNIT)
    assert score.mean == 0.5
    assert 0 < score.stderr < 0.02


def test_nothing_of_many_is_not_certainty() -> None:
    score = objective_score(valued([0.0] * 200), "mean", UNIT)
    assert score.mean == 0.0
    assert 0.004 < score.stderr < 0.006


def test_unscored_is_not_zero() -> None:
    score = objective_score(valued([1.0, None, 1.0, 0.0, None]), "mean", UNIT)
    assert (score.mean, score.n, score.unscored) == (pytest.approx(2 / 3), 3, 2)


@pytest.mark.parametrize("value", [nan, float("inf")])
def test_a_value_that_is_not_finite_fails_the_trial(value: float) -> None:
    with pytest.raises(TrialError, match="values must be finite, but item aa1"):
        objective_score(valued([1.0, value]), "mean", None)


def test_a_language_without_a_scored_item_fails_the_trial() -> None:
    with pytest.raises(TrialError, match="every language must have a scored item, but bb of s has none"):
        objective_score(valued([1.0]) + valued([None], "bb"), "mean", UNIT)


def test_a_plain_score_is_the_binomial_one() -> None:
    score = plain_score([1.0] * 30 + [0.0] * 70)
    assert (score.mean, score.n) == (pytest.approx(0.3), 100)
    assert score.stderr == pytest.approx(sqrt(0.3 * 0.7 / 99))
