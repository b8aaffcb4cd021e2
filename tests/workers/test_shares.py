"""Shares: what several processes merge together is what one merges alone, to the last bit, and each reads its part."""

import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from search_spaces.methods import CATALOGUE
from search_spaces.recipe import Recipe
from storage.checkpoints import tensor_digest
from workers.kernels import Loop, Pass
from workers.merger import Merger
from workers.placement import Streamed, copied
from workers.shares import Share

NAMES = ("a", "b", "c")
Family = dict[str, dict[str, Tensor]]


def family(dtype: torch.dtype = torch.float32, rows: int = 37) -> Family:
    """Experts in one tensor, a matrix, a norm and a scalar; whole numbers and nothing at all beside them."""
    shapes = {"experts": (3, 5, 7), "matrix": (rows, 11), "norm": (6,), "scale": (), "empty": (0, 4), "none": (9, 0)}
    sources = {}
    for seed, name in enumerate(("base", *NAMES)):
        g = torch.Generator().manual_seed(seed)
        sources[name] = {n: torch.randn(shape, generator=g).to(dtype) for n, shape in shapes.items()}
        sources[name]["positions"] = torch.arange(24).view(12, 2) + seed
    return sources


def recipe(method: str, weights: tuple[float, ...] = (0.5, 0.3, 0.2)) -> Recipe:
    wanted = {"density": 0.6, "epsilon": 0.2, "gamma": 0.1, "lambda": 0.9}
    return Recipe(
        method=method,
        weights={n: (w,) for n, w in zip(NAMES[: CATALOGUE[method].most or 3], weights, strict=False)},
        parameters={name: wanted[name] for name in CATALOGUE[method].parameters},
    )


def sharing(sources: Family, of: int, near: int = 0) -> list[Merger]:
    """The mergers of all processes, in this one, each with so many bytes copied."""
    return [
        Merger(
            sources,
            "base",
            seed=3,
            share=Share(rank, of),
            near=copied(sources, sources["base"], torch.device("cpu"), near, Share(rank, of)),
        )
        for rank in range(of)
    ]


def planned(mergers: list[Merger], made: Recipe, like: dict[str, Tensor]) -> dict[str, Pass[str]]:
    """What the owners of the tensors say is to be done."""
    plans: dict[str, Pass[str]] = {}
    for rank, merger in enumerate(mergers):
        owned = Share(rank, len(mergers)).owned(like)
        plans |= merger.plan(made, {name: t for name, t in like.items() if name in owned})
    assert set(plans) == set(like)
    return plans


def merged(mergers: list[Merger], plans: dict[str, Pass[str]], like: dict[str, Tensor]) -> dict[str, bytes]:
    """The parts of all processes side by side."""
    found = {}
    for name, tensor in like.items():
        whole = torch.zeros_like(tensor)
        for rank, merger in enumerate(mergers):
            part = torch.empty(Share(rank, len(mergers)).part(tensor).shape, dtype=tensor.dtype)
            merger.run(name, plans[name], part)
            Share(rank, len(mergers)).part(whole).copy_(part)
        found[name] = content(whole)
    return found


