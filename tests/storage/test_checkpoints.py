import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from storage.checkpoints import Checkpoint, Source, locate, tensor_digest
from storage.errors import CheckpointError


def copy(models: Path, tmp_path: Path, name: str = "alpha") -> Path:
    return Path(shutil.copytree(models / name, tmp_path / name))


def opened(path: Path) -> Checkpoint:
    return Checkpoint(Source(name="x", model=str(path)))


def test_tensors_are_those_of_the_file(models: Path) -> None:
    checkpoint = opened(models / "alpha")
    stored = load_file(models / "alpha" / "model.safetensors")
    assert set(checkpoint.tensors) == set(stored)
    assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in stored.items())
    assert checkpoint.architecture == "LlamaForCausalLM"


def test_tensors_are_views_of_the_mapped_file(models: Path) -> None:
    text = Path("/proc/self/maps")
    if not text.exists():
        pytest.skip("reads /proc/self/maps, which this system does not have; run it on Linux")
    checkpoint = opened(models / "alpha")
    assert str(models / "alpha" / "model.safetensors") in text.read_text()
    assert checkpoint.tensors


def test_sharded_files_read_as_one(models: Path, tmp_path: Path) -> None:
    path = copy(models, tmp_path)
    tensors = load_file(path / "model.safetensors")
    names = sorted(tensors)
    (path / "model.safetensors").unlink()
    places = {}
    for i, part in enumerate((names[:5], names[5:])):
        save_file({n: tensors[n] for n in part}, path / f"part-{i}.safetensors")
        places |= dict.fromkeys(part, f"part-{i}.safetensors")
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert all(torch.equal(opened(path).tensors[n], tensors[n]) for n in names)
    (path / "part-1.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"every file that .* names must be there, but .*part-1.safetensors is missing"
    ):
        opened(path)
    index.write_text(json.dumps({"weight_map": {names[0]: "../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match="must name safetensors files beside it"):
        opened(path)


def test_a_pickled_checkpoint_is_refused_with_the_way_out(models: Path, tmp_path: Path) -> None:
    path = copy(models, tmp_path)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"weights must be safetensors .*pytorch_model.bin.*save_pretrained"):
        opened(path)


@pytest.mark.parametrize("keep", [0.5, 0.001])
def test_a_truncated_file_is_refused_by_name(models: Path, tmp_path: Path, keep: float) -> None:
    path = copy(models, tmp_path) / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CheckpointError, match=r"must be whole safetensors, but .*model.safetensors is not"):
        opened(path.parent)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must be a directory or a hub id, but there is no directory"):
        locate(str(tmp_path / "nowhere"))


def test_a_directory_without_weights_is_refused(models: Path, tmp_path: Path) -> None:
    path = copy(models, tmp_path)
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="must hold model.safetensors"):
        opened(path)


def test_a_config_that_is_no_json_is_refused(models: Path, tmp_path: Path) -> None:
    path = copy(models, tmp_path)
    (path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json must be JSON"):
        opened(path)


def test_the_fingerprint_is_of_the_content(models: Path, tmp_path: Path) -> None:
    path = copy(models, tmp_path)
    assert opened(path).fingerprint == opened(models / "alpha").fingerprint
    assert opened(path).fingerprint != opened(models / "beta").fingerprint
    tensors = {name: tensor.clone() for name, tensor in load_file(path / "model.safetensors").items()}
    next(iter(tensors.values())).view(-1)[0] += 1e-3
    save_file(tensors, path / "model.safetensors")
    assert opened(path).fingerprint != opened(models / "alpha").fingerprint


def test_the_file_that_has_changed_is_named(models: Path, tmp_path: Path) -> None:
    path = copy(models, tmp_path)
    began = opened(path)
    fingerprint, records = began.fingerprint, began.records
    opened(path).require(fingerprint, records)
    shutil.copy(models / "beta" / "model.safetensors", path)
    with pytest.raises(CheckpointError, match=f"began, but x has changed: {path / 'model.safetensors'}"):
        opened(path).require(fingerprint, records)
    with pytest.raises(CheckpointError, match=f"began, but x has changed: {path}"):
        opened(path).require(fingerprint)


def test_files_that_look_as_they_are_known_are_not_read(models: Path, tmp_path: Path) -> None:
    path = copy(models, tmp_path)
    file = path / "model.safetensors"
    records, stamp = opened(path).records, file.stat().st_mtime_ns
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert opened(path).records != records
    os.utime(file, ns=(stamp, stamp))
    assert Checkpoint(Source(name="x", model=str(path)), records).records == records
    assert opened(path).records != records, "without knowing them they are read"


@pytest.mark.parametrize("change", ["replaced by a copy", "gone"])
def test_a_file_that_is_another_while_it_is_used_is_seen_by_its_stamps(
    change: str, models: Path, tmp_path: Path
) -> None:
    path = copy(models, tmp_path)
    file = path / "model.safetensors"
    used = Checkpoint(Source(name="x", model=str(path)), opened(path).records)
    unaware = opened(path)
    shutil.copy(file, tmp_path / "copy")
    file.unlink()
    if change == "gone":
        with pytest.raises(CheckpointError, match="x has changed"):
            used.require_untouched()
        return
    shutil.move(tmp_path / "copy", file)
    used.require_untouched()
    with pytest.raises(CheckpointError, match="x has changed"):
        unaware.require_untouched()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_a_tensors_digest_sees_every_bit(dtype: torch.dtype) -> None:
    tensor = torch.arange(12, dtype=torch.float32).to(dtype).view(3, 4)
    other = tensor.clone()
    assert tensor_digest(tensor) == tensor_digest(other)
    other.view(torch.uint8)[0, 0] ^= 1
    assert tensor_digest(tensor) != tensor_digest(other)
    assert tensor_digest(torch.empty(0, dtype=dtype)) == tensor_digest(torch.empty(0))
