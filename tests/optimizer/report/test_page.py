import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from optimizer import cli
from optimizer.report.findings import Findings, findings
from optimizer.report.page import page
from optimizer.results import Row
from optimizer.spec import load_spec
from optimizer.study import create_study
from search_spaces.recipe import Recipe
from storage.records import Failed, Score
from storage.store import Store
from tests.optimizer.report.conftest import MERGES, objectives, rule
from workers.suites import Item

Known = Callable[..., Store]

EVIL = "<script>alert('x')</script></script><img src=x onerror=alert(1)> \"'&\u2028\u2029]]>--><!--"


class Parsed(HTMLParser):
    """What a browser would make of a page, roughly: elements with their attributes, and texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._inside = ""
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self._inside == "script" else self.texts).append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def section(text: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">(.*?)</section>', text, re.DOTALL)
    assert found is not None
    return Parsed(found[1]).text


def test_it_answers_in_order_what_to_ship_and_what_that_costs(found: Findings, text: str) -> None:
    parsed = Parsed(text)
    ids = [e["id"] for e in parsed.all("section")]
    assert ids == ["front", "pick", "why", "trust", "provenance"]
    assert found.choice is not None
    trial = found.choice.trial
    sentence = f"Ship trial {trial}: on items that neither the search nor the choice has seen, it scores safety 0.9"
    assert sentence in parsed.text
    assert "against the uniform average it is better by 39.6 points on safety (" in parsed.text
    assert f"mergefront export tiny --trial {trial} --out tiny-{trial}" in section(text, "pick")
    assert f"Recipe of trial {trial} (linear)" in section(text, "pick")
    assert "Weights along the front" in section(text, "why")
    assert "Hypervolume over trials" in section(text, "trust")
    assert "refused" in section(text, "trust")
    assert "m1 will not" in section(text, "trust")
    assert found.record.spec_digest in section(text, "provenance")
    assert found.freshest(trial).digest in section(text, "provenance")


def test_it_loads_nothing_and_runs_one_script_whose_digest_it_names(text: str) -> None:
    parsed = Parsed(text)
    assert not re.findall(r'(?:src|href)="(?!#)', text)
    assert "@import" not in text
    assert "url(" not in text.replace("url(#", "")
    policy = parsed.all("meta")[1]["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert len(parsed.all("script")) == 2


def test_a_figure_has_a_table_for_whoever_cannot_see_it(text: str) -> None:
    parsed = Parsed(text)
    drawn = len(parsed.all("figure"))
    assert drawn >= 5
    assert len(parsed.all("svg")) == 2 * drawn  # for wide and for narrow windows
    assert len(parsed.all("table")) >= drawn
    assert {e.get("scope") for e in parsed.all("th")} == {"col", "row"}
    assert all(e.get("aria-label") for e in parsed.all("svg"))


def test_the_same_findings_give_the_same_report(found: Findings, text: str) -> None:
    assert page(found) == text


def test_what_strangers_wrote_is_text_everywhere(known_study: Known, tmp_path: Path) -> None:
    def evil(name: str, split: str, objective: str, item: Item) -> tuple[str, str]:
        return EVIL, f"{EVIL} said {name}"

    store = known_study(rule, merges=MERGES, says=evil, objectives=objectives(at_least=0.85))
    recipe = Recipe(method="linear", weights={"alpha": (1.0,)})
    store.add_failed("tiny", Failed(number=99, recipe=recipe, split="search", reason=EVIL))
    found = findings(store, "tiny")
    rows = tuple(replace(r, stopped=EVIL, baseline=r.baseline and EVIL) for r in found.results.rows)
    changed = tuple(replace(c, prompt=EVIL, item=EVIL, lang=EVIL, label=EVIL) for c in found.changed)
    found = replace(
        found,
        results=replace(found.results, rows=rows, fallback=EVIL),
        changed=changed,
        missing=EVIL,
        repeat_noise=f"repeat noise: {EVIL}",
        record=replace(found.record, versions={EVIL: EVIL}, fingerprints={EVIL: EVIL}),
    )
    parsed = Parsed(page(found))
    assert len(parsed.all("script")) == 2
    assert not parsed.all("img")
    assert not [k for _, attrs in parsed.elements for k in attrs if k.startswith("on")]
    plain = " ".join(EVIL.split())
    assert parsed.text.count(plain) > 30
    data = json.loads(parsed.scripts[0])
    assert data["rows"]["0"][3] == EVIL
    assert "<" not in parsed.scripts[0]
    assert "\u2028" not in parsed.scripts[0]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_objectives_makes_a_report(known_study: Known, count: int) -> None:
    found = findings(known_study(rule, merges=MERGES, objectives=objectives(count)), "tiny")
    parsed = Parsed(page(found))
    assert "Ship trial" in parsed.text
    names = {e["data-figure"] for e in parsed.all("figure")}
    assert sum(str(n).startswith("front") and not str(n).endswith("near") for n in names) == {1: 1, 2: 1, 3: 3}[count]


def test_before_validation_it_says_whose_figures_these_are(known_study: Known) -> None:
    store = known_study(
        rule, merges=MERGES, asked=lambda _name, split: split == "search", objectives=objectives(at_least=0.85)
    )
    text = Parsed(page(findings(store, "tiny"))).text
    assert "on the very items that the search chose by, which flatters it" in text
    assert "`mergefront validate tiny` measures the finalists on fresh items" in text
    assert "Optimism gap" not in text


def test_a_constraint_that_may_not_hold_is_said_aloud(known_study: Known) -> None:
    found = findings(known_study(rule, merges=MERGES, objectives=objectives(at_least=0.89)), "tiny")
    assert "The constraint on safety may not hold: its interval reaches 0.8" in Parsed(page(found)).text


def test_an_empty_study_has_a_page_that_says_so(study_file: Callable[..., Path], storage: str) -> None:
    store = Store.open(storage, create=True)
    create_study(store, load_spec(study_file()), trials=8, fingerprints={})
    text = Parsed(page(findings(store, "tiny"))).text
    assert "No merge can be put forward: no merge has been measured yet." in text
    assert "Nothing has been measured yet: 0 trials have failed, 0 are running, 8 are planned." in text
    store.close()


def test_a_study_of_failures_lists_the_reasons(study_file: Callable[..., Path], storage: str) -> None:
    store = Store.open(storage, create=True)
    create_study(store, load_spec(study_file()), trials=8, fingerprints={})
    recipe = Recipe(method="linear", weights={"alpha": (1.0,)})
    for number in range(3):
        store.add_failed("tiny", Failed(number=number, recipe=recipe, split="search", reason="it burnt"))
    text = Parsed(page(findings(store, "tiny"))).text
    assert "Failed 3 times it burnt" in text
    store.close()


def test_a_study_of_one_trial_has_a_report(found: Findings) -> None:
    uniform = next(r for r in found.results.rows if r.baseline == "uniform")
    results = replace(found.results, rows=(uniform,))
    alone = replace(found, results=results, choice=None, no_choice="none is feasible", changed=(), against=())
    assert "No merge can be put forward: none is feasible." in Parsed(page(alone)).text


def test_two_thousand_trials_stay_below_five_megabytes(found: Findings) -> None:
    model = next(r for r in found.results.merges if r.baseline is None)
    rows = tuple(many(model, number) for number in range(100, 2100))
    large = replace(found, results=replace(found.results, rows=(*found.results.rows, *rows)))
    assert len(page(large).encode()) < 5_000_000


def many(row: Row, number: int) -> Row:
    """One of many trials, each with values of its own, one in fifty on the front."""
    place = (number * 37 % 1000) / 1000
    scores = {
        name: Score(mean=mean, stderr=0.01, n=400)
        for name, mean in zip(row.objectives, (0.5 + place / 2, 0.9 - place * place / 3), strict=True)
    }
    return replace(
        row,
        trial=number,
        on_front=number % 50 == 0,
        objectives=scores,
        posterior={name: (s.mean, s.stderr) for name, s in scores.items()},
    )


def test_the_command_writes_it_whole_with_its_figures(
    known_study: Known, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known_study(rule, merges=MERGES, objectives=objectives(at_least=0.85))
    out, pictures = tmp_path / "deep" / "report.html", tmp_path / "pictures"
    assert cli.main(["report", "tiny", "--out", str(out), "--figures", str(pictures), "--pick", "max safety"]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert written[0] == out
    assert "max safety" in section(out.read_text(), "pick")
    assert {p.name for p in pictures.iterdir()} == {p.name for p in written[1:]}
    assert {"front.png", "front.svg", "recipe.png", "weights.svg"} <= {p.name for p in written}


def test_what_is_wrong_is_said_with_the_rule(
    known_study: Known, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known_study(rule, merges=MERGES)
    for arguments, message in [
        (["other", "--out", "r.html"], "the study must be in the database, but there is no 'other'"),
        (["tiny", "--out", str(tmp_path)], "--out must be a file, but"),
        (["tiny", "--out", "r.html", "--pick", "best"], "--pick must read like"),
    ]:
        assert cli.main(["report", *arguments]) == 2
        assert message in capsys.readouterr().err
