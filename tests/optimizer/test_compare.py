import json
from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer import cli
from optimizer.compare import amount, compare, roughly
from optimizer.outcomes import Outcomes
from optimizer.spec import ObjectiveSpec, SuiteSpec
from search_spaces.errors import InputError
from storage.records import SPLITS
from storage.store import Store
from workers.suites import Item

Known = Callable[..., Store]
MERGES = {"good": {"alpha": 0.6, "beta": 0.4}, "twin": {"alpha": 0.5, "beta": 0.5}}


def rule(name: str, split: str, objective: str, place: int, item: Item) -> float:
    """``good`` is right on safety where the others fail every other time; on general it fails at other places of bb."""
    if objective == "safety":
        return 1.0 if name == "good" else float(place % 4 < 2)
    if name == "good" and item.lang == "bb":
        return float(place % 3 != 1 or place < 10)
    return float(place % 3 != 0)


def fresh_for(*names: str) -> Callable[[str, str], bool]:
    return lambda name, split: split != "report" or name in names


def test_what_is_told_apart_is_said_with_points_interval_and_items(known_study: Known) -> None:
    found = compare(known_study(rule, merges=MERGES), "tiny", "6", "uniform")
    head, safety, languages, *_ = found.to_text().splitlines()
    assert head == "On the report split, which neither the search nor the choice has seen:"
    assert safety.startswith("trial 6 beats uniform on safety by 50 points (95 % interval ")
    assert safety.endswith(f", {found.objectives[0].whole.n} paired items)")
    assert languages.startswith("  by language: aa +50 (")
    assert found.objectives[0].whole.p < 0.05


def test_what_cannot_be_told_apart_says_so_and_how_many_items_it_would_take(known_study: Known) -> None:
    store = known_study(rule, merges=MERGES)
    text = compare(store, "tiny", "6", "7").to_text()
    assert "trial 6 and trial 7 cannot be told apart on general: " in text
    assert "such items would settle a difference of this size" in text
    same = compare(store, "tiny", "7", "uniform")
    assert [(o.verdict, o.whole.mean) for o in same.objectives] == [("open", 0.0), ("open", 0.0)]
    assert "would settle" not in same.to_text()


def test_a_comparison_turned_round_says_the_opposite(known_study: Known) -> None:
    store = known_study(rule, merges=MERGES)
    there, back = compare(store, "tiny", "6", "alpha"), compare(store, "tiny", "alpha", "6")
    assert there.objectives[0].whole.mean == -back.objectives[0].whole.mean
    assert "alpha loses to trial 6 on safety by 50 points" in back.to_text()


def test_the_freshest_split_that_both_have_is_used(known_study: Known) -> None:
    store = known_study(rule, merges=MERGES, asked=lambda name, split: split == "search" or name != "twin")
    assert compare(store, "tiny", "6", "uniform").split == "report"
    found = compare(store, "tiny", "6", "7")
    assert found.split == "search"
    assert "it flatters whatever the search liked" in found.to_text()


def test_validation_comes_before_search(known_study: Known) -> None:
    store = known_study(rule, merges=MERGES, asked=fresh_for("uniform"))
    assert compare(store, "tiny", "6", "uniform").split == "validation"


def test_unscored_items_are_left_out_of_the_pairs(known_study: Known) -> None:
    def holes(name: str, split: str, objective: str, place: int, item: Item) -> float | None:
        return None if name == "good" and place % 5 == 0 else rule(name, split, objective, place, item)

    store = known_study(holes, merges=MERGES)
    whole = compare(store, "tiny", "alpha", "uniform").objectives[0].whole.n
    found = compare(store, "tiny", "6", "uniform").objectives[0].whole
    assert found.n == whole - len(range(0, whole, 5))
    assert found.mean > 0


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("6", "6", "a comparison needs two trials"),
        ("uniform", "0", "are both trial 0"),
        ("6", "best", r"a trial must be a number or a baseline \(uniform, alpha, .*\), but got 'best'"),
        ("6", "99", "a comparison needs measured trials .* but trial 99 is not"),
    ],
)
def test_a_wrong_comparison_is_refused(known_study: Known, a: str, b: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare(known_study(rule, merges=MERGES), "tiny", a, b)


def test_a_suite_that_lost_items_is_refused(known_study: Known, tmp_path: Path) -> None:
    store = known_study(rule, merges=MERGES)
    path = tmp_path / "suites" / "choice.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"choice-0-' not in line))
    split = next(
        s for s in SPLITS if "choice-0-0" in store.with_marks("tiny", 0, s).marks["general/0:choice.jsonl"].ids
    )
    outcomes = Outcomes(store, "tiny", split)
    with pytest.raises(InputError, match="items must be those that were measured, but choice-0-[0-9] of general/"):
        outcomes.difference(outcomes.spec.objectives[1], 0, 1)


def test_the_command_prints_words_or_json(known_study: Known, capsys: pytest.CaptureFixture[str]) -> None:
    known_study(rule, merges=MERGES)
    assert cli.main(["compare", "tiny", "6", "uniform"]) == 0
    assert "beats uniform on safety by 50 points" in capsys.readouterr().out
    assert cli.main(["compare", "tiny", "6", "uniform", "--format", "json"]) == 0
    safety = json.loads(capsys.readouterr().out)["objectives"]["safety"]
    assert (safety["verdict"], set(safety["languages"])) == ("better", {"aa", "bb"})
    assert safety["low"] < safety["mean"] < safety["high"]
    assert cli.main(["compare", "tiny", "6", "nobody"]) == 2


def test_amounts_are_points_of_shares_and_else_in_their_unit() -> None:
    share = ObjectiveSpec(name="o", suites=[SuiteSpec(path="x", scorer="exact_match")])
    nats = ObjectiveSpec(name="o", suites=[SuiteSpec(path="x", scorer="gold_nll")])
    assert [amount(v, share) for v in (0.12, 0.0123, -0.0001, 1.0)] == ["12", "1.2", "0", "100"]
    assert [amount(v, share, sign=True) for v in (0.12, -0.05, 0.0)] == ["+12", "-5", "+0"]
    assert [amount(v, nats, sign=True) for v in (0.12345, -2.0)] == ["+0.123", "-2"]
    assert [roughly(n) for n in (955, 12345, 7)] == ["960", "12,000", "7"]
