"""Real model classes, made tiny on the spot: what is merged is what transformers would load."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from search_spaces.recipe import Recipe, only
from storage.checkpoints import Checkpoint, Source
from workers.merger import Merger
from workers.transformers_engine import empty_weights

SMALL: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SMALL | {"num_key_value_heads": 1, "head_dim": 8}
CONFIGS = {
    "llama": tf.LlamaConfig(**GROUPED, tie_word_embeddings=False),
    "llama tied": tf.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "qwen2 (biases)": tf.Qwen2Config(**GROUPED),
    "qwen3": tf.Qwen3Config(**GROUPED),
    "gemma (tied, scaled)": tf.GemmaConfig(**GROUPED),
    "gemma2": tf.Gemma2Config(**GROUPED),
    "mistral": tf.MistralConfig(**GROUPED),
    "mixtral (experts)": tf.MixtralConfig(**GROUPED, num_local_experts=3),
    "qwen3 moe (experts)": tf.Qwen3MoeConfig(**GROUPED, num_experts=3, moe_intermediate_size=8, num_experts_per_tok=2),
    "phi": tf.PhiConfig(**SMALL),
    "phi3 (fused)": tf.Phi3Config(**SMALL),
    "gpt2 (Conv1D)": tf.GPT2Config(
        vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
}


def saved(config: Any, seed: int, directory: Path) -> Path:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # biases and norms too
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return directory


def opened(paths: dict[str, Path]) -> dict[str, Any]:
    return {name: Checkpoint(Source(name=name, model=str(path))).tensors for name, path in paths.items()}


def logits(path: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return torch.as_tensor(model(torch.arange(3, 19)[None]).logits)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_merge_is_what_transformers_makes_of_averaged_state_dicts(kind: str, tmp_path: Path) -> None:
    paths = {name: saved(CONFIGS[kind], seed, tmp_path / name) for seed, name in enumerate(("base", "a", "b"))}
    like = empty_weights(paths["base"], "float32")
    merger = Merger(opened(paths), "base")
    recipe = Recipe(method="linear", weights={"a": (0.25,), "b": (0.75,)})
    out = tmp_path / "out"
    AutoModelForCausalLM.from_config(CONFIGS[kind]).save_pretrained(out)
    save_file(dict(merger.merged(recipe, like)), out / "model.safetensors", metadata={"format": "pt"})

    models = [AutoModelForCausalLM.from_pretrained(paths[name], dtype=torch.float32) for name in ("a", "b")]
    with torch.no_grad():
        for mine, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            mine.mul_(0.25).add_(other, alpha=0.75)
        expected = models[0].eval()(torch.arange(3, 19)[None]).logits
    torch.testing.assert_close(logits(out), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_corner_writes_the_files_of_that_checkpoint(kind: str, tmp_path: Path) -> None:
    paths = {name: saved(CONFIGS[kind], seed, tmp_path / name) for seed, name in enumerate(("base", "a"))}
    like = empty_weights(paths["base"], "float32")
    merged = dict(Merger(opened(paths), "base").merged(only("a"), like))
    there = load_file(paths["a"] / "model.safetensors")
    assert set(merged) == set(there)
    assert all(torch.equal(merged[name], there[name]) for name in there)


@pytest.mark.parametrize("kind", ["mixtral (experts)", "qwen3 moe (experts)", "llama tied"])
def test_merging_writes_into_the_live_model(kind: str, tmp_path: Path) -> None:
    from workers.layouts import as_stored

    paths = {name: saved(CONFIGS[kind], seed, tmp_path / name) for seed, name in enumerate(("base", "a"))}
    live = AutoModelForCausalLM.from_pretrained(paths["base"], dtype=torch.float32).eval()
    named = {
        n: t.detach() for n, t in live.state_dict(keep_vars=True).items() if n != "lm_head.weight" or "tied" not in kind
    }
    with torch.no_grad():
        Merger(opened(paths), "base").write(only("a"), as_stored(named, live.config.model_type))
        found = live(torch.arange(3, 19)[None]).logits
    torch.testing.assert_close(found, logits(paths["a"]), rtol=1e-5, atol=1e-5)
