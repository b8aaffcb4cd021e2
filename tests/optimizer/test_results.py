import csv
import io

import pytest

from optimizer.results import Pick, Row, to_csv
from search_spaces.errors import InputError
from search_spaces.recipe import Recipe
from storage.records import Score

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


def test_csv_has_a_column_for_every_number() -> None:
    row = Row(
        trial=4,
        recipe=Recipe(method="linear", weights={"a": (0.25,), "b": (0.75,)}),
        objectives={"safety": Score(mean=0.5, stderr=0.1, n=9, unscored=1)},
        posterior={"safety": (0.55, 0.05)},
        feasible=True,
        baseline=None,
        on_front=True,
    )
    (read,) = csv.DictReader(io.StringIO(to_csv([row])))
    assert read["trial"] == "4"
    assert (float(read["weight.a"]), float(read["weight.b"])) == (0.25, 0.75)
    assert (float(read["safety.mean"]), float(read["safety.posterior_mean"]), read["safety.unscored"]) == (
        0.5,
        0.55,
        "1",
    )
    assert list(csv.DictReader(io.StringIO(to_csv([])))) == []
