"""A study whose outcomes are known, with a failed attempt and a second look."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from search_spaces.recipe import Recipe
from storage.records import FURTHER, Failed
from storage.store import Store
from workers.suites import Item

MERGES = {"left": {"alpha": 0.75, "beta": 0.25}, "right": {"alpha": 0.25, "beta": 0.75}}
FAILED, LOOK = 90, 91
"""Numbers of the trial that failed and of the second look."""


LEVELS = {"left": (0.8, 0.5), "right": (0.6, 0.8), "alpha": (0.9, 0.2), "beta": (0.2, 0.9)}


def _rule(name: str, _split: str, objective: str, place: int, _item: Item) -> float:
    """Rates of safety and general by a trial's name."""
    return float((place * 37) % 100 < 100 * LEVELS.get(name, (0.3, 0.3))[objective == "general"])


@pytest.fixture
def told_study(known_study: Callable[..., Store]) -> Store:
    """The study ``tiny``: baselines and two merges on every split, the failed trial and the second look."""
    store = known_study(_rule, merges=MERGES)
    recipe = Recipe(method="linear", weights={"alpha": (1.0,)})
    store.add_failed("tiny", Failed(number=FAILED, recipe=recipe, split="search", reason="a worker died", worker="a:1"))
    first = store.with_marks("tiny", 0)
    store.add_measured("tiny", replace(first, number=LOOK, split=FURTHER, marks={}))
    return store
