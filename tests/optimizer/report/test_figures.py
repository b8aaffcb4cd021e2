from collections.abc import Callable
from dataclasses import replace

import pytest

from optimizer.report.figures import (
    Bars,
    Curve,
    Findings,
    Heat,
    Role,
    Scatter,
    figures,
    front_of,
    fronts,
    recipe_bars,
    value_text,
    with_close_up,
)
from optimizer.report.findings import findings
from optimizer.report.growth import growth
from optimizer.results import Row
from optimizer.spec import SuiteSpec
from search_spaces.recipe import Recipe
from storage.records import Score
from storage.store import Store
from tests.optimizer.report.conftest import MERGES, objectives, rule

Known = Callable[..., Store]


def test_every_trial_is_in_the_plane_and_the_table_names_what_matters(found: Findings) -> None:
    whole = fronts(found)[0]
    assert {p.trial for p in whole.points} == {r.trial for r in found.results.rows}
    assert {p.label for p in whole.points if p.label} == {"uniform", "alpha", "beta", "gamma", "base", "model_stock"}
    assert [a.label for a in whole.axes] == ["general", "safety"]
    cells = {row[0]: row for row in whole.table.rows}
    assert found.choice is not None
    assert cells[str(found.choice.trial)][1].endswith("the pick")
    assert cells["0"][1].startswith("uniform")


def test_roles_tell_the_front_from_what_it_dominates_and_what_breaks_a_constraint(found: Findings) -> None:
    roles = {p.weights: p.role for p in fronts(found)[0].points}
    assert roles["alpha 0.50 + beta 0.50"] is Role.FRONT
    assert roles["gamma 0.70 + beta 0.30"] is Role.INFEASIBLE  # safety .6
    assert roles["alpha 1.00"] is Role.BASELINE


def test_only_picks_are_drawn_where_fresh_items_put_them(found: Findings) -> None:
    for point in fronts(found)[0].points:
        assert (point.fresh is not None) == (point.picked or point.chosen)
    picked = next(p for p in fronts(found)[0].points if p.chosen)
    assert picked.fresh is not None
    x, y = picked.fresh
    assert x.low < x.mean < x.high
    assert y.mean == found.measured["report"][picked.trial].scores["safety"].mean


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (1, ["front"]),
        (2, ["front"]),
        (3, ["front-safety-general", "front-safety-exact", "front-general-exact"]),
    ],
)
def test_there_is_a_plane_for_every_pair_of_objectives(known_study: Known, count: int, names: list[str]) -> None:
    found = findings(known_study(rule, merges=MERGES, objectives=objectives(count)), "tiny")
    planes = [f for f in fronts(found) if not f.near]
    assert [f.name for f in planes] == names
    assert {f.whole for f in planes} == {count <= 2}
    if count == 1:
        assert [p.posterior[0].mean for p in planes[0].points] == [r.trial for r in found.results.rows]


def test_a_front_that_baselines_far_away_make_small_is_shown_from_near(found: Findings) -> None:
    plane = replace(fronts(found)[0], detail=True)
    spread = {p.trial: p.posterior for p in plane.points}
    one = next(p for p in plane.points if p.on_front)
    x, y = spread[one.trial]
    near = replace(one, trial=98, posterior=(replace(x, mean=x.mean + 0.001), y))
    far = replace(
        one,
        trial=99,
        label="base",
        role=Role.BASELINE,
        on_front=False,
        picked=False,
        chosen=False,
        fresh=None,
        posterior=(replace(x, mean=-9.0, low=-9.0), replace(y, mean=-9.0, low=-9.0)),
    )
    drawn = with_close_up(replace(plane, points=(one, near, far)))
    assert [(f.near, f.detail) for f in drawn] == [(False, False), (True, True)]
    assert drawn[0].frame[0][0] == -9.0
    assert drawn[1].frame[0][0] > 0.0


def test_the_stairs_of_the_front_hold_no_dominated_point(found: Findings) -> None:
    plane = fronts(found)[0]
    corners = front_of(plane.points, plane.axes)
    xs, ys = [p.posterior[0].mean for p in corners], [p.posterior[1].mean for p in corners]
    assert xs == sorted(xs)
    assert ys == sorted(ys, reverse=True)
    assert front_of([], plane.axes) == []


