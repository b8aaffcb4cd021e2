"""The planner's arithmetic, and what it measures on the spot; no test looks at how long anything takes."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from optimizer import prediction
from optimizer.bandwidths import _among, _Part, measure, page_out
from optimizer.memory import memory_of, vllm_ways
from optimizer.planner import Plan, Rates, Way, ways_out
from optimizer.prediction import predict
from optimizer.spec import BASE, Spec, load_spec
from search_spaces.recipe import Recipe
from storage.checkpoints import Checkpoint
from storage.tensor_files import open_tensors, write_tensors
from workers.errors import MergeError
from workers.setup import Setup
from workers.worker import Worker

GIB = 1 << 30


@pytest.fixture
def spec(study_file: Callable[..., Path]) -> Spec:
    return load_spec(study_file())


def opened(spec: Spec) -> dict[str, Checkpoint]:
    return {source.name: Checkpoint(source) for source in spec.sources}


def test_a_trial_reads_its_checkpoints_writes_the_model_and_hashes_it() -> None:
    plan = Plan(model=10, read=30, own=10, mapped=50)
    assert plan.moved == 40
    assert plan.seconds(Rates(merge=20.0, digest=5.0)) == {"merge": 2.0, "digest": 2.0}


def test_a_family_that_memory_does_not_hold_waits_for_the_disk_on_top() -> None:
    rates = Rates(merge=20.0, digest=5.0, disk=3.0)
    plan = Plan(model=10, read=30, own=10, mapped=50)
    assert plan.seconds(rates) == {"merge": 2.0, "digest": 2.0}
    assert replace(plan, from_disk=True).seconds(rates) == {"merge": 2.0, "digest": 2.0, "disk": 10.0}
    assert replace(plan, from_disk=True, streamed=6).seconds(rates)["disk"] == 2.0, "what is resident is not read again"


def test_the_first_three_ways_out_that_fit_are_told_with_their_numbers() -> None:
    needs = {"a": 9, "b": 11, "c": 10, "d": 1, "e": 1}
    ways = [Way(change=name, needed=needed * GIB, free=10 * GIB) for name, needed in needs.items()]
    assert ways_out(ways) == "; ways out: a (9.0 GiB of 10.0 GiB), c (10.0 GiB of 10.0 GiB), d (1.0 GiB of 10.0 GiB)"
    assert ways_out(ways[1:2]) == ""


def test_shorter_texts_and_more_gpus_are_ways_out_of_a_gpu_that_is_too_small(spec: Spec) -> None:
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
    )
    with torch.device("meta"):
        like = LlamaForCausalLM(config).bfloat16().state_dict()
    model = sum(t.nbytes for t in like.values())
    assert 13 * GIB < model < 14 * GIB
    said = ways_out(vllm_ways(config, like, spec, free=24 * GIB))
    assert said.startswith("; ways out: workers.max_model_len: 16384 (21.2 GiB of 24.0 GiB), ")
    assert "workers.tensor_parallel: 4 (15.1 GiB of 24.0 GiB), workers.tensor_parallel: 8 (" in said
    assert ways_out(vllm_ways(config, like, spec, free=2 * GIB)) == ""


def test_the_plan_of_a_worker_on_processors_says_what_is_its_own_and_what_is_shared(spec: Spec) -> None:
    checkpoints = opened(spec)
    plan = memory_of(spec, checkpoints, device="cpu", workers=2).plan
    assert plan is not None
    size = checkpoints[BASE].nbytes
    assert (plan.model, plan.own, plan.read, plan.mapped) == (size, size, 3 * size, 4 * size)
    assert (plan.on_gpu, plan.pinned, plan.from_disk) == (0, 0, False)


def test_a_prediction_is_of_all_items_by_asking_a_share_of_each_suite(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "_TIMED_ITEMS", 10)
    checkpoints = opened(spec)
    plan = memory_of(spec, checkpoints, device="cpu", workers=2).plan
    assert plan is not None
    asked: list[int] = []

    def watched(setup: Setup) -> object:
        made = Worker(setup)
        asked.append(sum(len(s.items) for o in made._objectives.values() for s in o["search"].suites))
        return made

    monkeypatch.setattr(prediction, "Worker", watched)
    found = predict(spec, checkpoints, plan, workers=2, progress=lambda *_: None)
    everything = sum(len(s.items) for o in spec.setup(device="cpu").objectives for s in o.load()["search"].suites)
    assert found.items == everything
    assert 16 <= asked[0] <= 24 < everything
    assert set(found.seconds) == {"merge", "digest", "answers"}
    assert found.total == sum(found.seconds.values())
    assert all(s > 0.0 for s in found.seconds.values())


def test_what_merges_is_what_the_family_would_merge_with(spec: Spec, study_file: Callable[..., Path]) -> None:
    """A recipe that the family's merger refuses is refused when it is measured."""
    checkpoints = opened(spec)
    tensors = {name: c.tensors for name, c in checkpoints.items()}
    options: dict[str, Any] = {"device": "cpu", "workers": 1, "threads": 1, "resident": 0.0, "from_disk": False}
    family, like = spec.setup(device="cpu").family, checkpoints[BASE].tensors
    halves = Recipe(method="linear", weights={"alpha": (0.5,), "beta": (0.5,)})
    rates = measure(family, tensors, like, halves, **options)
    assert rates.merge > 0.0
    assert rates.disk is None
    with pytest.raises(MergeError, match="slerp merges two checkpoints"):
        three = Recipe(method="slerp", weights={"alpha": (0.5,), "beta": (0.3,), "gamma": (0.2,)})
        measure(family, tensors, like, three, **options)


def test_one_worker_among_several_has_no_more_than_one_that_is_alone() -> None:
    """Whatever is measured: a share of the memory can only lower a rate, and so can a share of the disk."""
    part = _Part(sources=[torch.ones(1 << 20)], targets={})
    slow = Rates(merge=1.0, digest=2.0, disk=3.0)
    assert _among(slow, [part], 2, 1, True) == slow
    fast = _among(Rates(merge=1e30, digest=1e30), [part], 2, 1, False)
    assert fast.merge == fast.digest < 1e30
    assert fast.disk is None


@pytest.mark.skipif(sys.platform != "linux", reason="advice to page out is Linux's; run it there")
def test_what_is_paged_out_of_a_file_is_read_again_and_other_memory_stays(tmp_path: Path) -> None:
    content = torch.arange(1 << 20)
    path = tmp_path / "weights.safetensors"
    write_tensors(path, {"w": content}, [("w", content)])
    with path.open("rb") as file:
        os.fsync(file.fileno())  # a page that is not on the disk yet stays
    mapped = open_tensors(path)["w"]
    assert torch.equal(mapped, content)
    page_out([mapped, content])
    if _resident(path) > content.nbytes // 2:
        pytest.skip("the system kept the pages, as it does where files lie in memory; run it with --basetemp on a disk")
    assert torch.equal(mapped, content)
    assert torch.equal(content, torch.arange(1 << 20))
    assert _resident(path) >= content.nbytes


def _resident(path: Path) -> int:
    """Bytes of a mapped file that this process has in memory."""
    return sum(region.rss for region in psutil.Process().memory_maps() if region.path == str(path))
