import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer.results import Results, Row, choose, to_csv
from optimizer.spec import load_spec
from search_spaces.recipe import Recipe
from storage.records import Score


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


@pytest.fixture
def found(study_file: Callable[..., Path]) -> Results:
    """Two merges of a study that asks for safety of 0.9, only the first of which gives it."""
    constrained = study_file()
    constrained.write_text(constrained.read_text().replace("- name: safety", "- at_least: 0.9\n  name: safety"))
    rows = [_row(0, safety=0.95, general=0.6), _row(1, safety=0.4, general=0.8)]
    return Results(spec=load_spec(constrained), rows=tuple(rows), fallback=None)


def _row(trial: int, **means: float) -> Row:
    return Row(
        trial=trial,
        recipe=Recipe(method="linear", weights={"alpha": (1.0,)}),
        objectives={name: Score(mean=mean, stderr=0.01, n=100) for name, mean in means.items()},
        posterior={name: (mean, 0.01) for name, mean in means.items()},
        feasible=means["safety"] >= 0.9,
        baseline=None,
        on_front=means["safety"] >= 0.9,
    )


def test_a_pick_keeps_the_constraints_of_the_study(found: Results) -> None:
    assert choose(found, {}, "max general") == 0


def test_a_bound_of_the_pick_takes_the_place_of_the_constraint(found: Results) -> None:
    assert choose(found, {}, "max general where safety >= 0.3") == 1


def test_where_no_merge_keeps_the_constraints_the_best_of_all_is_picked(found: Results) -> None:
    broken = Results(spec=found.spec, rows=(found.rows[1], _row(2, safety=0.8, general=0.1)), fallback=None)
    assert choose(broken, {}, "max general") == 1
    assert choose(broken, {}, "max safety") == 2
