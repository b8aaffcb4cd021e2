"""What is decided before vLLM is imported; needs no vLLM."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config

from search_spaces.errors import InputError
from workers.placement import BUFFER
from workers.vllm_plan import Cache, Needs, plan_gpu, refusal, swap_room

GIB = 1 << 30


@pytest.mark.parametrize(
    ("config", "device", "message"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "cuda", "must not be quantised"),
        ({"text_config": {"quantization_config": {"bits": 4}}}, "cpu", "must not be quantised"),
        ({"num_local_experts": 8}, "cpu", "must run a dense model, but this is a mixture of experts"),
        ({"text_config": {"num_experts": 64}}, "cpu", "a mixture of experts"),
        ({"kv_lora_rank": 512, "n_routed_experts": None}, "cpu", "latent attention"),
        ({"num_local_experts": 8}, "cuda", None),  # the proof at launch has the word there
        ({"num_experts": 1}, "cpu", None),
        ({"num_hidden_layers": 2}, "cpu", None),
    ],
)
def test_what_is_known_to_go_wrong_is_refused(config: dict[str, Any], device: str, message: str | None) -> None:
    reason = refusal(config, device=device)
    assert (reason is None) == (message is None)
    assert message is None or message in str(reason)


@pytest.mark.parametrize(
    ("config", "token"),
    [
        (
            LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3),
            2 * 3 * 2 * 16,
        ),
        (Phi3Config(hidden_size=64, num_attention_heads=4, num_hidden_layers=1, pad_token_id=0), 2 * 1 * 4 * 16),
        (Gemma3TextConfig(num_key_value_heads=1, head_dim=32, num_hidden_layers=5), 2 * 5 * 1 * 32),
    ],
    ids=["grouped heads", "as many as for queries", "heads of a width of their own"],
)
def test_a_token_takes_a_key_and_a_value_in_every_layer(config: Any, token: int) -> None:
    found = Cache.of(config, dtype="bfloat16", processes=1, longest=99)
    assert found == Cache(token=2 * token, text=2 * token * 100)


def test_processes_share_the_heads_and_none_has_less_than_one() -> None:
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=1)
    tokens = [Cache.of(config, dtype="float32", processes=n, longest=None).token for n in (1, 2, 4)]
    assert tokens == [256, 128, 128]


CACHE = Cache(token=1 << 17, text=1 << 28)
"""Of 32,768 tokens 4 GiB."""


def test_checkpoints_are_resident_where_they_fit_and_vllm_gets_what_is_left() -> None:
    needs = Needs(model=16 * GIB, cache=CACHE, swap=GIB, sources=40 * GIB)
    found = plan_gpu(needs, total=80 * GIB, free=78 * GIB)
    assert found.resident == 40 * GIB
    assert found.utilization == pytest.approx((78 - 40 - 1) / 80)


def test_of_checkpoints_that_do_not_fit_as_much_is_resident_as_leaves_a_useful_cache() -> None:
    needs = Needs(model=16 * GIB, cache=CACHE, swap=GIB, sources=40 * GIB)
    found = plan_gpu(needs, total=80 * GIB, free=60 * GIB)
    assert found.resident == (60 - 16 - 4 - 6 - 1) * GIB - 2 * BUFFER
    for_vllm = found.utilization * 80
    assert for_vllm == pytest.approx(16 + 4 + 6)  # model, keys and values, forward passes


def test_one_text_is_enough_for_an_engine_but_not_for_resident_checkpoints() -> None:
    needs = Needs(model=16 * GIB, cache=CACHE, swap=GIB, sources=40 * GIB)
    found = plan_gpu(needs, total=80 * GIB, free=21 * GIB)
    assert found.resident == 0
    assert found.utilization == pytest.approx((21 * GIB - GIB - 2 * BUFFER) / (80 * GIB))
    long = replace(needs, cache=Cache(token=1 << 17, text=8 * GIB))
    assert plan_gpu(long, total=80 * GIB, free=60 * GIB).resident == (60 - 16 - 8 - 6 - 1) * GIB - 2 * BUFFER


def test_each_process_needs_room_for_its_share_of_the_checkpoints() -> None:
    like = {"model.layers.0.a.weight": torch.empty(9, 4), "model.norm.weight": torch.empty(4)}
    sources = {"base": like, "a": like | {"unused": torch.empty(1000)}}
    found = Needs.of(like, CACHE, sources=sources, processes=2)
    assert found.sources == 2 * 4 * (5 * 4 + 4)
    assert found.model == 4 * (9 * 4 + 4) // 2


def test_what_cannot_fit_is_refused_with_the_arithmetic() -> None:
    needs = Needs(model=16 * GIB, cache=Cache(token=1 << 17, text=8 * GIB), swap=GIB, sources=40 * GIB)
    message = (
        r"it needs 27.9 GiB \(model 16.0, keys and values of one text of full length 8.0, forward passes 2.4, "
        r"swaps 1.5\) and 24.0 GiB is free: raise workers.tensor_parallel or lower workers.max_model_len"
    )
    with pytest.raises(InputError, match=message):
        plan_gpu(needs, total=24 * GIB, free=24 * GIB)


def test_a_swap_holds_the_largest_layer_twice() -> None:
    like = {
        "model.embed_tokens.weight": torch.empty(10, 2, device="meta"),
        "model.layers.0.a.weight": torch.empty(4, 4, device="meta"),
        "model.layers.0.b.weight": torch.empty(4, 2, device="meta"),
        "model.layers.1.a.weight": torch.empty(4, 4, device="meta"),
    }
    assert swap_room(like) == 2 * 4 * 24
