"""Streaming: the same bits as from resident sources, piece by piece, whatever the method keeps of whole tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from search_spaces.methods import CATALOGUE, METHODS
from search_spaces.recipe import Recipe, only
from workers.kernels import Compiled, Loop, Pass
from workers.merger import Merger, merge_digest
from workers.placement import BUFFER, Placement, Streamed, copied, place, placed, sizes

NAMES = ("a", "b", "c")


def family(dtypes: tuple[torch.dtype, ...], rows: int = 60) -> dict[str, dict[str, Tensor]]:
    """Tensors of many pieces, of one, of none; integers beside them."""
    shapes = {"model.layers.0.mlp.up_proj.weight": (rows, 70), "model.norm.weight": (9,), "model.empty": (0, 3)}
    sources = {}
    for seed, (name, dtype) in enumerate(zip(("base", *NAMES), dtypes, strict=True)):
        g = torch.Generator().manual_seed(seed)
        sources[name] = {n: torch.randn(shape, generator=g).to(dtype) for n, shape in shapes.items()}
        sources[name]["model.positions"] = torch.arange(5)
    return sources


def recipe(method: str, weights: tuple[float, ...] = (0.5, 0.3, 0.2)) -> Recipe:
    wanted = {"density": 0.6, "epsilon": 0.2, "gamma": 0.1, "lambda": 0.9}
    names = NAMES[: min(CATALOGUE[method].most or 3, 3)]
    return Recipe(
        method=method,
        weights={n: (w,) for n, w in zip(names, weights, strict=False)},
        parameters={name: wanted[name] for name in CATALOGUE[method].parameters},
    )


def streaming(merger: Merger, buffer: int) -> Merger:
    merger._runner = Streamed(Loop(), buffer=buffer, always=True)
    return merger


@pytest.mark.parametrize(
    "types", [(torch.bfloat16,) * 4, (torch.float32, torch.float16, torch.float32, torch.bfloat16)]
)
@pytest.mark.parametrize("method", [*METHODS, "model_stock"])
def test_a_streamed_merge_has_the_bits_of_a_resident_one(method: str, types: tuple[torch.dtype, ...]) -> None:
    sources = family(types)
    resident, streamed = Merger(sources, "base", seed=3), streaming(Merger(sources, "base", seed=3), 1 << 13)
    targets = {name: t.clone() for name, t in sources["base"].items()}
    for weights in ((0.5, 0.3, 0.2), (0.6, 0.4, 0.0), (1.0, 0.0, 0.0)):  # one worker, trial after trial
        made = recipe(method, weights)
        assert streamed.merge_into(made, targets) == merge_digest(dict(resident.merged(made, targets)))


@settings(max_examples=25, deadline=None)
@given(buffer=st.integers(1 << 12, 1 << 17), rows=st.integers(1, 120))
def test_the_size_of_the_buffers_does_not_count(buffer: int, rows: int) -> None:
    sources = family((torch.float32,) * 4, rows)
    expected = merge_digest(dict(Merger(sources, "base").merged(recipe("dare_ties"), sources["base"])))
    found = streaming(Merger(sources, "base"), buffer).merged(recipe("dare_ties"), sources["base"])
    assert merge_digest(dict(found)) == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch's compiler uses what torch deprecates
def test_pieces_of_a_compiled_pass_draw_the_masks_of_their_places() -> None:
    sources = family((torch.bfloat16,) * 4, rows=700)
    merger = Merger(sources, "base")
    merger._runner = Streamed(Compiled(), buffer=17000 * 8, always=True)
    found = merge_digest(dict(merger.merged(recipe("dare_linear"), sources["base"])))
    assert found == merge_digest(dict(Merger(sources, "base").merged(recipe("dare_linear"), sources["base"])))


def test_no_piece_is_greater_than_a_buffer_and_none_is_left_out() -> None:
    seen: list[tuple[int, int]] = []

    class Watching(Loop):
        def write(self, todo: Pass[Tensor], out: Tensor) -> None:
            assert sum(t.nbytes for t in todo.tensors) <= 1 << 13
            seen.append((todo.first, out.numel()))
            super().write(todo, out)

    sources = family((torch.float32,) * 4)
    merger = Merger(sources, "base")
    merger._runner = Streamed(Watching(), buffer=1 << 13, always=True)
    name = "model.layers.0.mlp.up_proj.weight"
    merger.write(recipe("linear"), {name: sources["base"][name].clone()})
    assert len(seen) > 5
    assert [first for first, _ in seen] == [sum(n for _, n in seen[:i]) for i in range(len(seen))]
    assert sum(n for _, n in seen) == 60 * 70


def test_operands_that_are_there_are_not_moved() -> None:
    sources = family((torch.float32,) * 4)
    merger = Merger(sources, "base")
    merger.write(only("b"), {name: t.clone() for name, t in sources["base"].items()})
    assert isinstance(merger._runner, Streamed)
    assert merger._runner._slots == {}


def test_a_family_is_resident_as_far_as_it_fits_beside_the_model_and_the_rest_streamed() -> None:
    gib = 1 << 30
    whole = place(model=16 * gib, sources=40 * gib, free=80 * gib)
    assert whole == Placement(resident=40 * gib, needed=56 * gib + 8 * gib, fits=True)
    assert place(model=16 * gib, sources=56 * gib, free=80 * gib) == Placement(
        resident=56 * gib, needed=80 * gib, fits=True
    )
    part = place(model=16 * gib, sources=80 * gib, free=80 * gib)
    assert part == Placement(resident=56 * gib - 2 * BUFFER, needed=80 * gib, fits=True)
    none = place(model=16 * gib, sources=80 * gib, free=20 * gib)
    assert none == Placement(resident=2 * gib - 2 * BUFFER, needed=20 * gib, fits=True)
    small = place(model=16 * gib, sources=80 * gib, free=18 * gib)
    assert (small.resident, small.fits) == (0, False)


@given(room=st.integers(0, 70_000))
def test_a_tensor_is_copied_from_all_sources_or_from_none_and_what_is_left_has_no_room(room: int) -> None:
    sources = family((torch.float32, torch.bfloat16, torch.float32, torch.float16))
    found = copied(sources, sources["base"], torch.device("cpu"), room)
    names = {c: set(tensors) for c, tensors in found.items()}
    assert set(names) == set(sources)
    assert len(set(map(frozenset, names.values()))) == 1
    of = sizes(sources, sources["base"])
    left = room - sum(of[name] for name in names["base"])
    assert left >= 0
    assert all(size > left for name, size in of.items() if name not in names["base"])


@pytest.mark.parametrize("method", [*METHODS, "model_stock"])
def test_a_merge_of_which_a_part_is_resident_has_the_bits_of_any_other(method: str) -> None:
    sources = family((torch.bfloat16,) * 4)
    expected = merge_digest(dict(Merger(sources, "base", seed=3).merged(recipe(method), sources["base"])))
    for room in (0, 100, 50_000, 1 << 20):
        near = copied(sources, sources["base"], torch.device("cpu"), room)
        merger = streaming(Merger(sources, "base", seed=3, near=near), 1 << 13)
        assert merge_digest(dict(merger.merged(recipe(method), sources["base"]))) == expected


def test_on_a_cpu_sources_stay_the_mapped_files() -> None:
    sources = family((torch.float32,) * 4)
    assert placed(sources, sources["base"]) == {}
