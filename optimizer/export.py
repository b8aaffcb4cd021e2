"""Export: a trial's merge as an ordinary Hugging Face model directory, bit-identical to what was scored."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optimizer.card import model_card
from optimizer.mergekit import mergekit_yaml
from optimizer.spec import BASE, Spec, from_document
from optimizer.study import versions
from search_spaces.errors import InputError
from search_spaces.recipe import Recipe, digest_of
from storage.checkpoints import Checkpoint, open_tensors, tensor_digest
from storage.files import whole_directory
from storage.records import SPLITS, Measured
from storage.store import Store
from storage.tensor_files import write_tensors
from workers.merger import Merger
from workers.transformers_engine import empty_weights

_SHARD_BYTES = 5 * 10**9
_COPIED = ("*.json", "*.jinja", "*.model", "*.txt")
_OWN = ("model.safetensors.index.json", "merge_recipe.json", "adapter_config.json")


class ExportError(Exception):
    """What was written is not what was scored; nothing is left behind."""


def export_trial(store: Store, name: str, number: int, out: Path) -> Path:
    """Write one trial's merge to the directory ``out``, which appears whole or not at all.

    Raises: InputError where ``out`` exists, the trial is not measured, or a checkpoint has changed since the study
        began; ExportError where the tensors written are not bit for bit those that were scored.
    """
    if out.exists():
        raise InputError(f"the directory to write must not exist, but {out} does.")
    record = store.study(name)
    spec = from_document(dict(record.spec))
    measured = store.with_marks(name, number)
    checkpoints = _opened(spec, measured.recipe, record.fingerprints)
    with whole_directory(out) as staging:
        _copy_config(checkpoints[BASE].path, staging, spec.workers.dtype)
        digests = _write_weights(spec, measured.recipe, checkpoints, staging)
        _verify(staging, digests, measured)
        by_split = {s: store.measured(name, s) for s in SPLITS}
        _write(staging / "mergekit.yaml", mergekit_yaml(spec, measured.recipe, checkpoints))
        (staging / "README.md").write_text(model_card(store, name, number, spec, by_split), encoding="utf-8")
        manifest = _manifest(record.name, record.spec_digest, measured, record.fingerprints, digests)
        _write(staging / "merge_recipe.json", json.dumps(manifest, indent=2) + "\n")
    store.add_export(name, number, str(out.absolute()), measured.digest)
    return out


def _opened(spec: Spec, recipe: Recipe, fingerprints: Mapping[str, str]) -> dict[str, Checkpoint]:
    """Base and the recipe's checkpoints, in the study's order; their content must be what was scored."""
    wanted = {BASE, *recipe.weights}
    opened = {s.name: Checkpoint(s) for s in spec.sources if s.name in wanted}
    for name, checkpoint in opened.items():
        if checkpoint.fingerprint != fingerprints[name]:
            raise InputError(
                f"a checkpoint must be what it was when the study began, but {name} ({checkpoint.path}) has changed: "
                f"fingerprint {checkpoint.fingerprint[:12]}, not {fingerprints[name][:12]}."
            )
    return opened


def _write_weights(
    spec: Spec, recipe: Recipe, checkpoints: Mapping[str, Checkpoint], directory: Path
) -> dict[str, str]:
    """Shards with their index; a tensor or two in memory at a time. Returns the digest of every tensor."""
    like = empty_weights(checkpoints[BASE].path, spec.workers.dtype)
    merger = Merger({name: c.tensors for name, c in checkpoints.items()}, BASE, seed=spec.search.seed)
    count = sum(1 for _ in _shards(like))
    digests: dict[str, str] = {}
    places: dict[str, str] = {}
    for i, names in enumerate(_shards(like), 1):
        file = "model.safetensors" if count == 1 else f"model-{i:05d}-of-{count:05d}.safetensors"
        shard = {name: like[name] for name in names}
        write_tensors(directory / file, shard, _digested(merger.merged(recipe, shard), digests))
        places |= dict.fromkeys(names, file)
    if count > 1:
        total = sum(t.nbytes for t in like.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        _write(directory / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
    return digests


def _digested(tensors: Iterator[tuple[str, Tensor]], digests: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        if not bool(torch.isfinite(tensor).all()):
            raise ExportError(f"every tensor must be finite, but {name} of the merge is not.")
        digests[name] = tensor_digest(tensor)
        yield name, tensor


def _shards(like: Mapping[str, Tensor]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, tensor in like.items():
        if names and size + tensor.nbytes > _SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    yield names


def _verify(directory: Path, digests: Mapping[str, str], measured: Measured) -> None:
    """Read back what was written and hold it against what was scored."""
    read: dict[str, str] = {}
    for path in sorted(directory.glob("*.safetensors")):
        read |= {name: tensor_digest(tensor) for name, tensor in open_tensors(path).items()}
    if read != dict(digests):
        wrong = next(name for name in digests if read.get(name) != digests[name])
        raise ExportError(f"what is read back must be what was written, but {wrong} is not.")
    if digest_of(digests) != measured.digest:
        raise ExportError(
            f"an export must be bit for bit what was scored, but trial {measured.number} has digest "
            f"{measured.digest[:12]} and the export {digest_of(digests)[:12]}."
        )


def _copy_config(base: Path, directory: Path, dtype: str) -> None:
    for pattern in _COPIED:
        for path in base.glob(pattern):
            if path.name not in _OWN and path.is_file():
                shutil.copyfile(path, directory / path.name)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = dtype
    _write(directory / "config.json", json.dumps(config, indent=2) + "\n")


def _manifest(
    name: str,
    spec_digest: str,
    measured: Measured,
    fingerprints: Mapping[str, str],
    digests: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "study": name,
        "trial": measured.number,
        "spec_digest": spec_digest,
        "recipe": measured.recipe.to_json(),
        "recipe_digest": measured.recipe.digest,
        "inputs": {n: fingerprints[n] for n in [BASE, *measured.recipe.weights] if n in fingerprints},
        "scores": {o: s.to_json() for o, s in measured.scores.items()},
        "versions": versions(),
        "merge_digest": measured.digest,
        "tensors": dict(digests),
    }


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