def content(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("near", [0, 1000, 1 << 20], ids=["mapped", "partly copied", "copied"])
@pytest.mark.parametrize("method", CATALOGUE)
@settings(max_examples=12, deadline=None)
@given(
    of=st.integers(1, 8),
    rows=st.integers(1, 60),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    weights=st.sampled_from([(0.5, 0.3, 0.2), (0.6, 0.4, 0.0), (1.0, 0.0, 0.0)]),
)
def test_parts_have_the_bits_of_the_whole(
    method: str, near: int, of: int, rows: int, dtype: torch.dtype, weights: tuple[float, ...]
) -> None:
    sources, made = family(dtype, rows), recipe(method, weights)
    like = sources["base"]
    mergers = sharing(sources, of, near)
    found = merged(mergers, planned(mergers, made, like), like)
    assert found == {name: content(t) for name, t in Merger(sources, "base", seed=3).merged(made, like)}


@pytest.mark.parametrize("method", CATALOGUE)
def test_a_process_reads_its_own_rows_alone(method: str) -> None:
    """Once the numbers of whole tensors are known: the rows of others are spoiled, and nobody notices."""
    made, like = recipe(method), family()["base"]
    expected = {name: content(t) for name, t in Merger(family(), "base", seed=3).merged(made, like)}
    plans = planned(sharing(family(), 3), made, like)
    for rank in range(3):
        share, spoiled = Share(rank, 3), family()
        for tensors in spoiled.values():
            for name in ("experts", "matrix"):
                kept = share.part(tensors[name]).clone()
                tensors[name].fill_(float("nan"))
                share.part(tensors[name]).copy_(kept)
        merger = Merger(spoiled, "base", seed=3, share=share)
        for name, tensor in like.items():
            part = torch.empty(share.part(tensor).shape, dtype=tensor.dtype)
            merger.run(name, plans[name], part)
            whole = torch.frombuffer(bytearray(expected[name] or b"\0"), dtype=torch.uint8)[: tensor.nbytes]
            assert content(part) == content(share.part(whole.view(tensor.dtype).view(tensor.shape)))


def test_parts_are_streamed_in_pieces_at_their_places() -> None:
    sources, made = family(rows=300), recipe("dare_ties")
    like = sources["base"]
    mergers = sharing(sources, 3)
    for merger in mergers:
        merger._runner = Streamed(Loop(), buffer=1 << 13, always=True)
    found = merged(mergers, planned(mergers, made, like), like)
    assert found == {name: content(t) for name, t in Merger(sources, "base", seed=3).merged(made, like)}


@settings(deadline=None)
@given(of=st.integers(1, 9), rows=st.integers(0, 70), columns=st.integers(0, 3))
def test_parts_cover_a_tensor_and_are_all_of_what_has_few_rows(of: int, rows: int, columns: int) -> None:
    tensor = torch.arange(rows * columns).view(rows, columns)
    parts = [Share(rank, of).part(tensor) for rank in range(of)]
    if rows < of or columns == 0:
        assert all(part is tensor for part in parts)
    else:
        assert torch.equal(torch.cat(parts), tensor)
        assert max(len(part) for part in parts) == -(-rows // of)
        for rank, part in enumerate(parts):
            assert part.numel() == 0 or int(part[0, 0]) == Share(rank, of).first(tensor)


@given(of=st.integers(1, 8), sizes=st.lists(st.integers(0, 50), max_size=30))
def test_every_tensor_has_one_owner_and_owners_have_about_as_much(of: int, sizes: list[int]) -> None:
    like = {str(i): torch.empty(n, device="meta") for i, n in enumerate(sizes)}
    owned = [Share(rank, of).owned(like) for rank in range(of)]
    assert sorted(name for names in owned for name in names) == sorted(like)
    loads = [sum(like[name].numel() for name in names) for names in owned]
    assert max(loads) - min(loads) <= max(sizes, default=0)


def together(rank: int, of: int, meeting: Path, method: str, told: Callable[[object], None]) -> None:
    """One of several processes that merge with each other; tells the digests."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=of)
    sources, made = family(torch.bfloat16), recipe(method)
    like, share = sources["base"], Share(rank, of)
    merger = Merger(sources, "base", seed=3, share=share)
    plans = merger.plan(made, like)
    device = torch.device("cpu")
    told({n: tensor_digest(share.joined(t, device, partial(merger.run, n, plans[n]))) for n, t in like.items()})
    dist.destroy_process_group()


def test_real_processes_exchange_their_parts(tmp_path: Path) -> None:
    """Three: no tensor here divides by it."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    meeting = tmp_path / "meeting"
    processes = [context.Process(target=together, args=(r, 3, meeting, "della", queue.put)) for r in range(3)]
    for process in processes:
        process.start()
    found = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    sources = family(torch.bfloat16)
    alone = dict(Merger(sources, "base", seed=3).merged(recipe("della"), sources["base"]))
    assert found == [{name: tensor_digest(t) for name, t in alone.items()}] * 3
