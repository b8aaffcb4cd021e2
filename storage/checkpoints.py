"""Reading checkpoints: safetensors only, memory-mapped, checked before use."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import xxhash
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from storage.adapters import apply_adapter
from storage.errors import CheckpointError
from storage.files import file_digest

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a checkpoint comes from: a directory or hub id (``id@revision``), and a LoRA adapter on top of it."""

    name: str
    model: str
    adapter: str | None = None


class Checkpoint:
    """One opened checkpoint. Its tensors are views of mapped files: nothing is read until it is used, and every
    process of a machine shares the pages.
    """

    def __init__(self, source: Source) -> None:
        """Open it; raises CheckpointError with the file that is missing, foreign or broken."""
        self.name = source.name
        self.path = locate(source.model)
        self.adapter = None if source.adapter is None else locate(source.adapter)
        self.config = read_json(self.path / "config.json")
        self._files = _weight_files(self.path)
        self.tensors: Mapping[str, Tensor] = _open(self._files)
        if self.adapter is not None:
            self.tensors = apply_adapter(self.tensors, self.adapter)

    @property
    def architecture(self) -> str:
        """The model class that the config names."""
        return str((self.config.get("architectures") or [self.config.get("model_type", "unknown")])[0])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors.values())

    @cached_property
    def fingerprint(self) -> str:
        """Digest (hex) of every weight file's content and of the config: what identifies this checkpoint."""
        digest = xxhash.xxh3_128()
        for path in [*self._files, *(_adapter_files(self.adapter) if self.adapter else ())]:
            digest.update(path.name.encode())
            digest.update(bytes.fromhex(file_digest(path)))
        digest.update(json.dumps(self.config, sort_keys=True).encode())
        return digest.hexdigest()


def locate(model: str) -> Path:
    """The directory of a model: a local path as it is, a hub id (``id@revision``) downloaded or from the cache."""
    path = Path(model)
    if path.is_dir():
        return path
    name, _, revision = model.partition("@")
    if path.is_absolute() or model.startswith(".") or name.count("/") != 1:
        raise CheckpointError(f"a checkpoint must be a directory or a hub id, but there is no directory {model}.")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_WANTED)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
        reason = str(e).strip().split("\n")[0]
        raise CheckpointError(
            f"a checkpoint must be a directory or a hub id that can be had, but {model} cannot: {reason}"
        ) from e


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises CheckpointError where it is missing or is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"a checkpoint must have a {path.name}, but there is none in {path.parent}.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise CheckpointError(f"{path.name} must be JSON, but {path} is not: {e}.") from e
    if not isinstance(document, dict):
        raise CheckpointError(f"{path.name} must be a JSON object, but {path} holds a {type(document).__name__}.")
    return document


def open_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of one safetensors file as a view of the mapped file, by name in the file's order."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping, has no __iter__)
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"a weight file must be whole safetensors, but {path} is not: {e}.") from e


def tensor_digest(tensor: Tensor) -> str:
    """XXH3-128 (hex) of a tensor's bytes in memory order."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return xxhash.xxh3_128_hexdigest(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def _weight_files(directory: Path) -> list[Path]:
    if (directory / _INDEX).is_file():
        return _indexed_files(directory)
    if (directory / _SINGLE).is_file():
        return [directory / _SINGLE]
    pickled = sorted(p.name for suffix in ("*.bin", "*.pt", "*.pth") for p in directory.glob(suffix))
    if pickled:
        raise CheckpointError(
            f"weights must be safetensors (a pickle can run code when it is opened), but {directory} holds "
            f"{pickled[0]}; load it in transformers and save_pretrained() writes safetensors."
        )
    raise CheckpointError(f"a checkpoint must hold {_SINGLE} or {_INDEX}, but {directory} holds neither.")


def _indexed_files(directory: Path) -> list[Path]:
    weight_map = read_json(directory / _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{_INDEX} must have a weight_map, but the one in {directory} has none.")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{_INDEX} must name safetensors files beside it, but in {directory} it names {name!r}."
            )
        if not (directory / name).is_file():
            raise CheckpointError(f"every file that {_INDEX} names must be there, but {directory / name} is missing.")
    return [directory / name for name in names]


def _open(files: list[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in files:
        for name, tensor in open_tensors(path).items():
            if name in tensors:
                raise CheckpointError(f"a tensor must stand in one file, but {name} stands in two, one of them {path}.")
            tensors[name] = tensor
    return tensors


def _adapter_files(adapter: Path) -> list[Path]:
    return [adapter / "adapter_config.json", adapter / "adapter_model.safetensors"]
