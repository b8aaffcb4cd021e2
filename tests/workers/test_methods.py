"""Laws of the merge methods, each for every method that has it."""

from collections.abc import Mapping
from itertools import pairwise
from math import inf

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from search_spaces.methods import CATALOGUE, METHODS, PARAMETERS, SIMPLEX_METHODS
from workers.errors import MergeError
from workers.kernels import Compiled, Loop
from workers.methods import METHODS as FUNCTIONS
from workers.methods import Inputs, bound, merge, plan

SCALED = [name for name in METHODS if CATALOGUE[name].drawn == "scale"]
CORNERED = [*SIMPLEX_METHODS, "wise_ft"]
NAMES = "abcdefgh"
laws = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])

seeds = st.integers(0, 2**20)
dtypes = st.sampled_from([torch.bfloat16, torch.float16, torch.float32])
shapes = st.sampled_from([(1,), (7,), (3, 5), (16, 33), (2, 3, 4)])
weights = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=5)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def family(
    seed: int, count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, far: float = 0.1
) -> Inputs:
    """A base and ``count`` checkpoints near it."""
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=g)
    tensors = {NAMES[i]: (base + far * torch.randn(shape, generator=g)).to(dtype) for i in range(count)}
    return Inputs("model.layers.0.mlp.up_proj.weight", base.to(dtype), tensors, seed)


def fitting(method: str, count: int) -> int:
    return min(count, CATALOGUE[method].most or count)


def shares(values: list[float], inputs: Inputs) -> dict[str, float]:
    """Positive weights with sum 1."""
    used = values[: len(inputs.tensors)]
    return {name: w / sum(used) for name, w in zip(inputs.tensors, used, strict=True)}


def parameters(method: str, density: float = 0.6) -> dict[str, float]:
    wanted = {"density": density, "epsilon": 0.2, "gamma": 0.1, "lambda": 0.9}
    return {name: wanted[name] for name in CATALOGUE[method].parameters}


def only(inputs: Inputs, name: str) -> Inputs:
    return Inputs(inputs.name, inputs.base, {name: inputs.tensors[name]}, inputs.seed)


