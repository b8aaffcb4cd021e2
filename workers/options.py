"""Options of scorers: the fields of a scorer's class, checked by their types."""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Final, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from search_spaces.errors import InputError

FILE: Final = {"path": "file"}
"""Metadata of a field that names a file; relative to the study file."""

MODEL: Final = {"path": "model"}
"""Metadata of a field that names a model: a directory, relative to the study file, or a hub id."""

Tokens = Annotated[int, Field(gt=0, le=32768)]
Count = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]

_Scorer = TypeVar("_Scorer")


def build(kind: type[_Scorer], name: str, options: Mapping[str, Any]) -> _Scorer:
    """The scorer with these options, as JSON or YAML gives them.

    Raises: InputError for an option that it does not take, or one whose value is of the wrong kind.
    """
    unknown = sorted(set(options) - set(takes(kind)))
    if unknown:
        known = ", ".join(takes(kind)) or "no options"
        raise InputError(f"the scorer {name} takes {known}, but got {', '.join(unknown)}.")
    try:
        made = _adapter(kind).validate_json(json.dumps(options, default=str), strict=True)
    except ValidationError as e:
        raise InputError(f"the scorer {name}: {_explain(e)}") from e
    return made


def takes(kind: type) -> list[str]:
    """The names of a scorer's options."""
    return [f.name for f in fields(kind) if f.init and not f.name.startswith("_")]


def paths(kind: type) -> dict[str, str]:
    """Which options name a path: ``file`` or ``model``."""
    return {f.name: f.metadata["path"] for f in fields(kind) if "path" in f.metadata}


def _adapter(kind: type[_Scorer]) -> TypeAdapter[_Scorer]:
    """Made once a class: it takes milliseconds."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def _explain(error: ValidationError) -> str:
    detail = error.errors()[0]
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    name = ".".join(str(part) for part in detail["loc"] if not _is_branch(part))
    if detail["type"] == "missing":
        return f"{name} is required, but it is missing."
    rule = detail["msg"].removeprefix("Input should ").rstrip(".")
    return f"{name} must {rule[:1].lower() + rule[1:]}, but got {detail['input']!r}."


def _is_branch(part: object) -> bool:
    """Whether the part names a branch of a union and not a place in what the user wrote."""
    return isinstance(part, str) and ("[" in part or part.startswith("constrained-") or part in ("str", "int", "float"))
