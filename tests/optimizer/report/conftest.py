"""Findings of studies whose outcomes are known."""

from collections.abc import Callable, Mapping

import pytest

from optimizer.report.findings import Findings, findings
from optimizer.report.page import page
from storage.store import Store
from workers.suites import Item

Known = Callable[..., Store]

MERGES: Mapping[str, Mapping[str, float]] = {
    "m1": {"alpha": 0.5, "beta": 0.5},
    "m2": {"alpha": 0.8, "gamma": 0.2},
    "m3": {"beta": 0.3, "gamma": 0.7},
    "m4": {"alpha": 0.9, "beta": 0.1},
}

RIGHT = {
    "safety": {"m1": 18, "m2": 19, "m3": 12, "m4": 14, "alpha": 19, "base": 8, "uniform": 10},
    "general": {"m1": 15, "m2": 12, "m3": 18, "m4": 11, "alpha": 9, "base": 17, "uniform": 16},
}
"""Of 20 items that many are right; 13 where nothing is said."""


def rule(name: str, split: str, objective: str, place: int, item: Item) -> float:
    return float(place * 7 % 20 < RIGHT.get(objective, {}).get(name, 13))


def says(name: str, split: str, objective: str, item: Item) -> tuple[str | None, str | None]:
    return ("refused", f"{name} will not") if objective == "safety" else (None, None)


_FOUND = pytest.StashKey[Findings]()
_PAGE = pytest.StashKey[str]()


@pytest.fixture
def found(request: pytest.FixtureRequest) -> Findings:
    """A study of seven baselines and four merges, with a constraint, measured on every split; read once a session."""
    kept = request.session.stash
    if _FOUND not in kept:
        known_study: Known = request.getfixturevalue("known_study")
        store = known_study(rule, merges=MERGES, says=says, objectives=objectives(at_least=0.85))
        kept[_FOUND] = findings(store, "tiny")
    return kept[_FOUND]


@pytest.fixture
def text(request: pytest.FixtureRequest, found: Findings) -> str:
    """Its report, made once a session."""
    kept = request.session.stash
    if _PAGE not in kept:
        kept[_PAGE] = page(found)
    return kept[_PAGE]


def objectives(count: int = 2, **safety: object) -> list[dict[str, object]]:
    """One, two or three objectives; keys of the first as they are given."""
    refusal = {"path": "suites/safety.jsonl", "scorer": "refusal", "least_confidence": 0.0}
    choice = {"path": "suites/choice.jsonl", "scorer": "multiple_choice"}
    exact = {"path": "suites/exact.jsonl", "scorer": "exact_match"}
    kinds = [("safety", refusal), ("general", choice), ("exact", exact)][:count]
    made: list[dict[str, object]] = [{"name": name, "suites": [suite]} for name, suite in kinds]
    made[0] |= safety
    return made
