"""Suites: files of items, one JSON object a line, and the three disjoint splits of each."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from search_spaces.errors import InputError
from storage.records import SPLITS

Prompt = str | tuple[Mapping[str, str], ...]

_KEYS = {"id", "prompt", "lang", "target", "choices", "gold", "label", "group", "meta"}
_SHARES = (0.5, 0.75, 1.0)
"""Where search, validation and report end on the unit interval that a single file is split on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One prompt with what marks it.

    ``prompt`` is plain text or chat messages. ``group`` is shared by translations of one prompt: they go into the
    same split and count as one cluster in standard errors.
    """

    id: str
    prompt: Prompt
    lang: str
    target: str | None = None
    choices: tuple[str, ...] = ()
    gold: int | None = None
    label: str | None = None
    group: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteFiles:
    """Where a suite's items lie: one file that is split 50/25/25, or further files for the other splits."""

    path: Path
    validation: Path | None = None
    report: Path | None = None


def read_items(path: Path) -> list[Item]:
    """Every item of a JSONL file, in its order. Raises InputError naming the line that is wrong."""
    items: list[Item] = []
    seen: set[str] = set()
    for number, line in _lines(path):
        place = f"{path}, line {number}"
        item = _item(line, place)
        if item.id in seen:
            raise InputError(f"{place}: ids must be unique, but {item.id!r} stands there twice.")
        seen.add(item.id)
        items.append(item)
    if not items:
        raise InputError(f"a suite must have items, but {path} has none.")
    return items


def read_splits(files: SuiteFiles) -> dict[str, list[Item]]:
    """The items of each split. A single file is split by a hash of ``group``, else ``id``; a file of its own takes
    its split whole, and what would have fallen into that split stays with the search.

    Raises: InputError where an id or a group stands in two splits, or a split is empty.
    """
    own = {"validation": files.validation, "report": files.report}
    splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for item in read_items(files.path):
        split = split_of(item)
        splits["search" if own.get(split) else split].append(item)
    for split, path in own.items():
        if path is not None:
            splits[split] = read_items(path)
    _check_disjoint(splits, files)
    for split, items in splits.items():
        if not items:
            raise InputError(f"every split must have items, but {split} of {files.path} has none.")
    return splits


def split_of(item: Item) -> str:
    """The split that an item of a single file belongs to, by a hash of its group, else its id."""
    share = _hash(item.group or item.id) / 2**64
    return next(split for split, end in zip(SPLITS, _SHARES, strict=True) if share < end)


def choose(items: Sequence[Item], most: int | None) -> list[Item]:
    """At most ``most`` items, spread evenly over languages and labels; the same ones in the same order every time.

    Within a language the order is a hash of the group, so translations of one prompt are chosen together.
    """
    if most is None or len(items) <= most:
        return list(items)
    strata: dict[tuple[str, str | None], list[Item]] = defaultdict(list)
    for item in items:
        strata[item.lang, item.label].append(item)
    ordered = [sorted(stratum, key=lambda i: (_hash(i.group or i.id), i.id)) for stratum in strata.values()]
    in_turn = chain.from_iterable(zip_longest(*ordered))
    return [item for item in in_turn if item is not None][:most]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except OSError as e:
        raise InputError(f"a suite must be a file that opens, but {path} is not: {e.strerror}.") from e
    except UnicodeDecodeError as e:
        raise InputError(f"a suite must be UTF-8, but {path} is not: {e}.") from e


def _item(line: str, place: str) -> Item:
    try:
        document = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as e:
        raise InputError(f"{place}: an item must be one JSON object, but the line does not parse: {e}.") from e
    if not isinstance(document, dict):
        raise InputError(f"{place}: an item must be one JSON object, but got a {type(document).__name__}.")
    unknown = sorted(set(document) - _KEYS)
    if unknown:
        raise InputError(f"{place}: an item's keys must be {', '.join(sorted(_KEYS))}, but got {', '.join(unknown)}.")
    for key in ("id", "lang"):
        if not isinstance(document.get(key), str) or not document[key]:
            raise InputError(f"{place}: {key} must be a text that is not empty, but got {document.get(key)!r}.")
    return Item(
        id=document["id"],
        prompt=_prompt(document.get("prompt"), place),
        lang=document["lang"],
        target=_optional(document, "target", str, place),
        choices=_choices(document, place),
        gold=_gold(document, place),
        label=_optional(document, "label", str, place),
        group=_optional(document, "group", str, place) or "",
        meta=_optional(document, "meta", dict, place) or {},
    )


def _optional(document: Mapping[str, Any], key: str, kind: type, place: str) -> Any:
    value = document.get(key)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise InputError(f"{place}: {key} must be a {kind.__name__}, but got {value!r}.")
    return value


def _prompt(value: Any, place: str) -> Prompt:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(_is_message(m) for m in value):
        return tuple({"role": m["role"], "content": m["content"]} for m in value)
    raise InputError(f"{place}: prompt must be a text or a list of {{role, content}} messages, but got {value!r}.")


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"role", "content"}
        and all(isinstance(v, str) for v in value.values())
    )


def _choices(document: Mapping[str, Any], place: str) -> tuple[str, ...]:
    choices = _optional(document, "choices", list, place) or []
    if not all(isinstance(c, str) and c for c in choices) or len(choices) == 1:
        raise InputError(f"{place}: choices must be two or more texts, but got {choices!r}.")
    return tuple(choices)


def _gold(document: Mapping[str, Any], place: str) -> int | None:
    gold: int | None = _optional(document, "gold", int, place)
    count = len(document.get("choices") or [])
    if gold is not None and not 0 <= gold < count:
        raise InputError(f"{place}: gold must be the index of a choice (0 to {count - 1}), but got {gold}.")
    return gold


def _check_disjoint(splits: Mapping[str, Sequence[Item]], files: SuiteFiles) -> None:
    for kind in ("id", "group"):
        owner: dict[str, str] = {}
        for split, items in splits.items():
            for item in items:
                value = getattr(item, kind)
                if value and owner.setdefault(value, split) != split:
                    raise InputError(
                        f"splits must be disjoint, but {kind} {value!r} of {files.path} stands in "
                        f"{owner[value]} and in {split}."
                    )
