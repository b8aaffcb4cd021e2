"""Reading checkpoints: safetensors only, memory-mapped, checked before use."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
import xxhash
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from storage.adapters import apply_adapter
from storage.errors import CheckpointError
from storage.file_records import FileRecord, FileRecords, Stamps
from storage.model_directory import CODE, INDEX, WANTED, check_files, read_json, weight_files
from storage.staging import is_url, stage
from storage.tensor_files import open_tensors

_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers", "num_encoder_layers")
_FEW = 1000
"""Layers that are soon built, whatever the weights are."""

HUB = "hf://"
_KERNEL = "_implementation"
_CLASS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,199}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a checkpoint comes from: a directory, hub id (``id@revision``) or URL, and a LoRA adapter on top of it.

    ``trust_remote_code``: the Python files in its directory may run; then they are part of its content.
    """

    name: str
    model: str
    adapter: str | None = None
    trust_remote_code: bool = False

    @property
    def staged(self) -> bool:
        """Whether any of it is fetched from a URL."""
        return is_url(self.model) or is_url(self.adapter or "")


class Checkpoint:
    """One opened checkpoint. Its tensors are views of mapped files: nothing is read until it is used, and every
    process of a machine shares the pages.
    """

    def __init__(self, source: Source, known: FileRecords | None = None) -> None:
        """Open it; raises CheckpointError with the file that is missing, foreign or broken.

        Args:
            known: what its files were when the study began; those that look the same need not be read for it.
        """
        self.name = source.name
        self.trust_remote_code = source.trust_remote_code
        self.path = locate(source.model, code=source.trust_remote_code)
        self.adapter = None if source.adapter is None else locate(source.adapter)
        self.config = _config(self.path)
        if self.trust_remote_code:
            _check_code(self.path, self.config)
        files = weight_files(self.path)
        self._files = list(files)
        self._known = known or {}
        self._paths = self._identifying()
        self._stamps = Stamps(self._paths)
        self.tensors: Mapping[str, Tensor] = _open(files)
        _check_layers(self.path, self.config, len(self.tensors))
        if self.adapter is not None:
            self.tensors = apply_adapter(self.tensors, self.adapter)

    @property
    def architecture(self) -> str:
        """The model class that the config names."""
        return str((self.config.get("architectures") or [self.config.get("model_type") or "unknown"])[0])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors.values())

    @property
    def code(self) -> list[Path]:
        """The Python files of its directory where they may run, else none."""
        return sorted(self.path.rglob(CODE)) if self.trust_remote_code else []

    @cached_property
    def records(self) -> FileRecords:
        """Of each file that identifies this checkpoint: of its weights, of an adapter, and of the code that may run.

        What is not known already is read.
        """
        return {name: FileRecord.of(path, self._known.get(name)) for name, path in self._paths.items()}

    @cached_property
    def fingerprint(self) -> str:
        """Digest (hex) of the content of these files and of the config: what identifies this checkpoint."""
        digest = xxhash.xxh3_128()
        for name, record in self.records.items():
            digest.update(Path(name).name.encode())
            digest.update(bytes.fromhex(record.digest))
        digest.update(json.dumps(self.config, sort_keys=True).encode())
        return digest.hexdigest()

    def require(self, fingerprint: str, began: FileRecords | None = None) -> None:
        """Raises CheckpointError where the content is not that of this fingerprint.

        Args:
            began: what its files were then, where that is known, to name the one that has changed.
        """
        if self.fingerprint == fingerprint:
            return
        began = self._known if began is None else began
        changed = [n for n, record in self.records.items() if n in began and record.digest != began[n].digest]
        self._refuse(self._paths[changed[0]] if changed else self.path)

    def require_untouched(self) -> None:
        """Raises CheckpointError where a file is not the one any more that was opened. It costs a look at each file's
        stamps, so that it can be asked in every trial.
        """
        changed = self._stamps.changed(self._known)
        if changed is not None:
            self._refuse(changed)

    def _refuse(self, path: Path) -> NoReturn:
        raise CheckpointError(
            f"a checkpoint must be what it was when the study began, but {self.name} has changed: {path}."
        )

    def _identifying(self) -> dict[str, Path]:
        """Its files by their names, those of subdirectories with their way there."""
        own = {str(path.relative_to(self.path)): path for path in (*self._files, *self.code)}
        adapter = _adapter_files(self.adapter) if self.adapter else []
        return own | {path.name: path for path in adapter}