@pytest.mark.parametrize("method", list(CATALOGUE))
@laws
@given(seed=seeds, values=weights, shape=shapes, dtype=dtypes)
def test_equal_checkpoints_merge_to_that_checkpoint(
    method: str, seed: int, values: list[float], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    one = family(seed, 1, shape, dtype)
    count = fitting(method, len(values))
    base = one.base if CATALOGUE[method].drawn in ("simplex", "none") else one.tensors["a"]
    inputs = Inputs(one.name, base, dict.fromkeys(NAMES[:count], one.tensors["a"]))
    merged = merge(method, inputs, shares(values, inputs), parameters(method))
    if dtype == torch.float32:  # the weights' float32 values do not sum to 1 exactly
        torch.testing.assert_close(merged, one.tensors["a"], rtol=1e-6, atol=1e-6)
    else:
        torch.testing.assert_close(merged.to(dtype), one.tensors["a"], rtol=0, atol=0)


@pytest.mark.parametrize("method", CORNERED)
@laws
@given(seed=seeds, count=st.integers(2, 5), place=st.integers(0, 4), shape=shapes, dtype=dtypes)
def test_a_corner_is_that_checkpoint_bit_for_bit(
    method: str, seed: int, count: int, place: int, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    count = fitting(method, count)
    inputs = family(seed, count, shape, dtype)
    inputs.tensors["a"].view(-1)[0] = -0.0
    corner = NAMES[place % count]
    merged = merge(method, inputs, {name: float(name == corner) for name in inputs.tensors}, parameters(method))
    assert bits(merged.to(dtype)) == bits(inputs.tensors[corner])


@pytest.mark.parametrize("method", [*SCALED, "wise_ft"])
@laws
@given(seed=seeds, count=st.integers(1, 4), shape=shapes, dtype=dtypes)
def test_zero_scales_are_the_base_bit_for_bit(
    method: str, seed: int, count: int, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    inputs = family(seed, fitting(method, count), shape, dtype)
    inputs.base.view(-1)[0] = -0.0
    merged = merge(method, inputs, dict.fromkeys(inputs.tensors, 0.0), parameters(method))
    assert bits(merged.to(dtype)) == bits(inputs.base)


@pytest.mark.parametrize("method", [m for m in CATALOGUE if m != "wise_ft"])
@laws
@given(seed=seeds, values=weights, shape=shapes, data=st.data())
def test_the_order_of_the_checkpoints_does_not_count(
    method: str, seed: int, values: list[float], shape: tuple[int, ...], data: st.DataObject
) -> None:
    inputs = family(seed, fitting(method, len(values)), shape)
    given_weights = shares(values, inputs)
    order = data.draw(st.permutations(list(inputs.tensors)))
    other = Inputs(inputs.name, inputs.base, {n: inputs.tensors[n] for n in order}, inputs.seed)
    left = merge(method, inputs, given_weights, parameters(method))
    right = merge(method, other, {n: given_weights[n] for n in order}, parameters(method))
    if "ties" in method or method == "della":  # where votes cancel out to the last bit, an order decides
        assert torch.isclose(left, right, rtol=1e-5, atol=1e-6).float().mean() >= 0.99
    else:
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["slerp", "multislerp"])
@laws
@given(seed=seeds, values=weights, power=st.integers(-20, 20))
def test_scaling_all_weights_changes_nothing(method: str, seed: int, values: list[float], power: int) -> None:
    inputs = family(seed, fitting(method, len(values)), (6, 9))
    given_weights = shares(values, inputs)
    scaled = {name: w * 2.0**power for name, w in given_weights.items()}
    assert bits(merge(method, inputs, given_weights)) == bits(merge(method, inputs, scaled))


@pytest.mark.parametrize("method", [m for m in SCALED if m != "della"])
@laws
@given(seed=seeds, scale=st.floats(-2, 2), shape=shapes, dtype=dtypes)
def test_at_density_one_a_single_vector_is_task_arithmetic(
    method: str, seed: int, scale: float, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    inputs = family(seed, 1, shape, dtype)
    asked = {"density": 1.0, "gamma": 0.0, "lambda": 1.0}
    merged = merge(method, inputs, {"a": scale}, {n: asked[n] for n in CATALOGUE[method].parameters})
    assert bits(merged) == bits(merge("task_arithmetic", inputs, {"a": scale}))


@laws
@given(seed=seeds, values=weights)
def test_at_density_one_dare_is_task_arithmetic_and_ties(seed: int, values: list[float]) -> None:
    inputs = family(seed, len(values), (8, 8))
    scales = dict(zip(inputs.tensors, values, strict=True))
    assert bits(merge("dare_linear", inputs, scales)) == bits(merge("task_arithmetic", inputs, scales))
    assert bits(merge("dare_ties", inputs, scales)) == bits(merge("ties", inputs, scales))


@laws
@given(seed=seeds)
def test_weights_that_differ_in_the_third_digit_give_other_bfloat16_bits(seed: int) -> None:
    inputs = family(seed, 2, (64, 64), torch.bfloat16, far=1.0)
    found = [merge("linear", inputs, {"a": w, "b": 1.0 - w}) for w in (0.300, 0.301)]
    rounded = [m.bfloat16() for m in found]
    expected = [
        (inputs.tensors["a"].double() * w + inputs.tensors["b"].double() * (1.0 - w)).float() for w in (0.300, 0.301)
    ]
    for merged, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(merged, reference, rtol=1e-6, atol=1e-6)
    differ = expected[0].bfloat16() != expected[1].bfloat16()
    # The last float32 bit decides a rounding in bfloat16 once in some thousand elements.
    assert ((rounded[0] != rounded[1]) == differ).float().mean() > 0.99
    assert differ.any()


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
@laws
@given(seed=seeds, values=weights, shape=shapes)
def test_a_weighted_sum_is_that_of_float64_arithmetic(
    method: str, seed: int, values: list[float], shape: tuple[int, ...]
) -> None:
    inputs = family(seed, len(values), shape)
    base = inputs.base.double() if method == "task_arithmetic" else torch.zeros(shape, dtype=torch.float64)
    expected = base + sum(w * (t.double() - base) for w, t in zip(values, inputs.tensors.values(), strict=True))
    merged = merge(method, inputs, dict(zip(inputs.tensors, values, strict=True)))
    torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=1e-5)


@laws
@given(seed=seeds, values=weights, density=st.floats(0.05, 1.0))
def test_ties_trims_elects_and_adds(seed: int, values: list[float], density: float) -> None:
    inputs = family(seed, len(values), (9, 11))
    n, base = 99, inputs.base.double()
    kept = []
    for scale, tensor in zip(values, inputs.tensors.values(), strict=True):
        delta = tensor.double() - base
        threshold = delta.abs().flatten().sort(descending=True).values[max(1, int(density * n)) - 1]
        kept.append(scale * torch.where(delta.abs() >= threshold - 1e-9, delta, 0.0))
    stack = torch.stack(kept)
    up = stack.sum(0) >= 0
    expected = base + torch.where((stack >= 0) == up, stack, 0.0).sum(0)
    merged = merge("ties", inputs, dict(zip(inputs.tensors, values, strict=True)), {"density": density})
    torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=1e-5)


@laws
@given(seed=seeds, density=st.floats(0.1, 0.9), gamma=st.floats(0.0, 0.3))
def test_breadcrumbs_keeps_the_middle_magnitudes(seed: int, density: float, gamma: float) -> None:
    inputs = family(seed, 1, (20, 25))
    merged = merge("breadcrumbs", inputs, {"a": 1.0}, {"density": density, "gamma": gamma})
    sizes = (inputs.tensors["a"] - inputs.base).abs().flatten()
    kept = (merged - inputs.base).flatten() != 0
    n_kept, n_top = max(1, int(density * 500)), int(gamma * 500)
    order = sizes.argsort()
    first = max(0, 500 - n_kept - n_top)
    expected = torch.zeros(500, dtype=torch.bool)
    expected[order[first:] if gamma == 0 else order[first : first + n_kept]] = True
    assert torch.equal(kept, expected)


def test_equal_magnitudes_are_trimmed_together() -> None:
    delta = torch.tensor([1.0, -1.0, 1.0, 0.5])
    inputs = Inputs("t", torch.zeros(4), {"a": delta})
    assert merge("ties", inputs, {"a": 1.0}, {"density": 0.25}).tolist() == [1.0, -1.0, 1.0, 0.0]


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della"])
def test_masks_come_from_the_study_seed_the_tensor_and_the_checkpoint_alone(method: str) -> None:
    inputs = family(3, 3, (40, 50))
    kept = {
        name: merge(method, only(inputs, name), {name: 1.0}, parameters(method)) != inputs.base
        for name in inputs.tensors
    }
    again = family(3, 3, (40, 50))
    for name, mask in kept.items():
        assert torch.equal(mask, merge(method, only(again, name), {name: 0.3}, parameters(method)) != again.base)
        assert 0.55 < mask.float().mean() < 0.65
    assert not torch.equal(kept["a"], kept["b"])
    one = only(inputs, "a")
    for other in (Inputs("another", one.base, one.tensors, 3), Inputs(one.name, one.base, one.tensors, 4)):
        assert not torch.equal(kept["a"], merge(method, other, {"a": 1.0}, parameters(method)) != one.base)


def test_a_greater_density_keeps_what_a_lesser_one_keeps() -> None:
    inputs = family(1, 1, (60, 50))
    masks = [merge("dare_linear", inputs, {"a": 1.0}, {"density": d}) != inputs.base for d in (0.2, 0.5, 0.51, 0.9)]
    for less, more in pairwise(masks):
        assert bool((more | ~less).all())
        assert more.sum() > less.sum()


def test_dare_keeps_the_vector_on_average() -> None:
    delta = torch.ones(1000, 300)
    inputs = Inputs("t", torch.zeros_like(delta), {"a": delta})
    for density in (0.1, 0.5, 0.9):
        merged = merge("dare_linear", inputs, {"a": 1.0}, {"density": density})
        assert abs(float(merged.mean()) - 1.0) < 5 * ((1 - density) / density / delta.numel()) ** 0.5
        assert set(merged.unique().tolist()) == {0.0, float(torch.tensor(1.0) / torch.tensor(density))}


def test_della_keeps_great_magnitudes_more_often() -> None:
    delta = torch.arange(1.0, 101.0).repeat(2000, 1)
    inputs = Inputs("t", torch.zeros_like(delta), {"a": delta})
    merged = merge("della", inputs, {"a": 1.0}, {"density": 0.5, "epsilon": 0.4})
    rates = (merged != 0).float().mean(0)
    expected = torch.linspace(0.1, 0.9, 100)
    assert float((rates - expected).abs().max()) < 0.06
    torch.testing.assert_close(merged.mean(0), delta[0], rtol=0.3, atol=0.0)


@laws
@given(seed=seeds, share=st.floats(0.01, 0.99))
def test_multislerp_of_two_equal_lengths_is_slerp(seed: int, share: float) -> None:
    inputs = family(seed, 2, (30,), far=1.0)
    tensors = {name: t / t.norm() for name, t in inputs.tensors.items()}
    unit = Inputs(inputs.name, inputs.base, tensors)
    two = {"a": 1.0 - share, "b": share}
    torch.testing.assert_close(merge("multislerp", unit, two), merge("slerp", unit, two), rtol=1e-4, atol=1e-5)


def test_spherical_means_divide_the_angle_by_the_weights() -> None:
    inputs = Inputs("t", torch.zeros(2), {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 3.0])})
    merged = merge("multislerp", inputs, {"a": 0.25, "b": 0.75})
    assert torch.rad2deg(torch.atan2(merged[1], merged[0])).item() == pytest.approx(67.5)
    assert merged.norm().item() == pytest.approx(0.25 * 1 + 0.75 * 3)


