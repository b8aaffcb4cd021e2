from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer.report.findings import Findings, default_pick, findings
from optimizer.spec import ObjectiveSpec, Spec, load_spec
from optimizer.study import create_study
from search_spaces.errors import InputError
from storage.errors import StoreError
from storage.records import SPLITS
from storage.store import Store
from tests.optimizer.report.conftest import MERGES, objectives, rule, says

Known = Callable[..., Store]


def searched(name: str, split: str) -> bool:
    return split == "search"


def test_the_pick_is_the_best_of_the_others_where_the_constraint_holds(found: Findings) -> None:
    assert found.choice is not None
    assert found.choice.rule == "max general where safety >= 0.85"
    recipe = found.results.row(found.choice.trial).recipe
    assert recipe.mean_weights() == MERGES["m1"]
    assert found.choice.trial in found.picked
    assert found.freshest(found.choice.trial).split == "report"


def test_it_is_compared_with_base_and_uniform_on_the_freshest_items(found: Findings) -> None:
    assert [(c.names[1], c.split) for c in found.against] == [("uniform", "report"), ("base", "report")]
    assert found.missing == ""
    assert {c.objective.name for c in found.changed} == {"safety", "general"}
    assert {c.better for c in found.changed} == {True, False}
    assert len(found.changed) == 10


def test_changed_items_show_what_both_said_and_no_two_translations_of_one(found: Findings) -> None:
    gained = next(c for c in found.changed if c.objective.name == "safety" and c.better)
    assert (gained.here.verdict, gained.here.output) == ("refused", "m1 will not")
    assert (gained.there.output, gained.there.value, gained.here.value) == ("uniform will not", 0.0, 1.0)
    assert gained.prompt.startswith("w")
    # Items are numbered in pairs of translations, each of which stands ten times.
    parts = [c.item.split("-") for c in found.changed]
    assert len({(kind, int(number) // 2, turn) for kind, number, turn in parts}) == len(parts)


def test_reading_measures_nothing_and_uses_no_report_items(known_study: Known) -> None:
    store = known_study(rule, merges=MERGES, objectives=objectives(at_least=0.85))
    before = {split: store.measured("tiny", split) for split in SPLITS}
    first = findings(store, "tiny")
    again = findings(store, "tiny")
    assert {split: store.measured("tiny", split) for split in SPLITS} == before
    assert store.notes("tiny") == {}
    assert first.validation is not None
    assert first.validation.warnings == again.validation.warnings == ()


def test_without_a_constraint_the_knee_is_put_forward(known_study: Known) -> None:
    found = findings(known_study(rule, merges=MERGES), "tiny")
    assert default_pick(found.spec) == "knee"
    assert found.choice is not None
    assert found.choice.rule == "knee"
    assert found.results.row(found.choice.trial).recipe.mean_weights() == MERGES["m1"]


def test_a_pick_of_ones_own_is_put_forward(known_study: Known) -> None:
    store = known_study(rule, merges=MERGES, objectives=objectives(at_least=0.85))
    found = findings(store, "tiny", pick="max safety")
    assert found.choice is not None
    assert found.results.row(found.choice.trial).recipe.mean_weights() == MERGES["m2"]
    with pytest.raises(InputError, match="a trial must meet 'max general where safety >= 0.999', but none does"):
        findings(store, "tiny", pick="max general where safety >= 0.999")


def test_a_constraint_that_no_merge_meets_leaves_nothing_to_put_forward(known_study: Known) -> None:
    found = findings(known_study(rule, merges=MERGES, objectives=objectives(at_least=0.999)), "tiny")
    assert found.choice is None
    assert "none does (best on its own: safety 0.9" in found.no_choice
    assert (found.against, found.changed) == ((), ())


def test_before_validation_the_search_split_is_all_there_is(known_study: Known) -> None:
    found = findings(known_study(rule, merges=MERGES, asked=searched, objectives=objectives(at_least=0.85)), "tiny")
    assert (found.validation, found.picked) == (None, ())
    assert found.choice is not None
    assert found.freshest(found.choice.trial).split == "search"
    assert {c.split for c in found.against} == {"search"}


def test_suites_that_are_gone_cost_the_comparisons_and_nothing_else(known_study: Known, tmp_path: Path) -> None:
    store = known_study(rule, merges=MERGES, says=says, objectives=objectives(at_least=0.85))
    (tmp_path / "suites" / "safety.jsonl").unlink()
    found = findings(store, "tiny")
    assert "a suite must be a file that opens" in found.missing
    assert (found.validation, found.against, found.changed) == (None, (), ())
    assert found.choice is not None
    assert found.picked


def test_an_empty_study_has_findings(study_file: Callable[..., Path], storage: str) -> None:
    store = Store.open(storage, create=True)
    create_study(store, load_spec(study_file()), trials=8, fingerprints={})
    found = findings(store, "tiny")
    assert (found.results.rows, found.choice, found.span) == ((), None, None)
    assert found.no_choice == "no merge has been measured yet"
    assert found.why.checkpoints == ()
    with pytest.raises(StoreError, match="there is no 'other'"):
        findings(store, "other")
    store.close()


def test_the_default_pick_names_every_constraint(found: Findings) -> None:
    safety, general = found.spec.objectives
    both = replace_spec(found, [safety.model_copy(update={"at_least": 0.5, "at_most": 0.75}), general])
    assert default_pick(both) == "max general where safety >= 0.5 and safety <= 0.75"
    all_bound = replace_spec(found, [safety, general.model_copy(update={"at_least": 0.5})])
    assert default_pick(all_bound) == "knee"


def replace_spec(found: Findings, changed: list[ObjectiveSpec]) -> Spec:
    return found.spec.model_copy(update={"objectives": changed})
