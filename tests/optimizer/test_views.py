import io
import json
from collections.abc import Callable

import pytest
from rich.console import Console

from optimizer import cli
from optimizer.views import views
from search_spaces.errors import InputError
from storage.store import Store
from workers.suites import Item

Known = Callable[..., Store]


def rule(name: str, split: str, objective: str, place: int, item: Item) -> float:
    """The base is right on half; alpha on three quarters; language bb of beta is never right."""
    if name == "beta":
        return float(item.lang == "aa")
    return float(place % 4 != 0) if name == "alpha" else float(place % 4 > 1)


def printed(tables: list[object]) -> str:
    out = io.StringIO()
    for table in tables:
        Console(file=out, width=200).print(table)
    return out.getvalue()


def test_figures_relative_to_the_base_have_a_change_and_a_win_rate(known_study: Known) -> None:
    found = views(known_study(rule), "tiny", "search", range(6), relative=True)
    assert 4 not in found.relative  # the base itself
    alpha = found.relative[1]["safety"]
    assert alpha.change is not None
    assert alpha.change[0] == pytest.approx(50, abs=4)
    assert alpha.change[1] < alpha.change[0] < alpha.change[2]
    assert alpha.win_rate[0] == pytest.approx(0.625, abs=0.02)
    uniform = found.to_json(0)["relative"]["safety"]
    assert uniform["change"]["percent"] == 0.0
    assert uniform["change"]["low"] < 0 < uniform["change"]["high"]
    assert uniform["win_rate"]["share"] == 0.5
    assert "safety" in printed(found.tables())


def test_by_language_the_worst_comes_first_and_is_the_plain_minimum(known_study: Known) -> None:
    found = views(known_study(rule), "tiny", "report", [2], languages=True)
    safety = found.to_json(2)["languages"]["safety"]
    assert [(lang, score["mean"]) for lang, score in safety.items()] == [("bb", 0.0), ("aa", 1.0)]
    assert "0.000 bb" in printed(found.tables())
    assert found.to_json(2).keys() == {"languages"}


def test_what_was_not_asked_for_is_not_there(known_study: Known) -> None:
    found = views(known_study(rule), "tiny", "search", [0, 99])
    assert (found.tables(), found.to_json(0)) == ([], {})


def test_a_base_that_was_not_measured_is_no_measure(known_study: Known) -> None:
    store = known_study(rule, asked=lambda name, split: split == "search" or name != "base")
    with pytest.raises(InputError, match="need it measured on the report split, but tiny has not"):
        views(store, "tiny", "report", [0], relative=True)


def test_the_front_shows_them_on_demand(known_study: Known, capsys: pytest.CaptureFixture[str]) -> None:
    known_study(rule)
    assert cli.main(["front", "tiny", "--relative", "--languages"]) == 0
    shown = capsys.readouterr().out
    assert "Relative to the base (search split, 95 % intervals)" in shown
    assert "safety by language (search split" in shown
    assert cli.main(["front", "tiny", "--all", "--format", "json", "--relative", "--languages"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert set(rows[1]["relative"]["safety"]) == {"change", "win_rate", "n"}
    assert list(rows[2]["languages"]["safety"]) == ["bb", "aa"]
    assert cli.main(["front", "tiny", "--all", "--format", "json"]) == 0
    assert "relative" not in json.loads(capsys.readouterr().out)[1]