@laws
@given(seed=seeds, values=weights)
def test_the_spherical_mean_lies_where_the_pulls_cancel(seed: int, values: list[float]) -> None:
    inputs = family(seed, len(values), (50,), far=0.5)
    given_weights = shares(values, inputs)
    mean = merge("multislerp", inputs, given_weights).double()
    mean /= mean.norm()
    pull = torch.zeros(50, dtype=torch.float64)
    for name, tensor in inputs.tensors.items():
        unit = tensor.double() / tensor.double().norm()
        along = (unit @ mean).clamp(-1, 1)
        pull += given_weights[name] * along.acos() / along.acos().sin() * (unit - along * mean)
    assert float(pull.norm()) < 1e-6


def test_model_stock_weighs_by_the_angle_between_the_vectors() -> None:
    base = torch.zeros(3)
    orthogonal = Inputs("t", base, {"a": torch.tensor([1.0, 0, 0]), "b": torch.tensor([0.0, 1, 0])})
    assert bits(merge("model_stock", orthogonal, {"a": 1.0, "b": 1.0})) == bits(base)
    aligned = Inputs("t", base, {"a": torch.tensor([1.0, 0, 0]), "b": torch.tensor([1.0, 1, 0])})
    cosine = 2**-0.5
    share = 2 * cosine / (1 + cosine)
    torch.testing.assert_close(
        merge("model_stock", aligned, {"a": 1.0, "b": 1.0}), share * torch.tensor([1.0, 0.5, 0.0])
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch's compiler uses what torch deprecates
@pytest.mark.parametrize("method", list(CATALOGUE))
def test_the_compiled_pass_gives_the_bits_of_the_loop(method: str) -> None:
    torch.set_num_threads(1)
    count = fitting(method, 3)
    inputs = family(5, count, (200, 130), torch.bfloat16)
    compiled = Compiled()
    for values in ((0.5, 0.3, 0.2), (0.4, 0.0, 0.6), (0.0, 1.3, 0.0)):
        used: Mapping[str, float] = dict(zip(inputs.tensors, values, strict=False))
        if method in SIMPLEX_METHODS and sum(used.values()) == 0:
            continue
        todo = bound(plan(method, inputs, used, parameters(method)), inputs)
        with torch.inference_mode():
            outs = [torch.empty(inputs.base.numel(), dtype=torch.bfloat16) for _ in range(2)]
            compiled.write(todo, outs[0])
            Loop().write(todo, outs[1])
        assert bits(outs[0]) == bits(outs[1])
    assert compiled._works


@pytest.mark.parametrize(
    ("method", "given_weights", "given_parameters", "message"),
    [
        ("linear", {"a": 0.0, "b": 0.0}, {}, "weights must not all be zero"),
        ("slerp", {"a": 0.3, "b": 0.3, "c": 0.4}, {}, "multislerp merges more"),
        ("wise_ft", {"a": 0.5, "b": 0.5}, {}, "one checkpoint, but got 2"),
        ("ties", {"a": 1.0}, {"density": 0.0}, r"density must lie in \(0, 1\], but is 0.0"),
        ("ties", {"a": 1.0}, {"density": 1.5}, "but is 1.5"),
        ("della", {"a": 1.0}, {"density": 0.9, "epsilon": 0.2}, "density -/"),
        ("model_stock", {"a": 1.0}, {}, "at least two checkpoints"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_its_rule(
    method: str, given_weights: dict[str, float], given_parameters: dict[str, float], message: str
) -> None:
    inputs = family(0, len(given_weights), (4, 4))
    with pytest.raises(MergeError, match=message):
        merge(method, inputs, given_weights, given_parameters)


@pytest.mark.parametrize("method", ["slerp", "multislerp"])
def test_a_tensor_without_direction_is_refused_unless_all_are_zero(method: str) -> None:
    zero, one = torch.zeros(5), torch.ones(5)
    with pytest.raises(MergeError, match="all zero in b"):
        merge(method, Inputs("t", zero, {"a": one, "b": zero}), {"a": 0.5, "b": 0.5})
    assert bits(merge(method, Inputs("t", zero, {"a": zero, "b": zero}), {"a": 0.5, "b": 0.5})) == bits(zero)


def test_a_single_element_has_no_direction_and_gets_the_weighted_mean() -> None:
    inputs = Inputs("t", torch.zeros(1), {"a": torch.tensor([2.0]), "b": torch.tensor([-2.0])})
    assert merge("multislerp", inputs, {"a": 0.5, "b": 0.5}).item() == 0.0
    assert merge("multislerp", inputs, {"a": 0.75, "b": 0.25}).item() == 1.0


def test_directions_that_cancel_out_are_refused() -> None:
    one = torch.ones(5)
    with pytest.raises(MergeError, match="must not cancel out"):
        merge("multislerp", Inputs("t", one, {"a": one, "b": -one}), {"a": 0.5, "b": 0.5})


def test_every_method_of_the_catalogue_is_there_and_no_other() -> None:
    assert set(FUNCTIONS) == set(CATALOGUE)
    assert {p for m in CATALOGUE.values() for p in m.parameters} == set(PARAMETERS)
    assert all(p.holds(p.default) and not p.holds(inf) for p in PARAMETERS.values())


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch's compiler uses what torch deprecates
@torch._dynamo.config.patch(recompile_limit=1)
def test_one_form_more_than_the_compiler_keeps_goes_through_the_loop() -> None:
    torch.compiler.reset()
    compiled = Compiled()
    for count in (2, 3):
        inputs = family(5, count, (200, 130), torch.bfloat16)
        todo = bound(plan("linear", inputs, dict.fromkeys(inputs.tensors, 1 / count), {}), inputs)
        with torch.inference_mode():
            outs = [torch.empty(inputs.base.numel(), dtype=torch.bfloat16) for _ in range(2)]
            compiled.write(todo, outs[0])
            Loop().write(todo, outs[1])
        assert bits(outs[0]) == bits(outs[1])
    assert compiled._works
    torch.compiler.reset()


@pytest.mark.parametrize("method", ["dare_linear", "della"])
def test_draws_begin_anew_at_one_place_however_a_tensor_is_cut(method: str) -> None:
    inputs = family(5, 2, (7, 100))
    todo = bound(plan(method, inputs, {"a": 0.5, "b": 0.3}, parameters(method)), inputs, first=2**31 - 300)
    whole = torch.empty(700)
    Loop().write(todo, whole)
    for first, rows in ((2**31 - 300, slice(0, 3)), (0, slice(3, 7))):
        part = Inputs(inputs.name, inputs.base[rows], {n: t[rows] for n, t in inputs.tensors.items()}, inputs.seed)
        out = torch.empty(part.base.numel())
        Loop().write(bound(plan(method, part, {"a": 0.5, "b": 0.3}, parameters(method)), part, first=first), out)
        assert bits(out) == bits(whole.view(7, 100)[rows])
