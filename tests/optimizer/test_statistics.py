from dataclasses import replace
from itertools import pairwise
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.statistics import (
    Difference,
    Pairing,
    gap,
    holm,
    mcnemar,
    resamples,
    sign_flips,
)
from storage.records import Score
from workers.errors import TrialError
from workers.suites import Item

UNIT = (0.0, 1.0)
LANGUAGES = ("aa", "bb", "cc")

binary = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=12, max_size=60)
ps = st.lists(st.floats(0, 1), min_size=1, max_size=20)


def singles(count: int, lang: str = "aa", label: str | None = None) -> list[tuple[str, Item]]:
    return [("s", Item(id=f"{lang}{i}", prompt="p", lang=lang, label=label)) for i in range(count)]


def translated(groups: int) -> list[tuple[str, Item]]:
    return [
        ("s", Item(id=f"{g}/{lang}", prompt="p", lang=lang, group=f"g{g}")) for g in range(groups) for lang in LANGUAGES
    ]


def floats(values: object) -> list[float | None]:
    return [float(v) for v in np.asarray(values).ravel()]


@given(binary)
@settings(max_examples=30, deadline=None)
def test_a_difference_turns_round_with_its_candidates(pairs: list[tuple[int, int]]) -> None:
    pairing = Pairing(singles(len(pairs)), "mean", UNIT, draws=200)
    a, b = floats([x for x, _ in pairs]), floats([y for _, y in pairs])
    there, back = pairing.difference(a, b), pairing.difference(b, a)
    assert there.mean == pytest.approx(-back.mean, abs=1e-12)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-12)
    assert there.p == pytest.approx(back.p)
    assert (there.wins, there.losses) == (back.losses, back.wins)
    assert there.low <= there.mean <= there.high


def test_merges_that_agree_on_every_item_are_not_known_to_be_equal() -> None:
    same = Pairing(singles(100), "mean", UNIT).difference([1.0] * 100, [1.0] * 100)
    assert (same.mean, same.p, same.told_apart, same.items_needed) == (0.0, 1.0, False, None)
    assert same.low == -same.high
    assert 0.01 < same.high < 0.03


def test_a_difference_of_last_bits_is_none() -> None:
    apart = Difference(mean=4e-17, stderr=0.01, low=-0.02, high=0.02, p=1.0, n=408, clusters=136, wins=5, losses=5)
    assert apart.items_needed is None
    assert replace(apart, mean=0.02).items_needed is not None


def test_the_paired_error_is_that_of_the_differences() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(size=400)
    a, b = hard + rng.normal(0, 0.1, 400) + 0.05, hard + rng.normal(0, 0.1, 400)
    found = Pairing(singles(400), "mean", None).difference(floats(a), floats(b))
    assert found.stderr == pytest.approx(np.std(a - b, ddof=1) / 20, rel=0.05)
    assert found.told_apart
    assert found.p < 0.01


def test_translations_of_one_prompt_are_drawn_together() -> None:
    rng = np.random.default_rng(1)
    wins = rng.integers(0, 2, (150, 1)).repeat(3, axis=1)
    clustered = Pairing(translated(150), "mean", UNIT).difference(floats(wins), [0.5] * 450)
    alone = Pairing(singles(150), "mean", UNIT).difference(floats(wins[:, 0]), [0.5] * 150)
    assert clustered.stderr == pytest.approx(alone.stderr, rel=0.05)
    assert (clustered.n, clustered.clusters) == (450, 150)


def test_the_interval_of_a_difference_covers_it_in_95_of_100() -> None:
    rng = np.random.default_rng(2)
    pairing = Pairing(translated(60), "mean", UNIT, draws=400)
    covered = []
    for _ in range(400):
        hard = rng.normal(size=(60, 1))
        a = rng.normal(size=(60, 3)) + hard < 1.2
        b = rng.normal(size=(60, 3)) + hard < 0.9
        found = pairing.difference(floats(a), floats(b))
        truth = 0.8019 - 0.7377  # normal distribution at 1.2 / sqrt 2 and at .9 / sqrt 2
        covered.append(found.low <= truth <= found.high)
    assert 0.92 <= np.mean(covered) <= 0.99


def test_only_items_that_both_were_scored_on_are_compared() -> None:
    found = Pairing(singles(6), "mean", None).difference([1, 1, None, 0, 0, 1], [0, None, 1, 0, 0, 1])
    assert (found.n, found.mean) == (4, 0.25)
    with pytest.raises(TrialError, match="every language must have a scored item"):
        Pairing(singles(2), "mean", None).difference([1.0, None], [None, 1.0])


