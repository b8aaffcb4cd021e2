"""The merger: recipes to live weights, in place and to the last bit."""

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from search_spaces.groups import Groups
from search_spaces.methods import CATALOGUE, METHODS
from search_spaces.recipe import Recipe, only
from workers.errors import MergeError
from workers.merger import Merger, is_finite, merge_digest

laws = settings(max_examples=15, deadline=None)
NAMES = ("a", "b", "c")


def checkpoint(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Two layers, a head, a norm; an integer buffer, an empty tensor and a scalar beside them."""
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (9, 4),
        "model.layers.0.self_attn.q_proj.weight": (4, 4),
        "model.layers.1.mlp.up_proj.weight": (8, 4),
        "model.norm.weight": (4,),
        "model.scale": (),
        "model.empty": (0, 4),
    }
    tensors = {name: torch.randn(shape, generator=g).to(dtype) for name, shape in shapes.items()}
    return tensors | {"model.positions": torch.arange(5) + seed}


def family(dtype: torch.dtype = torch.float32) -> dict[str, dict[str, Tensor]]:
    return {name: checkpoint(seed, dtype) for seed, name in enumerate(("base", *NAMES))}


def recipe(method: str, groups: str = "model", weights: tuple[float, ...] = (0.5, 0.3, 0.2)) -> Recipe:
    count = min(CATALOGUE[method].most or 3, 3)
    wanted = {"density": 0.6, "epsilon": 0.2, "gamma": 0.1, "lambda": 0.9}
    return Recipe(
        method=method,
        groups=groups,
        weights={n: (w,) * Groups.parse(groups).count for n, w in zip(NAMES[:count], weights, strict=False)},
        parameters={name: wanted[name] for name in CATALOGUE[method].parameters},
    )


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return merge_digest(left) == merge_digest(right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", CATALOGUE)
def test_live_weights_and_new_ones_are_the_same_and_nothing_is_left_of_the_last_trial(
    method: str, dtype: torch.dtype
) -> None:
    targets = {name: t.clone() for name, t in checkpoint(9, dtype).items()}
    places = {name: t.data_ptr() for name, t in targets.items()}
    merger = Merger(family(), "base", seed=3)
    merger.merge_into(only("b"), targets)
    digest = merger.merge_into(recipe(method), targets)
    assert {name: t.data_ptr() for name, t in targets.items()} == places
    fresh = dict(Merger(family(), "base", seed=3).merged(recipe(method), targets))
    assert merge_digest(fresh) == digest == merge_digest(targets)


def test_two_buffers_that_take_turns_hold_the_same_tensors() -> None:
    merger, like = Merger(family(), "base"), checkpoint(0)
    expected = dict(merger.merged(recipe("ties"), like))
    places: tuple[set[int], set[int]] = set(), set()
    for i, (name, tensor) in enumerate(merger.merged(recipe("ties"), like, reuse=True)):
        assert same({name: tensor}, {name: expected[name]})
        if tensor.numel():
            places[i % 2].add(tensor.data_ptr())
    assert len(places[0]) == len(places[1]) == 1
    assert places[0] != places[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("groups", ["depth:3", "layers:2", "modules"])
def test_equal_groups_are_no_groups(method: str, groups: str) -> None:
    merger, like = Merger(family(), "base"), checkpoint(0)
    assert same(dict(merger.merged(recipe(method, groups), like)), dict(merger.merged(recipe(method), like)))


@pytest.mark.parametrize("method", METHODS)
@laws
@given(order=st.permutations(NAMES))
def test_the_order_of_a_recipe_does_not_count_to_the_last_bit(method: str, order: list[str]) -> None:
    merger, like, made = Merger(family(), "base"), checkpoint(0), recipe(method)
    shuffled = {name: made.weights[name] for name in order if name in made.weights}
    other = Recipe(method=method, weights=shuffled, parameters=made.parameters)
    assert made.digest == other.digest
    assert same(dict(merger.merged(made, like)), dict(merger.merged(other, like)))


@pytest.mark.parametrize("method", [m for m in METHODS if CATALOGUE[m].drawn == "scale" or m == "linear"])
def test_a_weight_of_zero_is_as_good_as_no_checkpoint(method: str) -> None:
    merger, like, with_zero = Merger(family(), "base"), checkpoint(0), recipe(method, weights=(0.7, 0.0, 0.3))
    left_out = {name: w for name, w in with_zero.weights.items() if any(w)}
    without = Recipe(method=method, weights=left_out, parameters=with_zero.parameters)
    assert with_zero.digest == without.digest
    assert same(dict(merger.merged(with_zero, like)), dict(merger.merged(without, like)))


def test_what_is_no_float_comes_from_the_base() -> None:
    merged = dict(Merger(family(), "base").merged(recipe("linear"), checkpoint(7)))
    assert torch.equal(merged["model.positions"], checkpoint(0)["model.positions"])


def test_sources_of_mixed_types_merge_in_float32() -> None:
    mixed = family()
    mixed["b"] = checkpoint(2, torch.bfloat16)
    mixed["c"] = checkpoint(3, torch.float16)
    merged = dict(Merger(mixed, "base").merged(recipe("linear"), checkpoint(0)))
    name = "model.layers.1.mlp.up_proj.weight"
    expected = sum(w * mixed[n][name].double() for n, w in zip(NAMES, (0.5, 0.3, 0.2), strict=True))
    torch.testing.assert_close(merged[name].double(), expected, rtol=1e-6, atol=1e-6)


def test_targets_that_are_no_contiguous_memory_are_filled() -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    target = torch.zeros(4, 8).T
    merger = Merger(family(), "base")
    merger.write(recipe("ties"), {name: target})
    assert torch.equal(target, dict(merger.merged(recipe("ties"), {name: checkpoint(0)[name]}))[name])


def test_depth_profiles_give_the_head_the_last_weight() -> None:
    profile = Recipe(method="linear", groups="depth:2", weights={"a": (1.0, 0.0), "b": (0.0, 1.0)})
    merged = dict(Merger(family(), "base").merged(profile, checkpoint(0)))
    sources = family()
    for name, of in (("model.embed_tokens.weight", "a"), ("model.norm.weight", "b")):
        assert torch.equal(merged[name], sources[of][name])


def test_errors_name_the_tensor_and_the_checkpoint() -> None:
    sources = family()
    del sources["b"]["model.norm.weight"]
    with pytest.raises(MergeError, match=r"^model\.norm\.weight: every checkpoint must have the tensor, but b has not"):
        dict(Merger(sources, "base").merged(recipe("linear"), checkpoint(0)))
    sources = family()
    sources["c"]["model.norm.weight"] = torch.zeros(5)
    with pytest.raises(MergeError, match=r"^model\.norm\.weight: shapes must be the base's, but it is \(5,\) in c"):
        dict(Merger(sources, "base").merged(recipe("linear"), checkpoint(0)))
    with pytest.raises(MergeError, match="must name opened checkpoints"):
        dict(Merger(family(), "base").merged(only("nobody"), checkpoint(0)))
    with pytest.raises(MergeError, match="the method must be one of"):
        dict(Merger(family(), "base").merged(Recipe(method="magic", weights={"a": (1.0,)}), checkpoint(0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@laws
@given(place=st.integers(0, 3999), bad=st.sampled_from([float("nan"), float("inf"), -float("inf")]))
def test_one_element_that_is_not_finite_is_found(dtype: torch.dtype, place: int, bad: float) -> None:
    tensor = torch.randn(40, 100).to(dtype)
    assert is_finite(tensor)
    tensor.view(-1)[place] = bad
    assert not is_finite(tensor)
    tensor.view(-1)[place - 1] = -bad
    assert not is_finite(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_numbers_whose_sum_overflows_are_finite(dtype: torch.dtype) -> None:
    assert is_finite(torch.full((4, 300), torch.finfo(dtype).max, dtype=dtype))
    assert is_finite(torch.empty(0, 3, dtype=dtype))
    assert is_finite(torch.arange(5))
