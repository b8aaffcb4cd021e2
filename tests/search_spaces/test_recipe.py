import json

from search_spaces.recipe import Recipe, only


def test_a_recipe_survives_json() -> None:
    recipe = Recipe(method="linear", groups="layers:2", weights={"a": (0.1, 0.9), "b": (0.9, 0.1)})
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_the_digest_names_the_merge_and_not_how_it_is_written() -> None:
    one = Recipe(method="linear", weights={"a": (0.25,), "b": (0.75,), "c": (0.0,)})
    same = Recipe(method="linear", weights={"b": (0.75,), "a": (0.25,)})
    other = Recipe(method="linear", weights={"b": (0.7500001,), "a": (0.25,)})
    assert one.digest == same.digest
    assert one.digest != other.digest


def test_a_corner_is_that_checkpoint_alone() -> None:
    assert Recipe(method="linear", weights={"a": (1.0,), "b": (0.0,)}).digest == only("a").digest


def test_mean_weights_average_the_groups() -> None:
    assert Recipe(method="linear", groups="layers:2", weights={"a": (0.0, 1.0)}).mean_weights() == {"a": 0.5}
