from dataclasses import dataclass
from math import comb, nan, sqrt

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


def five_languages() -> list[Valued]:
    """Levels 0.2, 0.4, 0.6, 0.8 and 1.0, twenty items each."""
    return [
        v
        for place, lang in enumerate(("aa", "bb", "cc", "dd", "ee"))
        for v in valued([float(i < 4 * (place + 1)) for i in range(20)], lang)
    ]


@pytest.mark.parametrize(
    ("across", "level"),
    [
        ("cvar:0.2", 0.2),
        ("cvar:0.4", (0.2 + 0.4) / 2),
        ("cvar:0.3", (0.2 + 0.4 / 2) / 1.5),  # the second language counts by half
        ("cvar", (0.2 + 0.4 / 2) / 1.5),
        ("cvar:0.01", 0.2),
        ("cvar:1.0", 0.6),
        ("min", 0.2),
        ("mean", 0.6),
    ],
)
def test_the_conditional_value_at_risk_is_the_mean_of_the_worst_share(across: str, level: float) -> None:
    assert objective_score(five_languages(), across, UNIT).mean == pytest.approx(level)


@pytest.mark.parametrize(("across", "level"), [("min", 1.0), ("cvar:0.4", 0.9), ("mean", 0.6)])
def test_where_less_is_better_the_worst_language_is_the_highest(across: str, level: float) -> None:
    items = five_languages()
    found = Aggregation([(v.suite, v.item) for v in items], across, UNIT, maximise=False)
    assert found.score([v.value for v in items]).mean == pytest.approx(level)


def test_the_soft_minimum_is_soft_at_the_bad_end() -> None:
    items = five_languages()
    pairs, values = [(v.suite, v.item) for v in items], [v.value for v in items]
    low = Aggregation(pairs, "softmin", UNIT).score(values).mean
    high = Aggregation(pairs, "softmin", UNIT, maximise=False).score(values).mean
    assert 0.2 < low < 0.3
    assert high == pytest.approx(1.2 - low)  # the levels lie evenly about 0.6


@given(st.sampled_from(["mean", "min", "softmin", "cvar", "cvar:0.5"]), st.integers(0, 2**32 - 1))
def test_every_way_of_counting_languages_has_the_standard_error_of_its_slopes(across: str, seed: int) -> None:
    """Moving one item's value by little moves the score by that item's share."""
    rng = np.random.default_rng(seed)
    items = [v for lang in ("aa", "bb", "cc") for v in valued(rng.random(6).tolist(), lang)]
    found = Aggregation([(v.suite, v.item) for v in items], across, None)
    values = [v.value or 0.0 for v in items]
    place, step = int(rng.integers(len(values))), 1e-7
    moved = [v + step * (i == place) for i, v in enumerate(values)]
    slope = (found.score(moved).mean - found.score(values).mean) / step
    assert slope == pytest.approx(found.shares(values)[place], abs=1e-5)


def test_cvar_has_the_error_of_many_draws() -> None:
    rng = np.random.default_rng(4)
    levels = {"aa": 0.3, "bb": 0.6, "cc": 0.9}

    def draw() -> Score:
        items = [v for lang, p in levels.items() for v in valued((rng.random(100) < p).astype(float).tolist(), lang)]
        return objective_score(items, "cvar:0.5", UNIT)

    scores = [draw() for _ in range(300)]
    assert np.mean([s.stderr for s in scores]) == pytest.approx(np.std([s.mean for s in scores]), rel=0.15)


def test_resampling_every_cluster_once_changes_nothing() -> None:
    items = five_languages()
    found = Aggregation([(v.suite, v.item) for v in items], "cvar", UNIT)
    values = [v.value for v in items]
    once = np.ones((3, len(found.clusters)))
    assert found.resampled(values, once) == pytest.approx(found.score(values).mean)
    assert found.resampled(values, 2 * once) == pytest.approx(found.score(values).mean)


def test_a_language_that_a_draw_leaves_out_keeps_its_mean() -> None:
    items = valued([1.0, 1.0]) + valued([0.0, 0.5], "bb")
    found = Aggregation([(v.suite, v.item) for v in items], "mean", UNIT)
    only_aa = np.array([[1.0, 1.0, 0.0, 0.0]])
    assert found.resampled([v.value for v in items], only_aa) == pytest.approx((1.0 + 0.25) / 2)


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


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("n", [50, 200])
def test_the_interval_of_a_share_covers_it_near_the_bounds_too(rate: float, n: int) -> None:
    """Exactly: every count of successes with its probability."""
    covered = 0.0
    for successes in range(n + 1):
        low, high = plain_score([1.0] * successes + [0.0] * (n - successes)).interval(UNIT)
        assert 0.0 <= low <= successes / n <= high <= 1.0
        covered += comb(n, successes) * rate**successes * (1 - rate) ** (n - successes) * (low <= rate <= high)
    assert covered > 0.91


def test_without_bounds_the_interval_is_the_normal_one() -> None:
    low, high = Score(mean=2.0, stderr=0.1, n=9).interval()
    assert (low, high) == (pytest.approx(1.804, abs=1e-3), pytest.approx(2.196, abs=1e-3))
    assert Score(mean=0.5, stderr=0.0, n=9).interval(UNIT) == (0.5, 0.5)


@given(st.floats(0, 1), st.floats(1e-4, 0.3))
def test_an_interval_turns_round_with_its_score(mean: float, stderr: float) -> None:
    low, high = Score(mean=mean, stderr=stderr, n=9).interval(UNIT)
    back = Score(mean=1 - mean, stderr=stderr, n=9).interval(UNIT)
    assert (low, high) == (pytest.approx(1 - back[1], abs=1e-6), pytest.approx(1 - back[0], abs=1e-6))