def test_recipe_bars_run_from_the_largest_weight_and_leave_out_zeros(found: Findings) -> None:
    recipe = Recipe(
        method="dare_ties",
        parameters={"density": 0.53},
        groups="layers:2",
        weights={"alpha": (0.1, 0.3), "beta": (0.9, 0.7), "gamma": (0.0, 0.0)},
    )
    rows = tuple(replace(r, recipe=recipe) if r.trial == 0 else r for r in found.results.rows)
    bars = recipe_bars(replace(found, results=replace(found.results, rows=rows)), 0)
    assert bars.title == "Recipe of trial 0 (dare_ties, density 0.53)"
    assert bars.names == ("beta", "alpha")
    assert bars.values == pytest.approx((0.8, 0.2))
    assert bars.spans == ((0.7, 0.9), (0.1, 0.3))
    assert bars.table.rows == (("beta", "0.900", "0.700"), ("alpha", "0.100", "0.300"))


def test_parts_are_better_or_worse_whatever_the_direction(found: Findings) -> None:
    (parts,) = [f for f in figures(found) if f.name == "parts"]
    assert isinstance(parts, Heat)
    assert parts.columns == (f"trial {found.choice and found.choice.trial}", "against base", "against uniform")
    assert parts.rows[0] == "safety"
    assert parts.strong == {0, parts.rows.index("general")}
    base, uniform = parts.cells[0][1:]
    assert base.shade == 1.0
    assert uniform.text == "+39.6"
    general = parts.cells[parts.rows.index("general")][1]
    assert general.text.startswith("−")
    assert general.shade < 0
    assert {"safety, aa", "safety, bb", "general, aa"} <= set(parts.rows)


def test_weights_along_the_front_run_from_general_to_safe(found: Findings) -> None:
    (weights,) = [f for f in figures(found) if f.name == "weights"]
    assert isinstance(weights, Heat)
    safety = [found.results.row(int(t)).posterior["safety"][0] for t in weights.columns]
    assert safety == sorted(safety)
    assert weights.rows == ("alpha", "beta", "gamma")
    sums = [sum(float(row[i].text or 0) for row in weights.cells) for i in range(len(weights.columns))]
    assert sums == pytest.approx([1.0] * len(sums))


def test_hypervolume_grows_from_the_worst_baseline_and_says_where_it_flattened(found: Findings) -> None:
    grown = growth(found.results)
    assert list(grown.values) == sorted(grown.values)
    assert grown.values[0] == 0.0
    assert grown.values[-1] > 0.0
    assert grown.flat_at == 7
    assert grown.text == "99% of it was there after trial 7; the 2 trials since added the rest."
    early = growth(replace(found.results, rows=found.results.rows[:8]))
    assert early.flat_at is None
    assert "mergefront resume tiny --trials 20" in early.text


def test_a_dominated_trial_adds_nothing_to_the_hypervolume(found: Findings) -> None:
    grown = growth(found.results)
    more = growth(replace(found.results, rows=(*found.results.rows, _dull(found, 100))))
    assert more.values == (*grown.values, grown.values[-1])


def _dull(found: Findings, number: int) -> Row:
    """A merge that is worse than every other."""
    row = next(r for r in found.results.merges if r.baseline is None)
    return replace(row, trial=number, on_front=False, feasible=True, posterior=dict.fromkeys(row.posterior, (0.0, 0.1)))


def test_without_a_feasible_merge_there_is_no_hypervolume(known_study: Known) -> None:
    found = findings(known_study(rule, merges=MERGES, objectives=objectives(at_least=0.999)), "tiny")
    assert growth(found.results).trials == ()
    assert not any(isinstance(f, Curve | Bars) for f in figures(found))


def test_a_perplexity_is_read_as_one(found: Findings) -> None:
    safety = found.spec.objectives[0]
    suite = SuiteSpec(path="suites/exact.jsonl", scorer="perplexity")
    unbounded = safety.model_copy(update={"suites": [suite]})
    assert value_text(0.5, safety) == "0.500"
    assert value_text(12.3456, unbounded) == "12.35"
    assert value_text(7.0, None) == "7"


def test_scores_of_a_few_items_keep_their_intervals_within_bounds(found: Findings) -> None:
    plane = fronts(found)[0]
    assert all(0.0 <= s.low <= s.mean <= s.high <= 1.0 for p in plane.points for s in p.posterior)
    assert isinstance(plane, Scatter)
    assert Score(mean=1.0, stderr=0.1, n=5).interval((0.0, 1.0))[1] == 1.0
