"""Whether the search beat what one would try anyway: outcomes by a rule, so that the truth is known."""

import json
from collections.abc import Callable

import pytest

from optimizer import api
from optimizer.cli import main
from optimizer.standing import Standing, standings_text
from storage.store import Store
from workers.suites import Item

Known = Callable[..., Store]
LEVELS: dict[str, tuple[float, float]] = {
    "uniform": (0.5, 0.5),
    "alpha": (0.8, 0.3),
    "beta": (0.3, 0.7),
    "gamma": (0.2, 0.2),
    "base": (0.1, 0.1),
    "model_stock": (0.1, 0.1),
}


def rule_of(**levels: tuple[float, float]) -> Callable[[str, str, str, int, Item], float]:
    """A trial's name to its rates of safety and general, the same on every split."""
    known = LEVELS | levels

    def rule(name: str, _split: str, objective: str, place: int, _item: Item) -> float:
        return float((place * 37) % 100 < 100 * known[name][objective == "general"])

    return rule


def of(found: tuple[Standing, ...], rival: str) -> Standing:
    return next(s for s in found if rival in s.rival)


def merge(a: float) -> dict[str, float]:
    return {"alpha": a, "beta": 1 - a, "gamma": 0.0}


def test_a_front_that_is_better_everywhere_beats_uniform_and_the_best_checkpoint(known_study: Known) -> None:
    known_study(rule_of(m=(0.9, 0.9)), merges={"m": merge(0.6)})
    found = api.standings("tiny")
    assert of(found, "uniform").verdict == "better"
    best = of(found, "single checkpoint (alpha)")
    assert best.verdict == "better"
    assert best.split == "report"
    assert {c.objective.name for c in best.claims} == {"safety", "general"}
    assert all(c.difference.low > 0 for c in best.claims)


def test_no_better_than_uniform_is_said_plainly(known_study: Known) -> None:
    known_study(rule_of(m=(0.5, 0.5)), merges={"m": merge(0.6)})
    uniform = of(api.standings("tiny"), "uniform")
    assert uniform.verdict == "open"
    assert uniform.to_text().startswith("no better than the uniform average as far as can be told (trial 6: safety ")


def test_worse_than_uniform_is_said_too(known_study: Known) -> None:
    known_study(
        rule_of(m=(0.3, 0.3), uniform=(0.9, 0.9)), merges={"m": merge(0.6)}, search={"trials": 8, "sampler": "random"}
    )
    uniform = of(api.standings("tiny"), "uniform")
    assert uniform.reason == "it is the front"
    assert uniform.verdict == "unknown"


def test_a_gain_that_is_paid_for_is_another_trade_off(known_study: Known) -> None:
    known_study(rule_of(m=(0.9, 0.2)), merges={"m": merge(0.6)})
    uniform = of(api.standings("tiny"), "uniform")
    assert uniform.verdict == "trade"
    assert "outright, another trade-off" in uniform.to_text()


def test_a_rival_that_breaks_a_constraint_is_beaten_by_a_merge_that_keeps_it(known_study: Known) -> None:
    safety = {
        "name": "safety",
        "at_least": 0.8,
        "suites": [{"path": "suites/choice.jsonl", "scorer": "multiple_choice"}],
    }
    general = {"name": "general", "suites": [{"path": "suites/exact.jsonl", "scorer": "exact_match"}]}
    known_study(rule_of(m=(0.95, 0.45)), merges={"m": merge(0.6)}, objectives=[safety, general])
    uniform = of(api.standings("tiny"), "uniform")
    assert uniform.broken == ("safety at_least 0.8",)
    assert uniform.verdict == "better"
    # alpha may be at .8: it is not sure to break it.
    assert of(api.standings("tiny"), "single").broken == ()


def test_of_the_front_the_merge_that_leads_most_surely_is_compared(known_study: Known) -> None:
    known_study(
        rule_of(m=(0.95, 0.3), n=(0.7, 0.8), o=(0.2, 0.9)), merges={"m": merge(0.9), "n": merge(0.6), "o": merge(0.2)}
    )
    assert of(api.standings("tiny"), "uniform").trial == 7


def test_before_validation_the_figures_are_said_to_flatter(known_study: Known) -> None:
    known_study(rule_of(m=(0.9, 0.9)), merges={"m": merge(0.6)}, asked=lambda _name, split: split == "search")
    text = standings_text(api.standings("tiny"))
    assert "which flatter what it liked" in text[0]
    assert text[1].startswith("  beats the uniform average")
    assert text[3] == "  not compared with the greedy soup: it was not measured"


def test_items_that_are_gone_leave_the_front_readable(
    known_study: Known, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    store = known_study(rule_of(m=(0.9, 0.9)), merges={"m": merge(0.6)})
    document = store.study("tiny").spec["objectives"][0]["suites"][0]["path"]
    with open(document, "w") as file:
        file.write("{}")
    assert main(["front", "tiny"]) == 0
    assert "not compared with the uniform average" in capsys.readouterr().out


def test_front_says_it_always_and_keeps_its_json_clean(known_study: Known, capsys: pytest.CaptureFixture[str]) -> None:
    known_study(rule_of(m=(0.9, 0.9)), merges={"m": merge(0.6)})
    assert main(["front", "tiny", "--format", "json"]) == 0
    shown = capsys.readouterr()
    rows = json.loads(shown.out)
    assert all(0.0 <= row["chances"][kind] <= 1.0 for row in rows for kind in ("on_front", "feasible"))
    assert rows[0]["chances"]["on_front"] > 0.9
    assert "beats the uniform average" in shown.err
    assert main(["front", "tiny"]) == 0
    assert "beats the uniform average" in capsys.readouterr().out


def test_an_objective_that_never_varies_is_named(known_study: Known, capsys: pytest.CaptureFixture[str]) -> None:
    def rule(name: str, split: str, objective: str, place: int, item: Item) -> float:
        return (
            1.0 if objective == "general" else rule_of(m=(0.9, 0.9), n=(0.6, 0.6))(name, split, objective, place, item)
        )

    known_study(rule, merges={"m": merge(0.6), "n": merge(0.5)})
    assert api.front("tiny").constant == ["general"]
    assert main(["front", "tiny"]) == 0
    assert "general has told no merge from another" in capsys.readouterr().err


def test_where_nobody_meets_a_constraint_the_front_is_empty_and_the_nearest_are_shown_as_such(
    known_study: Known, capsys: pytest.CaptureFixture[str]
) -> None:
    suites = [{"path": "suites/choice.jsonl", "scorer": "multiple_choice"}]
    safety = {"name": "safety", "at_least": 0.99, "suites": suites}
    general = {"name": "general", "suites": [{"path": "suites/exact.jsonl", "scorer": "exact_match"}]}
    known_study(rule_of(m=(0.9, 0.9)), merges={"m": merge(0.6)}, objectives=[safety, general])
    found = api.front("tiny")
    assert found.front == []
    assert [r.trial for r in found.nearest][:2] == [6, 1]
    assert main(["front", "tiny"]) == 0
    shown = capsys.readouterr()
    assert "these break them least" in shown.out
    assert "No trial of tiny meets the constraints" in shown.err
    assert "the front has no other merge" in shown.out
