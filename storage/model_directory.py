"""What a model directory may hold, looked at before anything in it is opened."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from storage.errors import CheckpointError
from storage.strict_json import JsonError, read

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
"""What is read of a model, and fetched from the hub."""

CODE = "*.py"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MOST_JSON = 64_000_000


def pickle_reason(directory: Path) -> str | None:
    """Why the pickled weights that a directory holds are no way out; None where it holds none."""
    pickled = sorted(p.name for suffix in _PICKLED for p in directory.glob(suffix))
    if not pickled:
        return None
    return (
        f"weights must be safetensors (a pickle can run code when it is opened), but {directory} holds "
        f"{pickled[0]}; load it in transformers and save_pretrained() writes safetensors."
    )


def check_files(directory: Path, *, code: bool = False) -> None:
    """Refuse a directory whose files lie elsewhere: a link to a private file would end up in an export.

    Links within the directory are fine, and so are those of the Hugging Face cache, whose snapshots consist of links
    into the ``blobs`` of the same repository. The directory itself may be reached by a link.

    Args:
        code: also look at Python files, at any depth.
    Raises: CheckpointError naming the link and where it leads.
    """
    root = directory.resolve()
    allowed = [root]
    if root.parent.name == "snapshots" and root.parents[1].name.startswith("models--"):
        allowed.append(root.parents[1] / "blobs")
    for path in _read_files(directory, code):
        target = path.resolve()
        if not any(target.is_relative_to(place) for place in allowed):
            raise CheckpointError(
                f"the files of a model must lie in its directory, but {path} leads to {target}; copy it there."
            )
        if target.exists() and not (target.is_file() or target.is_dir()):
            raise CheckpointError(f"the files of a model must be plain files, but {path} is none.")


def _read_files(directory: Path, code: bool) -> Iterator[Path]:
    for pattern in WANTED:
        yield from directory.glob(pattern)
    templates = directory / "additional_chat_templates"
    if templates.is_symlink() or templates.is_dir():
        yield templates
        yield from templates.glob("*")
    if code:
        yield from directory.rglob(CODE)


def weight_files(directory: Path) -> Mapping[Path, frozenset[str]]:
    """The weight files of a model, each with the tensors that the index says it holds (none without an index).

    Raises: CheckpointError for a directory without safetensors, and for an index that names what is not there.
    """
    if (directory / INDEX).is_file():
        return _indexed_files(directory)
    if (directory / SINGLE).is_file():
        return {directory / SINGLE: frozenset()}
    raise CheckpointError(
        pickle_reason(directory) or f"a checkpoint must hold {SINGLE} or {INDEX}, but {directory} holds neither."
    )


def _indexed_files(directory: Path) -> dict[Path, frozenset[str]]:
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX} must have a weight_map, but the one in {directory} has none.")
    tensors: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not (isinstance(name, str) and _is_beside(name)):
            raise CheckpointError(
                f"{INDEX} must name safetensors files beside it, but in {directory} it names {str(name)[:200]!r}."
            )
        tensors.setdefault(name, set()).add(tensor)
    missing = [name for name in sorted(tensors) if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(f"every file that {INDEX} names must be there, but {directory / missing[0]} is missing.")
    return {directory / name: frozenset(tensors[name]) for name in sorted(tensors)}


def _is_beside(name: str) -> bool:
    """Whether it is the plain name of a safetensors file."""
    return Path(name).name == name and name.endswith(".safetensors") and name.isprintable() and len(name) <= 255


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model; raises CheckpointError where it is missing or is none."""
    try:
        document = read(path, limit=_MOST_JSON, infinite=True)  # configs of some models hold Infinity
    except FileNotFoundError:
        raise CheckpointError(f"a checkpoint must have a {path.name}, but there is none in {path.parent}.") from None
    except (JsonError, OSError) as e:
        raise CheckpointError(f"{path.name} must be JSON, but {path} is not: {e}.") from e
    if not isinstance(document, dict):
        raise CheckpointError(f"{path.name} must be a JSON object, but {path} holds a {type(document).__name__}.")
    return document
