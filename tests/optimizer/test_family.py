"""Corners of real checkpoints, on tiny models made on the spot: what `check` refuses, what it lets pass, and why."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from optimizer.export import export_trial
from optimizer.preflight import Report, check
from optimizer.spec import load_spec
from optimizer.study import DriverStudy, create_study
from storage.store import Store
from workers.pool import LocalPool
from workers.worker import Worker

HEAD = "lm_head.weight"
EMBEDDINGS = "model.embed_tokens.weight"
SMALL: dict[str, Any] = {
    "vocab_size": 49,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
Family = Callable[..., Path]


@pytest.fixture
def family(models: Path, tmp_path: Path) -> Family:
    """Writes a base and the checkpoint ``a`` with what makes them; returns their directory."""

    def write(base: Callable[[], Any], a: Callable[[], Any] | None = None) -> Path:
        for seed, (name, make) in enumerate((("base", base), ("a", a or base), ("b", base))):
            torch.manual_seed(seed)
            make().save_pretrained(tmp_path / "family" / name)
            for path in models.joinpath("alpha").glob("*token*"):
                shutil.copy(path, tmp_path / "family" / name)
            shutil.copy(models / "alpha" / "chat_template.jinja", tmp_path / "family" / name)
        return tmp_path / "family"

    return write


def llama(**changes: Any) -> Callable[[], Any]:
    return lambda: LlamaForCausalLM(LlamaConfig(**SMALL | changes))


def llava() -> Any:
    sight = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=16,
    )
    return LlavaForConditionalGeneration(
        LlavaConfig(text_config=LlamaConfig(**SMALL), vision_config=sight, image_token_index=48)
    )


def change(directory: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Edit the stored tensors of a checkpoint."""
    tensors = {name: t.clone() for name, t in load_file(directory / "model.safetensors").items()}
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def checked(study_file: Callable[..., Path]) -> Callable[..., Report]:
    def run(root: Path, **changes: Any) -> Report:
        return check(load_spec(of(study_file, root, **changes)), timed=False, progress=lambda *_: None)

    return run


def of(study_file: Callable[..., Path], root: Path, **changes: Any) -> Path:
    checkpoints = [{"name": name, "model": str(root / name)} for name in ("a", "b")]
    return study_file(**{"base": str(root / "base"), "checkpoints": checkpoints} | changes)


@pytest.mark.parametrize(("rows", "verb"), [(56, "cut"), (40, "pad")])
@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_padded_differently_is_refused_with_what_mends_it(
    rows: int, verb: str, tied: bool, family: Family, checked: Callable[..., Report]
) -> None:
    root = family(llama(tie_word_embeddings=tied), llama(tie_word_embeddings=tied, vocab_size=rows))
    (problem,) = checked(root).problems
    assert f"{EMBEDDINGS} is ({rows}, 16) in a and (49, 16) in the base" in problem
    assert problem.endswith(
        f"model.resize_token_embeddings(49) in transformers and save_pretrained() {verb} a to the base's."
    )
    model = LlamaForCausalLM.from_pretrained(root / "a")
    model.resize_token_embeddings(49)
    model.save_pretrained(root / "a")
    assert checked(root).problems == ()


def test_other_shapes_get_no_hint_about_a_vocabulary(family: Family, checked: Callable[..., Report]) -> None:
    root = family(llama(), llama(intermediate_size=24))
    (problem,) = checked(root).problems
    assert "checkpoints must have the base's shapes" in problem
    assert "resize" not in problem


@pytest.mark.parametrize(("base", "a"), [(True, False), (False, True)])
def test_a_head_tied_in_one_and_not_in_another_is_refused_with_what_mends_it(
    base: bool, a: bool, family: Family, checked: Callable[..., Report]
) -> None:
    root = family(llama(tie_word_embeddings=base), llama(tie_word_embeddings=a))
    (problem,) = checked(root).problems
    assert ("a has also" if base else "a lacks") + f" {HEAD}" in problem
    assert problem.endswith(
        "one ties its head to its embeddings and the other does not: untie it in transformers and save it."
    )


