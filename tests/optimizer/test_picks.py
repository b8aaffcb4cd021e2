"""Pick expressions, on means that are known."""

import pytest

from optimizer.picks import Pick
from search_spaces.errors import InputError

MEANS = {0: {"safety": 0.5, "general": 0.9}, 1: {"safety": 0.95, "general": 0.7}, 2: {"safety": 0.99, "general": 0.6}}
DIRECTIONS = {"safety": True, "general": True}


@pytest.mark.parametrize(
    ("text", "trial"),
    [
        ("max general", 0),
        ("max safety", 2),
        ("min safety", 0),
        ("max general where safety >= 0.95", 1),
        ("max general where safety >= .96", 2),
        ("max safety where general >= 0.65 and safety <= 0.97", 1),
        ("  max   general  where safety>=9.5e-1 ", 1),
    ],
)
def test_a_pick_chooses_the_best_that_is_allowed(text: str, trial: int) -> None:
    assert Pick.parse(text, DIRECTIONS).choose(MEANS) == trial


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--pick must read like"),
        ("best general", "--pick must read like"),
        ("max speed", r"--pick must name objectives \(safety, general\), but names speed"),
        ("max general where speed >= 1", "but names speed"),
        ("max general where safety > 0.9", "a condition of --pick must read like"),
        ("max general where safety >= high", "a condition of --pick must read like"),
        ("max general where safety >= 1e999", "a condition of --pick must read like"),
    ],
)
def test_a_wrong_pick_says_how_one_reads(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pick.parse(text, DIRECTIONS)


@pytest.mark.parametrize(("more", "trial"), [(True, 2), (False, 1)])
def test_of_equally_good_trials_a_pick_takes_the_one_that_no_other_dominates(more: bool, trial: int) -> None:
    means = MEANS | {2: {"safety": 0.99, "general": 0.7}, 3: {"safety": 0.99, "general": 0.7}}
    directions = {"safety": more, "general": True}
    assert Pick.parse("max general where safety >= 0.9", directions).choose(means) == trial


def test_a_pick_that_nothing_meets_says_how_near_the_best_comes() -> None:
    with pytest.raises(InputError, match=r"none does \(best on its own: safety 0.990\)"):
        Pick.parse("max general where safety >= 0.999", DIRECTIONS).choose(MEANS)


FRONT = {
    0: {"safety": 0.50, "general": 0.90},
    1: {"safety": 0.90, "general": 0.85},
    2: {"safety": 0.95, "general": 0.50},
    3: {"safety": 0.89, "general": 0.84},
}


def test_the_knee_gives_most_of_everything_and_is_dominated_by_nothing() -> None:
    assert Pick.parse("knee", DIRECTIONS).choose(FRONT) == 1


def test_a_knee_is_looked_for_where_the_conditions_hold() -> None:
    assert Pick.parse("knee where safety >= 0.92", DIRECTIONS).choose(FRONT) == 2
    with pytest.raises(InputError, match="none does"):
        Pick.parse("knee where safety >= 0.99", DIRECTIONS).choose(FRONT)


def test_a_knee_is_of_the_objectives_that_the_search_optimised() -> None:
    watched = {n: values | ({"code": 0.1} if n == 1 else {}) for n, values in FRONT.items()}
    directions = DIRECTIONS | {"code": True}
    assert Pick.parse("knee", directions, ["safety", "general"]).choose(watched) == 1
    less = {n: {"safety": v["safety"], "general": -v["general"]} for n, v in FRONT.items()}
    assert Pick.parse("knee", {"safety": True, "general": False}).choose(less) == 1


def test_a_knee_of_nothing_says_so() -> None:
    with pytest.raises(InputError, match="a trial must meet 'knee', but none does"):
        Pick.parse("knee", DIRECTIONS).choose({})