def locate(model: str, *, code: bool = False) -> Path:
    """The directory of a model: a local path as it is, a hub id (``id@revision``, or with ``hf://`` before it)
    downloaded or from the cache, another URL staged as :mod:`storage.staging` does.

    Args:
        code: its Python files, too.
    Raises: CheckpointError where there is none, and where its files lie outside of it.
    """
    model = model.removeprefix(HUB)
    if is_url(model):
        return stage(model, code=code)
    path = Path(model)
    try:
        if not path.is_dir():
            path = _from_hub(model, path, code)
    except OSError as e:  # a name that no file system takes
        raise CheckpointError(
            f"a checkpoint must be a directory or a hub id, but {model[:200]!r} is none: {e.strerror}."
        ) from e
    check_files(path, code=code)
    return path


def _from_hub(model: str, path: Path, code: bool) -> Path:
    if path.is_file():
        raise CheckpointError(f"a checkpoint must be a directory that holds safetensors, but {model} is a file.")
    name, _, revision = model.partition("@")
    if path.is_absolute() or model.startswith(".") or name.count("/") != 1:
        raise CheckpointError(f"a checkpoint must be a directory or a hub id, but there is no directory {model}.")
    wanted = [*WANTED, *([CODE] if code else [])]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as e:
        reason = str(e).strip().split("\n")[0]
        raise CheckpointError(
            f"a checkpoint must be a directory or a hub id that can be had, but {model} cannot: {reason}"
        ) from e


def _config(directory: Path) -> dict[str, Any]:
    """The config; the names in it end up in messages and tables, so they must be names."""
    config = read_json(directory / "config.json")
    names = config.get("architectures") or [config.get("model_type") or "unknown"]
    if not isinstance(names, list) or not all(isinstance(n, str) and _CLASS_NAME.fullmatch(n) for n in names):
        raise CheckpointError(
            f"config.json must name its architecture and model_type, but {directory} has {str(names)[:200]!r} there."
        )
    _check_kernels(directory, config)
    return config


def _check_kernels(directory: Path, config: Mapping[str, Any]) -> None:
    """transformers takes an attention implementation ``org/name`` for a kernel on the hub, loads it and runs it."""
    for key, value in config.items():
        if isinstance(value, dict) and not key.endswith(_KERNEL):
            _check_kernels(directory, value)
        elif key.endswith(_KERNEL) and any("/" in text for text in _texts(value)):
            raise CheckpointError(
                f"a model must run on transformers' own code, but the config in {directory} asks for the kernel "
                f"{str(value)[:200]!r}; take {key} out of it."
            )


def _check_layers(directory: Path, config: Mapping[str, Any], tensors: int) -> None:
    """A config of a billion layers would be built, layer for layer, before anyone saw that the weights have none."""
    for key, value in config.items():
        if isinstance(value, dict):
            _check_layers(directory, value, tensors)
        elif key in _LAYERS and isinstance(value, int) and value > max(tensors, _FEW):
            raise CheckpointError(
                f"config.json must describe the weights beside it, but in {directory} it has {key} {value:,} and the "
                f"weights are {tensors} tensors."
            )


def _check_code(directory: Path, config: Mapping[str, Any]) -> None:
    """Code that may run must lie in the directory: only then does the fingerprint hold it."""
    elsewhere = [v for v in _texts(config.get("auto_map")) if "--" in v]
    if elsewhere:
        raise CheckpointError(
            f"the code of a model must lie in its directory, but {directory} names {elsewhere[0][:200]!r}; "
            "copy the files there and name them without the repository."
        )


def _texts(value: Any) -> list[str]:
    """Every text in a value of JSON."""
    if isinstance(value, str):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for child in children for text in _texts(child)]


def tensor_digest(tensor: Tensor) -> str:
    """XXH3-128 (hex) of a tensor's bytes in memory order."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return xxhash.xxh3_128_hexdigest(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def _open(files: Mapping[Path, frozenset[str]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path, announced in files.items():
        found = open_tensors(path)
        lacking = sorted(announced - set(found))
        if lacking:
            raise CheckpointError(f"a weight file must hold what {INDEX} says, but {path} lacks {lacking[0][:200]!r}.")
        for name, tensor in found.items():
            if name in tensors:
                raise CheckpointError(f"a tensor must stand in one file, but {name} stands in two, one of them {path}.")
            tensors[name] = tensor
    return tensors


def _adapter_files(adapter: Path) -> list[Path]:
    return [adapter / "adapter_config.json", adapter / "adapter_model.safetensors"]
