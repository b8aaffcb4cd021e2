"""Directories that reach outside of themselves, and weights that would have to be unpickled."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from storage.checkpoints import Checkpoint, Source, locate
from storage.errors import CheckpointError


@pytest.fixture
def model(models: Path, tmp_path: Path) -> Path:
    """A copy of a model to tamper with."""
    return Path(shutil.copytree(models / "alpha", tmp_path / "model"))


def opened(path: Path, **options: Any) -> Checkpoint:
    return Checkpoint(Source(name="x", model=str(path), **options))


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors", "notes.txt", "extra.jinja"])
def test_a_link_out_of_the_directory_is_refused(model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "private").write_text("secret")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to("../private")
    with pytest.raises(CheckpointError, match=rf"must lie in its directory, but .*{name} leads to .*/private; copy"):
        opened(model)


def test_a_linked_directory_of_templates_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (model / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="additional_chat_templates leads to"):
        opened(model)


def test_links_within_the_directory_and_to_it_are_fine(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "weights")
    (model / "model.safetensors").symlink_to("weights")
    (model / "logs").symlink_to(tmp_path)  # is never read
    (tmp_path / "link").symlink_to(model)
    assert opened(tmp_path / "link").tensors.keys() == opened(model).tensors.keys()


def hub_cache(model: Path, root: Path) -> Path:
    """The same files as huggingface_hub keeps them: a snapshot of links into blobs."""
    blobs, snapshot = root / "models--org--x" / "blobs", root / "models--org--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(p for p in model.iterdir() if p.is_file())):
        path.rename(blobs / f"blob{i}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob{i}")
    return snapshot


def test_the_hub_cache_is_read_as_it_is(model: Path, tmp_path: Path) -> None:
    names = set(opened(model).tensors)
    assert set(opened(hub_cache(model, tmp_path / "hub")).tensors) == names


def test_a_blob_that_leads_out_of_the_cache_is_refused(model: Path, tmp_path: Path) -> None:
    snapshot = hub_cache(model, tmp_path / "hub")
    (tmp_path / "private.json").write_text("{}")
    blob = (snapshot / "config.json").resolve()
    blob.unlink()
    blob.symlink_to(tmp_path / "private.json")
    with pytest.raises(CheckpointError, match=r"leads to .*/private.json"):
        opened(snapshot)


def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(model: Path) -> None:
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")
    with pytest.raises(CheckpointError, match=r"must be plain files, but .*config.json is none"):
        opened(model)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "optimizer.pt", "x.pkl"])
def test_pickles_alone_are_refused_with_the_reason(model: Path, name: str) -> None:
    (model / "model.safetensors").rename(model / name)
    with pytest.raises(CheckpointError, match=f"a pickle can run code when it is opened.*{name}"):
        opened(model)


def test_pickles_beside_safetensors_are_never_opened(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from workers.prompts import load_tokenizer
    from workers.transformers_engine import TransformersEngine

    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin"):
        (model / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert opened(model).tensors
    assert TransformersEngine(model, load_tokenizer(model), dtype="float32", device="cpu").weights()
    (model / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        AutoModelForCausalLM.from_pretrained(model, use_safetensors=True)


def test_a_pickled_adapter_is_refused_with_the_reason(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "lora"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (adapter / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="a pickle can run code .*adapter_model.bin"):
        opened(model, adapter=str(adapter))


@pytest.mark.parametrize(
    "file",
    ["../other/model.safetensors", "/etc/passwd", "pytorch_model.bin", "a/b.safetensors", "..", "", "x\n.safetensors"],
)
def test_an_index_that_points_elsewhere_is_refused(model: Path, file: str) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": file}}))
    with pytest.raises(CheckpointError, match="must name safetensors files beside it"):
        opened(model)


@pytest.mark.parametrize("value", [None, 1, ["model.safetensors"], {"a": 1}])
def test_an_index_of_other_things_than_names_is_refused(model: Path, value: object) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": value}}))
    with pytest.raises(CheckpointError, match="must name safetensors files beside it"):
        opened(model)


def test_an_index_that_names_a_tensor_which_its_shard_lacks_is_refused(model: Path) -> None:
    weight_map = dict.fromkeys([*load_file(model / "model.safetensors"), "model.ghost"], "model.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"must hold what .* says, but .* lacks 'model.ghost'"):
        opened(model)


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["[bold]\x1b[2J"]},
        {"architectures": {"a": 1}},
        {"architectures": "LlamaForCausalLM"},
        {"model_type": "a\nb"},
        {"model_type": 3},
    ],
)
def test_an_architecture_that_is_no_name_is_refused(model: Path, config: dict[str, Any]) -> None:
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="must name its architecture"):
        opened(model)


@pytest.mark.parametrize(
    "change",
    [
        {"_attn_implementation": "evil/kernel"},
        {"attn_implementation": "evil/kernel@v1:f"},
        {"text_config": {"_experts_implementation": "evil/kernel"}},
        {"attn_implementation": {"": "evil/kernel"}},
    ],
)
def test_a_config_that_asks_for_a_kernel_from_the_hub_is_refused(model: Path, change: dict[str, Any]) -> None:
    config = json.loads((model / "config.json").read_text()) | change
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="must run on transformers' own code, but .*evil/kernel"):
        opened(model)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 10**9}, {"text_config": {"num_layers": 10**30}}])
def test_a_config_of_a_billion_layers_is_refused(model: Path, change: dict[str, Any]) -> None:
    config = json.loads((model / "config.json").read_text()) | change
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="must describe the weights beside it, but .* 1,000,000,000"):
        opened(model)


def test_a_config_of_python_s_own_numbers_is_read(model: Path) -> None:
    config = json.loads((model / "config.json").read_text()) | {"time_step_limit": [0.0, float("inf")]}
    (model / "config.json").write_text(json.dumps(config))
    assert opened(model).config["time_step_limit"] == [0.0, float("inf")]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x" * 300, "is none: File name too long|there is no directory"),
        ("a b/c d", "cannot: "),
        ("../..//..", "there is no directory|must have a config.json"),
        ("/dev/null", "there is no directory"),
    ],
)
def test_names_that_are_no_directory_are_refused(name: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        Checkpoint(Source(name="x", model=name))


def test_a_weight_file_is_no_checkpoint(model: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must be a directory .*, but .*model.safetensors is a file"):
        locate(str(model / "model.safetensors"))


def test_a_tensor_in_two_shards_is_refused(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    save_file(tensors, model / "again.safetensors")
    names = list(tensors)
    weight_map = {names[0]: "again.safetensors"} | dict.fromkeys(names[1:], "model.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="a tensor must stand in one file, but .* stands in two"):
        opened(model)