def test_the_worst_language_is_compared_with_the_worst() -> None:
    items = singles(40, "aa") + singles(40, "bb")
    a = [1.0] * 40 + [0.0, 1.0] * 20
    b = [0.0, 1.0] * 20 + [1.0] * 40
    assert Pairing(items, "min", UNIT).difference(a, b).mean == 0.0
    assert Pairing(items, "min", UNIT).difference(a, [1.0] * 80).mean == -0.5
    assert Pairing(items, "min", UNIT).difference(a, [1.0] * 80).p < 0.01


def test_relative_figures_are_those_of_the_ratio() -> None:
    a, b = floats([1] * 60 + [0] * 40), floats([1] * 50 + [0] * 50)
    found = Pairing(singles(100), "mean", UNIT).relative(a, b)
    assert found.change is not None
    change, low, high = found.change
    assert change == pytest.approx(20.0)
    assert 5 < low < change < high < 40
    assert found.win_rate[0] == pytest.approx(0.55)
    assert found.win_rate[1] > 0.5


def test_there_is_no_ratio_to_what_may_be_nothing() -> None:
    found = Pairing(singles(50), "mean", UNIT).relative([1.0] * 50, [0.0] * 50)
    assert found.change is None
    assert found.win_rate[0] == 1.0


def test_resamples_keep_how_many_of_each_kind_there_are_but_one() -> None:
    kinds = [("s", "x")] * 30 + [("s", "y")] * 10 + [("t", "z")] * 2
    times = resamples(kinds, draws=50, seed=1)
    assert (times[:, :30].sum(axis=1) == 29).all()
    assert (times[:, 30:40].sum(axis=1) == 9).all()
    assert (times == resamples(kinds, draws=50, seed=1)).all()
    assert (times != resamples(kinds, draws=50, seed=2)).any()
    assert (resamples([("s", "x")], draws=3) == 1).all()


@given(st.integers(0, 30), st.integers(0, 30))
def test_on_single_items_the_test_is_mcnemars(wins: int, losses: int) -> None:
    n, k = wins + losses, min(wins, losses)
    expected = min(2 * sum(comb(n, i) for i in range(k + 1)) / 2**n, 1.0)
    assert mcnemar([1] * wins + [-1] * losses + [0] * 5) == pytest.approx(expected)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=10))
def test_with_clusters_the_test_counts_every_way_the_coins_can_fall(net: list[int]) -> None:
    sums = [0]
    for size in net:
        sums = [s + sign * size for s in sums for sign in (1, -1)]
    expected = np.mean([abs(s) >= abs(sum(net)) for s in sums])
    assert mcnemar(net) == pytest.approx(expected)


def test_random_flips_find_what_the_exact_test_does() -> None:
    net = [1] * 20 + [-1] * 8 + [2] * 3
    assert sign_flips(np.array(net, dtype=float)) == pytest.approx(mcnemar(net), abs=0.01)
    assert sign_flips(np.zeros(4)) == 1.0


@given(ps)
def test_holm_keeps_the_order_and_never_makes_a_claim_surer(values: list[float]) -> None:
    adjusted = holm(values)
    assert all(p <= q <= 1.0 for p, q in zip(values, adjusted, strict=True))
    ordered = [q for _, q in sorted(zip(values, adjusted, strict=True))]
    assert all(a <= b for a, b in pairwise(ordered))
    assert adjusted[int(np.argmin(values))] == pytest.approx(min(min(values) * len(values), 1.0))


def test_holm_is_the_step_down_of_its_paper() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_gap_is_positive_where_the_search_flattered() -> None:
    lucky, fresh = Score(mean=0.9, stderr=0.03, n=100), Score(mean=0.8, stderr=0.04, n=200)
    value, low, high = gap(lucky, fresh)
    assert value == pytest.approx(0.1)
    assert high - low == pytest.approx(2 * 1.96 * sqrt(0.03**2 + 0.04**2), rel=1e-3)
    assert gap(lucky, fresh, maximise=False)[0] == pytest.approx(-0.1)


def test_as_many_items_as_are_asked_for_show_the_difference_four_times_in_five() -> None:
    rng = np.random.default_rng(3)

    def draw(n: int) -> tuple[list[float | None], list[float | None]]:
        hard = rng.normal(size=n)
        return floats(hard + rng.normal(0, 0.5, n) + 0.05), floats(hard + rng.normal(0, 0.5, n))

    # From a first look with the true effect: sd of the differences is sqrt(.5).
    needed = (2.8016 * sqrt(0.5) / 0.05) ** 2
    first = Pairing(singles(4000), "mean", None, draws=500).difference(*draw(4000))
    assert first.items_needed is not None
    assert first.items_needed * (first.mean / 0.05) ** 2 == pytest.approx(needed, rel=0.1)
    pairing = Pairing(singles(round(needed)), "mean", None, draws=200)
    assert 0.7 < np.mean([pairing.difference(*draw(round(needed))).told_apart for _ in range(100)]) < 0.9
