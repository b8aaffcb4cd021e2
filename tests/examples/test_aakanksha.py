"""The replay of Aakanksha et al.: what it trains, and what it tries by hand."""

from pathlib import Path

import pytest
import yaml

from examples.papers.aakanksha.replay import STUDIES, grids, runs
from examples.papers.kit.sizes import FULL
from examples.papers.kit.world import LANGUAGES
from optimizer.spec import Spec, from_document

FOLDER = Path(__file__).parents[2] / "examples" / "papers" / "aakanksha"


@pytest.fixture(params=STUDIES)
def spec(request: pytest.FixtureRequest) -> Spec:
    """A study as its file has it, whether its checkpoints are trained or not."""
    return from_document(yaml.safe_load((FOLDER / f"{request.param}.yaml").read_text(encoding="utf-8")))


def test_what_is_tried_by_hand_lies_in_the_space_that_is_searched(spec: Spec) -> None:
    tried = grids(spec)
    assert tuple(tried) == spec.space.methods
    assert all(spec.space.contains(recipe) for recipes in tried.values() for recipe in recipes)


def test_what_is_tried_by_hand_is_no_checkpoint_alone_and_nothing_twice(spec: Spec) -> None:
    tried = [recipe for recipes in grids(spec).values() for recipe in recipes]
    assert all(sum(map(any, recipe.weights.values())) > 1 for recipe in tried)
    assert len({recipe.digest for recipe in tried}) == len(tried)


def test_a_mixture_holds_as_much_safety_data_as_its_name_says() -> None:
    shares = {run.name: run.tasks.get("refusal", 0.0) / sum(run.tasks.values()) for run in runs(FULL)}
    assert {name: shares[name] for name in ("general", "safety", "general-dpo", "safety-dpo")} == {
        "general": 0.0,
        "safety": 1.0,
        "general-dpo": 0.0,
        "safety-dpo": 1.0,
    }
    assert all(shares[name] == pytest.approx(0.15) for name in ("mix-15", "mix-15-double", "mix-15-dpo", *LANGUAGES))


def test_the_double_mixture_sees_as_many_examples_as_the_checkpoints_that_are_merged() -> None:
    seen = {run.name: run.examples for run in runs(FULL)}
    assert seen["mix-15-double"] == seen["general"] + seen["safety"] == sum(seen[name] for name in LANGUAGES)
