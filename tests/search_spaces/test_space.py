from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.methods import CATALOGUE, METHODS, PARAMETERS, takers
from search_spaces.recipe import Recipe
from search_spaces.space import Space

NAMES = ("a", "b", "c")
RANGES = {"density": (0.3, 0.7), "epsilon": (0.1, 0.1), "gamma": (0.0, 0.2), "lambda": (0.5, 1.5)}
searchable = st.lists(st.sampled_from(METHODS), min_size=1, unique=True)
kinds = st.sampled_from(["model", "depth:2", "modules"])


@dataclass
class Drawn:
    """Draws at random and keeps what it drew."""

    random: Random
    parameters: dict[str, float | str]

    def number(self, name: str, low: float, high: float) -> float:
        assert low < high, "a fixed parameter must not be proposed"
        assert name not in self.parameters
        value = self.random.uniform(low, high)
        self.parameters[name] = value
        return value

    def choice(self, name: str, options: Sequence[str]) -> str:
        self.parameters[name] = self.random.choice(options)
        return str(self.parameters[name])


@given(methods=searchable, groups=kinds, seed=st.integers(0, 1000))
def test_a_trial_has_the_parameters_of_its_own_method_and_no_others(methods: list[str], groups: str, seed: int) -> None:
    space = Space(methods=tuple(methods), checkpoints=NAMES, groups=groups, parameters=RANGES)
    drawn = Drawn(Random(seed), {})
    recipe = space.propose(drawn)
    method = CATALOGUE[recipe.method]
    assert set(recipe.parameters) == set(method.parameters)
    searched = {name for name in method.parameters if RANGES[name][0] < RANGES[name][1]}
    prefix = "w." if method.drawn == "simplex" else "scale."
    others = {name for name in drawn.parameters if name != "method" and name not in searched}
    assert all(name.startswith(prefix) for name in others)
    assert searched <= set(drawn.parameters)
    assert ("method" in drawn.parameters) == (len(methods) > 1)


@given(methods=searchable, groups=kinds, seed=st.integers(0, 1000))
def test_parameters_give_their_recipe_back(methods: list[str], groups: str, seed: int) -> None:
    space = Space(methods=tuple(methods), checkpoints=NAMES, groups=groups, parameters=RANGES)
    drawn = Drawn(Random(seed), {})
    recipe = space.propose(drawn)
    assert space.contains(recipe)
    assert space.recipe(drawn.parameters) == recipe
    again = space.recipe(space.to_parameters(recipe))
    assert (again.method, again.parameters) == (recipe.method, recipe.parameters)
    for name in NAMES:
        assert again.weights[name] == pytest.approx(recipe.weights[name], abs=1e-12)


@given(st.sampled_from(METHODS))
def test_parameters_that_are_not_named_keep_their_defaults(method: str) -> None:
    recipe = Space(methods=(method,), checkpoints=NAMES).blend({"a": 1.0})
    assert recipe.parameters == {name: PARAMETERS[name].default for name in CATALOGUE[method].parameters}


def test_a_recipe_outside_the_ranges_is_not_in_the_space() -> None:
    space = Space(methods=("ties",), checkpoints=("a", "b"), scale=(0.0, 0.8), parameters={"density": (0.2, 0.5)})
    inside = space.blend({"a": 0.5})
    assert space.contains(inside)
    assert not space.contains(space.blend({"a": 1.0}))
    assert not space.contains(Recipe(method="linear", weights=inside.weights))
    wide = Recipe(method="ties", weights=inside.weights, parameters={"density": 0.9, "lambda": 1.0})
    assert not space.contains(wide)


def test_wise_ft_stays_between_base_and_checkpoint() -> None:
    space = Space(methods=("wise_ft",), checkpoints=("a",), scale=(0.0, 1.2))
    drawn = [space.propose(Drawn(Random(seed), {})).weights["a"][0] for seed in range(50)]
    assert all(0.0 <= w <= 1.0 for w in drawn)


def test_every_parameter_has_a_taker_and_every_method_takes_known_parameters() -> None:
    assert all(takers(name) for name in PARAMETERS)
    assert all(set(method.parameters) <= set(PARAMETERS) for method in CATALOGUE.values())
    assert "model_stock" not in METHODS
