"""Export: a trial's merge as an ordinary Hugging Face model directory, bit-identical to what was scored."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from optimizer.card import model_card
from optimizer.family import Progress
from optimizer.mergekit import mergekit_yaml
from optimizer.results import Row
from optimizer.spec import BASE, Spec, from_document
from optimizer.study import versions
from search_spaces.errors import InputError
from search_spaces.recipe import Recipe, digest_of
from storage.checkpoints import Checkpoint, tensor_digest
from storage.files import NoRoom, require_room, whole_directory, whole_file
from storage.model_directory import read_json
from storage.records import SPLITS, Measured
from storage.store import Store, StudyRecord
from storage.tensor_files import open_tensors, write_tensors
from workers.merger import Merger, is_finite
from workers.transformers_engine import empty_weights

_SHARD_BYTES = 5 * 10**9
_COPIED = ("*.json", "*.jinja", "*.model", "*.txt")
MANIFEST = "merge_recipe.json"
FRONT = "front.json"
"""Beside several exports: which they are, best first by the first objective."""

_OWN = ("model.safetensors.index.json", MANIFEST, "adapter_config.json")
_NAMING_CODE = ("config.json", "tokenizer_config.json", "processor_config.json", "generation_config.json")
_ROOM = 4 << 20
"""Bytes beside weights and copied files: card, manifest, index and what the file system itself takes."""


class ExportError(Exception):
    """The disk ran full, or what was written is not what was scored; nothing is left behind."""


def export_trial(
    store: Store,
    name: str,
    number: int,
    out: Path,
    *,
    overwrite: bool = False,
    for_others: bool = False,
    progress: Progress = lambda _stage, _done, _total: None,
) -> Path:
    """Write one trial's merge to the directory ``out``, which appears whole or not at all.

    Args:
        overwrite: replace an earlier export; it goes when the new one is complete, digests verified. for_others: it
            names no place on this machine.
    Raises: InputError where ``out`` exists (unless it is an earlier export and ``overwrite``), the disk is too full,
        the trial is not measured, or a checkpoint has changed since the study began; ExportError where the tensors
        written are not bit for bit those that were scored, or the disk runs full meanwhile.
    """
    check_target(out, overwrite=overwrite)
    record = store.study(name)
    spec = from_document(dict(record.spec))
    measured = store.with_marks(name, number)
    checkpoints = _opened(spec, measured.recipe, record.fingerprints)
    base = checkpoints[BASE]
    like = empty_weights(base.path, spec.workers.dtype, trust_remote_code=base.trust_remote_code)
    require_room(out, sum(t.nbytes for t in like.values()) + sum(p.stat().st_size for p in _copied(base)) + _ROOM)
    try:
        with whole_directory(out, replace=overwrite) as staging:
            merger = Merger({n: c.tensors for n, c in checkpoints.items()}, BASE, seed=spec.search.seed)
            digests = write_model(merger, measured.recipe, like, base, staging, progress)
            progress("verifying", 0, 1)
            _verify(staging, digests, measured)
            _describe(store, record, spec, measured, checkpoints, digests, staging, for_others=for_others)
    except NoRoom as e:
        raise ExportError(str(e)) from e
    store.add_export(name, number, str(out.absolute()), measured.digest)
    return out


def export_several(store: Store, name: str, rows: Sequence[Row], out: Path, *, overwrite: bool = False) -> list[Path]:
    """Write some trials' merges below ``out``, a directory each, and last of all a list of them in their order.

    Raises: as of :func:`export_trial`, and InputError where ``out`` exists unless it is to be overwritten.
    """
    if out.exists() and not overwrite:
        raise InputError(f"the directory to write must not exist, but {out} does.")
    directories = {row.trial: out / f"trial-{row.trial}" for row in rows}
    for directory in directories.values():
        check_target(directory, overwrite=overwrite)
    written = [export_trial(store, name, n, d, overwrite=overwrite) for n, d in directories.items()]
    listed = [row.to_json() | {"directory": directories[row.trial].name} for row in rows]
    with whole_file(out / FRONT) as file:
        file.write(json.dumps({"study": name, "merges": listed}, indent=2).encode() + b"\n")
    return written


def check_target(out: Path, *, overwrite: bool) -> None:
    """Refuse a directory that is there, unless it is an earlier export that shall be overwritten."""
    if not (out.exists() or out.is_symlink()):
        return
    earlier = out.is_dir() and not out.is_symlink() and (out / MANIFEST).is_file()
    if overwrite and not earlier:
        raise InputError(f"--overwrite replaces earlier exports alone, but {out} holds no {MANIFEST}.")
    if not overwrite:
        hint = "; it is an earlier export, which --overwrite replaces" if earlier else ""
        raise InputError(f"the directory to write must not exist, but {out} does{hint}.")


def _describe(
    store: Store,
    record: StudyRecord,
    spec: Spec,
    measured: Measured,
    checkpoints: Mapping[str, Checkpoint],
    digests: Mapping[str, str],
    directory: Path,
    *,
    for_others: bool,
) -> None:
    """The mergekit configuration, the card, and last of all the manifest."""
    by_split = {s: store.measured(record.name, s) for s in SPLITS}
    code = [str(p.relative_to(checkpoints[BASE].path)) for p in checkpoints[BASE].code]
    mergekit = mergekit_yaml(spec, measured.recipe, checkpoints, for_others=for_others)
    _write(directory / "mergekit.yaml", mergekit)
    _write(directory / "README.md", model_card(store, record.name, measured.number, spec, by_split, code=code))
    manifest = _manifest(record.name, record.spec_digest, measured, record.fingerprints, digests)
    _write(directory / MANIFEST, json.dumps(manifest | {"trust_remote_code": code}, indent=2) + "\n")


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


def write_model(
    merger: Merger,
    recipe: Recipe,
    like: Mapping[str, Tensor],
    base: Checkpoint,
    directory: Path,
    progress: Progress = lambda _stage, _done, _total: None,
) -> dict[str, str]:
    """Config, tokenizer and weights of a merge; returns the digest of every tensor.

    Args:
        like: names, shapes and types of the weights, floats of one type. base: gives everything that is no weight.
    """
    dtype = next(t.dtype for t in like.values() if t.is_floating_point())
    _copy_config(base, directory, str(dtype).removeprefix("torch."))
    return _write_weights(merger, recipe, like, directory, progress)


def _write_weights(
    merger: Merger, recipe: Recipe, like: Mapping[str, Tensor], directory: Path, progress: Progress
) -> dict[str, str]:
    """Shards with their index; a tensor or two in memory at a time. Returns the digest of every tensor."""
    count = sum(1 for _ in _shards(like))
    digests: dict[str, str] = {}
    places: dict[str, str] = {}
    for i, names in enumerate(_shards(like), 1):
        file = "model.safetensors" if count == 1 else f"model-{i:05d}-of-{count:05d}.safetensors"
        shard = {name: like[name] for name in names}
        merged = _digested(merger.merged(recipe, shard, reuse=True), digests)
        write_tensors(directory / file, shard, _counted(merged, len(places), len(like), progress))
        places |= dict.fromkeys(names, file)
    if count > 1:
        total = sum(t.nbytes for t in like.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        _write(directory / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
    return digests


def _digested(tensors: Iterator[tuple[str, Tensor]], digests: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        if not is_finite(tensor):
            raise ExportError(f"every tensor must be finite, but {name} of the merge is not.")
        digests[name] = tensor_digest(tensor)
        yield name, tensor


def _counted(
    tensors: Iterator[tuple[str, Tensor]], before: int, total: int, progress: Progress
) -> Iterator[tuple[str, Tensor]]:
    for done, named in enumerate(tensors, before):
        progress("writing tensors", done, total)
        yield named


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


def _copied(base: Checkpoint) -> list[Path]:
    """What an export takes over from the base: tokenizer, generation config, and the code that was trusted."""
    found = {path for pattern in _COPIED for path in base.path.glob(pattern) if path.is_file()}
    return sorted(p for p in {*found, *base.code} if p.name not in _OWN)


def _copy_config(base: Checkpoint, directory: Path, dtype: str) -> None:
    for path in _copied(base):
        target = directory / path.relative_to(base.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    config = dict(base.config)
    config.pop("torch_dtype", None)
    config.pop("_name_or_path", None)  # where the base was when it was saved
    config["dtype"] = dtype
    _write(directory / "config.json", json.dumps(config, indent=2) + "\n")
    if not base.trust_remote_code:
        _name_no_code(directory)


def _name_no_code(directory: Path) -> None:
    """Without its code a model must not ask for any: who loads the export would be asked to run what is not there."""
    for path in (directory / name for name in _NAMING_CODE):
        document = read_json(path) if path.is_file() else {}
        if document.pop("auto_map", None) is not None:
            _write(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


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
