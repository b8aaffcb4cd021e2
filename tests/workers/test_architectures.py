"""Real model classes, made tiny on the spot: what is merged is what transformers would load."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from search_spaces.errors import InputError
from search_spaces.recipe import Recipe, only
from storage.checkpoints import Checkpoint, Source
from workers.engine import Request
from workers.layouts import as_stored
from workers.merger import Merger
from workers.model_classes import auto_class
from workers.prompts import load_tokenizer
from workers.transformers_engine import TransformersEngine, empty_weights

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
SIGHT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
QWEN_VL: dict[str, Any] = {
    "text_config": GROUPED
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
    "image_token_id": 47,
    "video_token_id": 46,
    "vision_start_token_id": 45,
    "vision_end_token_id": 44,
}
SEEING = {
    "llava": tf.LlavaConfig(
        text_config={"model_type": "llama", **GROUPED},
        vision_config={"model_type": "clip_vision_model", "projection_dim": 16, **SIGHT},
        image_token_index=47,
    ),
    "gemma3": tf.Gemma3Config(
        text_config=GROUPED, vision_config=SIGHT, mm_tokens_per_image=4, image_token_index=47, boi_token_index=45
    ),
    "qwen2-vl": tf.Qwen2VLConfig(
        **QWEN_VL,
        vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 16, "patch_size": 4},
    ),
    "qwen2.5-vl": tf.Qwen2_5_VLConfig(
        **QWEN_VL,
        vision_config={"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 16},
    ),
    "smolvlm": tf.SmolVLMConfig(text_config={"model_type": "llama", **GROUPED}, vision_config=SIGHT, image_token_id=47),
    "mistral3": tf.Mistral3Config(
        text_config={"model_type": "mistral", **GROUPED},
        vision_config={"model_type": "pixtral", **SIGHT, "patch_size": 4, "head_dim": 8},
        image_token_index=47,
    ),
}
CONFIGS = SEEING | {
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


def class_of(kind: str) -> Any:
    return AutoModelForImageTextToText if kind in SEEING else AutoModelForCausalLM


def saved(kind: str, seed: int, directory: Path) -> Path:
    torch.manual_seed(seed)
    model = class_of(kind).from_config(CONFIGS[kind])
    for parameter in model.parameters():  # biases and norms too
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return directory


def opened(paths: dict[str, Path]) -> dict[str, Any]:
    return {name: Checkpoint(Source(name=name, model=str(path))).tensors for name, path in paths.items()}


def logits(path: Path) -> Tensor:
    model = auto_class(AutoConfig.from_pretrained(path)).from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return torch.as_tensor(model(torch.arange(3, 19)[None]).logits)


def greedy(model: Any, tokens: list[int], steps: int) -> list[int]:
    """What the model writes behind these tokens, one forward pass a token, up to its end token."""
    written: list[int] = []
    with torch.no_grad():
        while len(written) < steps and (not written or written[-1] != 2):
            written.append(int(model(input_ids=torch.tensor([[*tokens, *written]])).logits[0, -1].argmax()))
    return written


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_merge_is_what_transformers_makes_of_averaged_state_dicts(kind: str, tmp_path: Path) -> None:
    paths = {name: saved(kind, seed, tmp_path / name) for seed, name in enumerate(("base", "a", "b"))}
    like = empty_weights(paths["base"], "float32")
    merger = Merger(opened(paths), "base")
    recipe = Recipe(method="linear", weights={"a": (0.25,), "b": (0.75,)})
    out = tmp_path / "out"
    class_of(kind).from_config(CONFIGS[kind]).save_pretrained(out)
    save_file(dict(merger.merged(recipe, like)), out / "model.safetensors", metadata={"format": "pt"})

    models = [class_of(kind).from_pretrained(paths[name], dtype=torch.float32) for name in ("a", "b")]
    with torch.no_grad():
        for mine, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            mine.mul_(0.25).add_(other, alpha=0.75)
        expected = models[0].eval()(torch.arange(3, 19)[None]).logits
    torch.testing.assert_close(logits(out), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_corner_writes_the_files_of_that_checkpoint(kind: str, tmp_path: Path) -> None:
    paths = {name: saved(kind, seed, tmp_path / name) for seed, name in enumerate(("base", "a"))}
    like = empty_weights(paths["base"], "float32")
    merged = dict(Merger(opened(paths), "base").merged(only("a"), like))
    there = load_file(paths["a"] / "model.safetensors")
    assert set(merged) == set(there)
    assert all(torch.equal(merged[name], there[name]) for name in there)


@pytest.mark.parametrize("kind", ["mixtral (experts)", "qwen3 moe (experts)", "llama tied", *SEEING])
def test_merging_writes_into_the_live_model(kind: str, tmp_path: Path) -> None:
    paths = {name: saved(kind, seed, tmp_path / name) for seed, name in enumerate(("base", "a"))}
    live = class_of(kind).from_pretrained(paths["base"], dtype=torch.float32).eval()
    stored = opened(paths)
    named = {n: t.detach() for n, t in as_stored(live.state_dict(keep_vars=True), live).items() if n in stored["base"]}
    with torch.no_grad():
        Merger(stored, "base").write(only("a"), named)
        found = live(torch.arange(3, 19)[None]).logits
    torch.testing.assert_close(found, logits(paths["a"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", SEEING)
def test_a_vision_language_model_answers_text_the_same_alone_and_in_a_batch(
    kind: str, models: Path, tmp_path: Path
) -> None:
    base = saved(kind, 0, tmp_path / "base")
    engine = TransformersEngine(base, load_tokenizer(models / "alpha"), dtype="float32", device="cpu")
    assert engine.context == 64
    requests = tuple(Request(prompt=tuple(range(6, 6 + n)), continuation=(7, 9)) for n in (3, 9, 14))
    together = engine.loglikelihood(requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = engine.loglikelihood((request,))
        assert alone.total == pytest.approx(answer.total, abs=1e-4)
    model, tokenizer = (
        class_of(kind).from_pretrained(base, dtype=torch.float32).eval(),
        load_tokenizer(models / "alpha"),
    )
    written = engine.generate(tuple(Request(prompt=r.prompt, max_new_tokens=4) for r in requests))
    for request, answer in zip(requests, written, strict=True):
        assert answer.text == tokenizer.decode(greedy(model, list(request.prompt), 4), skip_special_tokens=True)


def test_a_model_that_answers_no_prompt_is_refused_but_its_head_can_be_merged(tmp_path: Path) -> None:
    paths = {}
    for seed, name in enumerate(("base", "a")):
        torch.manual_seed(seed)
        paths[name] = tmp_path / name
        tf.LlamaForSequenceClassification(tf.LlamaConfig(**GROUPED, num_labels=3)).save_pretrained(paths[name])
    with pytest.raises(InputError, match=r"answers prompts with text, but it is a LlamaForSequenceClassification\.$"):
        empty_weights(paths["base"], "float32")
    sources = opened(paths)
    merged = dict(Merger(sources, "base").merged(Recipe(method="wise_ft", weights={"a": (0.5,)}), sources["base"]))
    half = (sources["base"]["score.weight"] + sources["a"]["score.weight"]) / 2
    torch.testing.assert_close(merged["score.weight"], half)
