"""LoRA adapters as PEFT stores them, against the arithmetic of the paper."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from storage.adapters import apply_adapter
from storage.errors import CheckpointError

MODULE = "model.layers.0.self_attn.q_proj"
OTHER = "model.layers.0.mlp.up_proj"


def base(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = {f"{MODULE}.weight": (6, 4), f"{OTHER}.weight": (10, 4), "model.norm.weight": (4,)}
    return {name: torch.randn(shape, generator=g).to(dtype) for name, shape in shapes.items()}


def adapter(
    directory: Path,
    modules: dict[str, tuple[int, int, int]],
    extra: dict[str, torch.Tensor] | None = None,
    **config: Any,
) -> Path:
    """``modules`` holds (rank, outputs, inputs)."""
    directory.mkdir(parents=True, exist_ok=True)
    g = torch.Generator().manual_seed(1)
    tensors = dict(extra or {})
    for module, (rank, outputs, inputs) in modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, inputs, generator=g)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(outputs, rank, generator=g)
    save_file(tensors, directory / "adapter_model.safetensors")
    options = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none"} | config
    (directory / "adapter_config.json").write_text(json.dumps(options))
    return directory


def product(directory: Path, module: str) -> torch.Tensor:
    from safetensors.torch import load_file

    tensors = load_file(directory / "adapter_model.safetensors")
    sides = [tensors[f"base_model.model.{module}.lora_{side}.weight"] for side in "BA"]
    return sides[0] @ sides[1]


@settings(max_examples=20, deadline=None)
@given(rank=st.integers(1, 8), alpha=st.sampled_from([1, 8, 16.5, 64]), rs=st.booleans())
def test_any_rank_and_alpha(rank: int, alpha: float, rs: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = adapter(tmp_path_factory.mktemp("lora"), {MODULE: (rank, 6, 4)}, r=rank, lora_alpha=alpha, use_rslora=rs)
    merged = apply_adapter(base(), path)
    scale = alpha / rank**0.5 if rs else alpha / rank
    torch.testing.assert_close(merged[f"{MODULE}.weight"], base()[f"{MODULE}.weight"] + scale * product(path, MODULE))


def test_patterns_set_rank_and_alpha_by_module(tmp_path: Path) -> None:
    path = adapter(
        tmp_path / "a",
        {MODULE: (4, 6, 4), OTHER: (2, 10, 4)},
        rank_pattern={"q_proj": 4},
        alpha_pattern={"q_proj": 20},
    )
    merged = apply_adapter(base(), path)
    for module, scale in ((MODULE, 5.0), (OTHER, 4.0)):
        expected = base()[f"{module}.weight"] + scale * product(path, module)
        torch.testing.assert_close(merged[f"{module}.weight"], expected)


def test_what_is_not_adapted_is_the_bases_own_memory(tmp_path: Path) -> None:
    tensors = base(torch.bfloat16)
    merged = apply_adapter(tensors, adapter(tmp_path / "a", {MODULE: (2, 6, 4)}))
    assert merged["model.norm.weight"].data_ptr() == tensors["model.norm.weight"].data_ptr()
    assert {t.dtype for t in merged.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("modules", "config", "message"),
    [
        ({"model.layers.9.self_attn.q_proj": (2, 6, 4)}, {}, "the base has none"),
        ({MODULE: (2, 7, 4)}, {}, "fit its base's shapes"),
        ({MODULE: (2, 6, 4)}, {"modules_to_save": ["lm_head"]}, "uses modules_to_save; merge it with peft"),
        ({MODULE: (2, 6, 4)}, {"use_dora": True}, "uses use_dora"),
        ({MODULE: (2, 6, 4)}, {"bias": "all"}, "bias or fan_in_fan_out"),
        ({MODULE: (2, 6, 4)}, {"peft_type": "IA3"}, "must be a LoRA"),
    ],
)
def test_what_cannot_be_applied_is_refused_never_ignored(
    modules: dict[str, tuple[int, int, int]], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        apply_adapter(base(), adapter(tmp_path / "a", modules, **config))


def test_whole_tensors_beside_the_matrices_are_refused(tmp_path: Path) -> None:
    path = adapter(tmp_path / "a", {MODULE: (2, 6, 4)}, extra={"base_model.model.lm_head.weight": torch.zeros(3, 4)})
    with pytest.raises(CheckpointError, match=r"LoRA matrices alone, but .* holds base_model\.model\.lm_head\.weight"):
        apply_adapter(base(), path)


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    lonely = {f"base_model.model.{OTHER}.lora_A.weight": torch.zeros(2, 4)}
    with pytest.raises(CheckpointError, match="lacks one of"):
        apply_adapter(base(), adapter(tmp_path / "a", {MODULE: (2, 6, 4)}, extra=lonely))


@pytest.mark.parametrize("alpha", ["8", None, [1], float("nan"), float("inf"), 1e30, True])
def test_an_alpha_that_is_no_number_is_refused(tmp_path: Path, alpha: object) -> None:
    for change in ({"lora_alpha": alpha}, {"alpha_pattern": {"q_proj": alpha}}):
        path = adapter(tmp_path / "a", {MODULE: (2, 6, 4)}, **change)
        with pytest.raises(CheckpointError, match="alphas must be numbers"):
            apply_adapter(base(), path)


@pytest.mark.parametrize("patterns", [2, "q_proj", ["q_proj"], True])
def test_alpha_patterns_that_are_no_mapping_are_refused(tmp_path: Path, patterns: object) -> None:
    path = adapter(tmp_path / "a", {MODULE: (2, 6, 4)}, alpha_pattern=patterns)
    with pytest.raises(CheckpointError, match="alpha_pattern must map patterns to numbers"):
        apply_adapter(base(), path)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*)*x", "[", ".*.*.*.*.*x", "a" * 300, "(a)\\1"])
def test_a_pattern_that_could_run_for_ever_is_refused(tmp_path: Path, pattern: str) -> None:
    path = adapter(tmp_path / "a", {MODULE: (2, 6, 4)}, alpha_pattern={pattern: 1})
    with pytest.raises(CheckpointError, match="patterns must be plain regular expressions"):
        apply_adapter(base(), path)


def test_an_adapter_of_rank_zero_adds_nothing(tmp_path: Path) -> None:
    merged = apply_adapter(base(), adapter(tmp_path / "a", {MODULE: (0, 6, 4)}))
    assert torch.equal(merged[f"{MODULE}.weight"], base()[f"{MODULE}.weight"])