@pytest.mark.parametrize("holder", ["base", "a"])
def test_a_second_copy_of_tied_embeddings_does_not_count(
    holder: str, family: Family, checked: Callable[..., Report]
) -> None:
    root = family(llama(tie_word_embeddings=True))
    change(root / holder, lambda t: t.update({HEAD: t[EMBEDDINGS].clone()}))
    report = checked(root)
    assert report.problems == ()
    assert not any("does not use" in w for w in report.warnings)


def test_a_base_without_its_head_is_refused(family: Family, checked: Callable[..., Report]) -> None:
    root = family(llama(tie_word_embeddings=False))
    for name in ("base", "a", "b"):
        change(root / name, lambda t: t.pop(HEAD))
    (problem,) = checked(root).problems
    assert f"the base does not hold {HEAD}" in problem
    assert 'config.json must say "tie_word_embeddings": true' in problem
    for name in ("base", "a", "b"):
        path = root / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    assert checked(root).problems == ()


def test_a_tensor_that_is_missing_in_one_checkpoint_is_named(family: Family, checked: Callable[..., Report]) -> None:
    root = family(llama())
    change(root / "b", lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    (problem,) = checked(root).problems
    assert problem.endswith("but b lacks model.layers.1.mlp.up_proj.weight.")


@pytest.mark.parametrize("holder", ["base", "a"])
def test_constants_of_older_versions_may_stand_in_one_checkpoint_only(
    holder: str, family: Family, checked: Callable[..., Report]
) -> None:
    root = family(llama())
    change(root / holder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    report = checked(root)
    assert report.problems == ()
    assert not any("does not use" in w for w in report.warnings)


def test_integers_and_empty_tensors_pass_and_what_no_class_uses_is_said(
    family: Family, checked: Callable[..., Report]
) -> None:
    root = family(llama())
    more = {"model.counts": torch.arange(4), "model.empty": torch.zeros(0, 3)}
    for name in ("base", "a", "b"):
        change(root / name, lambda t: t.update(more))
    report = checked(root)
    assert report.problems == ()
    (warning,) = (w for w in report.warnings if "does not use" in w)
    assert warning == (
        "LlamaForCausalLM does not use model.counts, model.empty of the base: they are neither merged nor exported."
    )


def test_a_tensor_must_not_be_whole_numbers_in_one_checkpoint_only(
    family: Family, checked: Callable[..., Report]
) -> None:
    root = family(llama())
    change(root / "a", lambda t: t.update({"model.norm.weight": torch.ones(16, dtype=torch.int32)}))
    (problem,) = checked(root).problems
    assert "a tensor must hold floats in all checkpoints or in none, but model.norm.weight of a differs." in problem


@pytest.mark.parametrize("method", ["slerp", "multislerp"])
def test_a_tensor_without_direction_is_refused_where_directions_count(
    method: str, family: Family, checked: Callable[..., Report]
) -> None:
    root = family(llama(attention_bias=True))
    name = "model.layers.0.self_attn.q_proj.bias"
    for checkpoint in ("base", "a", "b"):  # all zero in all of them, as transformers initialises biases
        change(root / checkpoint, lambda t: t[name].zero_())
    assert checked(root, search_space={"method": method}).problems == ()
    change(root / "b", lambda t: t[name].fill_(0.1))
    (problem,) = checked(root, search_space={"method": method}).problems
    assert problem == f"{method} needs tensors with a direction, but {name} is all zero in a."
    assert checked(root, search_space={"method": "linear"}).problems == ()


def test_slerp_of_three_is_refused_with_the_method_that_takes_them(
    family: Family, study_file: Callable[..., Path]
) -> None:
    root = family(llama())
    three = [{"name": n, "model": str(root / n[0])} for n in ("a", "b", "bb")]
    with pytest.raises(ValueError, match="multislerp merges more"):
        load_spec(of(study_file, root, checkpoints=three, search_space={"method": "slerp"}))


@pytest.mark.parametrize("density", [0.0, 1.5, [0.0, 1.0]])
def test_a_density_outside_its_interval_is_refused(
    density: Any, family: Family, study_file: Callable[..., Path]
) -> None:
    root = family(llama())
    with pytest.raises(ValueError, match=r"density must be a number in \(0, 1\]"):
        load_spec(of(study_file, root, search_space={"method": "ties", "density": density}))


def test_weights_that_are_all_zero_are_refused(family: Family, study_file: Callable[..., Path]) -> None:
    search = {"trials": 8, "sampler": "random", "start_from": [{"a": 0.0, "b": 0.0}]}
    with pytest.raises(ValueError, match="must have a weight above zero"):
        load_spec(of(study_file, family(llama()), search=search))


def adapter(directory: Path, trained_on: str, inputs: int = 16) -> Path:
    directory.mkdir()
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{module}.lora_A.weight": torch.randn(2, inputs), f"{module}.lora_B.weight": torch.randn(16, 2)}
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": trained_on}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    ("trained_on", "foreign"), [("org/base", False), ("/home/me/base/", False), ("org/other-7b", True), ("", False)]
)
def test_an_adapter_of_another_base_is_told(
    trained_on: str, foreign: bool, family: Family, tmp_path: Path, checked: Callable[..., Report]
) -> None:
    root = family(llama())
    lora = {"name": "lora", "model": str(root / "base"), "adapter": str(adapter(tmp_path / "lora", trained_on))}
    report = checked(root, checkpoints=[lora, {"name": "b", "model": str(root / "b")}])
    assert report.problems == ()
    told = [w for w in report.warnings if "says that its base is" in w]
    assert len(told) == foreign
    if foreign:
        assert told[0].startswith("the adapter of lora says that its base is org/other-7b, but it is put on ")


def test_an_adapter_that_does_not_fit_its_base_is_refused(
    family: Family, tmp_path: Path, checked: Callable[..., Report]
) -> None:
    root = family(llama())
    lora = {"name": "lora", "model": str(root / "base"), "adapter": str(adapter(tmp_path / "lora", "org/base", 24))}
    (problem,) = checked(root, checkpoints=[lora, {"name": "b", "model": str(root / "b")}]).problems
    assert problem.startswith("lora: an adapter must fit its base's shapes, but model.layers.0.self_attn.q_proj is")


def test_a_model_that_answers_no_prompt_is_refused(family: Family, checked: Callable[..., Report]) -> None:
    root = family(lambda: LlamaForSequenceClassification(LlamaConfig(**SMALL, num_labels=3)))
    (problem,) = checked(root).problems
    assert problem == (
        "the base must be a model that answers prompts with text, but it is a LlamaForSequenceClassification."
    )


def test_a_vision_language_family_is_searched_and_exported_whole(
    family: Family, study_file: Callable[..., Path], storage: str, tmp_path: Path
) -> None:
    from optimizer import loop

    root = family(llava)
    spec = load_spec(of(study_file, root, workers={"device": "cpu", "count": 1, "dtype": "bfloat16"}))
    report = check(spec, timed=True, progress=lambda *_: None)
    assert report.problems == ()
    store = Store.open(storage, create=True)
    create_study(store, spec, trials=8, fingerprints=dict(report.fingerprints))
    loop.search(DriverStudy(store, "tiny"), LocalPool(lambda: Worker(spec.setup(device="cpu"))), lambda _: None)
    out = export_trial(store, "tiny", 7, tmp_path / "out")
    store.close()
    model, info = LlavaForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert set(load_file(out / "model.safetensors")) == set(load_file(root / "base" / "model.safetensors"))
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
