"""Suites: files of items, one JSON object a line, and the three disjoint splits of each."""

import hashlib
import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from search_spaces.errors import InputError
from storage.records import SPLITS
from storage.strict_json import JsonError, parse

Prompt = str | tuple[Mapping[str, str], ...]

_KEYS = {"id", "prompt", "lang", "target", "choices", "gold", "label", "group", "meta"}
MOST_LINE_BYTES = 8 << 20
"""Of one line of a suite: room for a prompt of some two million tokens."""

_MOST_NAME = 500
_SHOWN = 200
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
    for place, item in _placed(path):
        if item.id in seen:
            raise InputError(f"{place}: ids must be unique, but {_shown(item.id)} stands there twice.")
        seen.add(item.id)
        items.append(item)
    if not items:
        raise InputError(f"a suite must have items, but {path} has none.")
    return items


def _placed(path: Path) -> Iterator[tuple[str, Item]]:
    """Items one by one, each with where it stands."""
    for number, line in _lines(path):
        place = f"{path}, line {number}"
        yield place, _item(line, place)


def read_splits(files: SuiteFiles, most: Mapping[str, int | None] | None = None) -> dict[str, list[Item]]:
    """The items of each split. A single file is split by a hash of ``group``, else ``id``; a file of its own takes
    its split whole, and what would have fallen into that split stays with the search.

    Args:
        most: how many items of a split are kept, chosen as :func:`choose` does; the others do not stay in memory.
    Raises: InputError where an id, a group or one question under two ids stands in two splits, or a split is empty.
    """
    samples = {split: _Sample((most or {}).get(split)) for split in SPLITS}
    facts = _Facts()
    for split, item in _streamed(files):
        facts.add(split, item)
        samples[split].add(item)
    if facts.clash():
        _check_disjoint(_all_items(files), files)  # with names and lines this time
    for split, sample in samples.items():
        if not sample.count:
            raise InputError(f"every split must have items, but {split} of {files.path} has none.")
    return {split: sample.chosen() for split, sample in samples.items()}


def _streamed(files: SuiteFiles) -> Iterator[tuple[str, Item]]:
    own = {"validation": files.validation, "report": files.report}
    for _, item in _placed(files.path):
        split = split_of(item)
        yield ("search" if own.get(split) else split), item
    for split, path in own.items():
        if path is not None:
            yield from ((split, item) for _, item in _placed(path))


def _all_items(files: SuiteFiles) -> dict[str, list[Item]]:
    """Every item at once, which tells twice the same id with its line."""
    for path in (files.path, files.validation, files.report):
        if path is not None:
            read_items(path)
    splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for split, item in _streamed(files):
        splits[split].append(item)
    return splits


class _Sample:
    """At most so many items of a stream: the ones that `choose` takes of the whole of it."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._strata: dict[tuple[str, str | None], list[tuple[int, Item]]] = defaultdict(list)
        self.count = 0

    def add(self, item: Item) -> None:
        """One more; what can no longer be chosen is let go of now and then."""
        stratum = self._strata[item.lang, item.label]
        stratum.append((self.count, item))
        self.count += 1
        if self._most is not None and len(stratum) > 2 * max(self._most, 500):
            stratum.sort(key=lambda entry: _rank(entry[1]))
            del stratum[self._most :]

    def chosen(self) -> list[Item]:
        """What `choose` takes of all that came."""
        kept = sorted((entry for stratum in self._strata.values() for entry in stratum), key=lambda entry: entry[0])
        if self._most is None or self.count <= self._most:
            return [item for _, item in kept]
        strata = [[item for _, item in stratum] for stratum in self._strata.values()]
        return _in_turn(strata, self._most)


class _Facts:
    """Which ids, groups and questions stand in which split, as 64-bit hashes: eight bytes each."""

    def __init__(self) -> None:
        self._found = {kind: {split: array("Q") for split in SPLITS} for kind in ("id", "group", "question")}

    def add(self, split: str, item: Item) -> None:
        """Remember an item."""
        self._found["id"][split].append(_hash(item.id))
        self._found["question"][split].append(_hash(normalised(item)))
        if item.group:
            self._found["group"][split].append(_hash(item.group))

    def clash(self) -> bool:
        """Whether an id stands twice, or a group or question in two splits (or two hashes of many are equal)."""
        ids = np.concatenate([np.array(found, dtype=np.uint64) for found in self._found["id"].values()])
        if len(np.unique(ids)) < len(ids):
            return True
        return any(
            len(np.intersect1d(np.array(a, dtype=np.uint64), np.array(b, dtype=np.uint64)))
            for kind in ("group", "question")
            for a, b in combinations(self._found[kind].values(), 2)
        )


def split_items(items: Sequence[Item], source: str) -> dict[str, list[Item]]:
    """Items that come from no file of ours, split as a single file is.

    Raises: InputError naming the ``source`` where one question stands in two splits, or a split is empty.
    """
    splits = {split: [item for item in items if split_of(item) == split] for split in SPLITS}
    _check_disjoint(splits, SuiteFiles(path=Path(source)))
    for split, found in splits.items():
        if not found:
            raise InputError(f"every split must have items, but {split} of {source} has none.")
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
    return _in_turn(list(strata.values()), most)


def _in_turn(strata: Sequence[Sequence[Item]], most: int) -> list[Item]:
    """One of each stratum after the other, each stratum in the order of its ranks."""
    ordered = [sorted(stratum, key=_rank) for stratum in strata]
    in_turn = chain.from_iterable(zip_longest(*ordered))
    return [item for item in in_turn if item is not None][:most]


def _rank(item: Item) -> tuple[int, str]:
    return _hash(item.group or item.id), item.id


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers; no more than one line is held at a time."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MOST_LINE_BYTES + 1):
                number += 1
                if len(line) > MOST_LINE_BYTES:
                    raise InputError(
                        f"{path}, line {number}: an item must have at most {MOST_LINE_BYTES:,} bytes, but has more."
                    )
                if line.strip():
                    yield number, line
    except OSError as e:
        raise InputError(f"a suite must be a file that opens, but {path} is not: {e.strerror}.") from e


def _item(line: bytes, place: str) -> Item:
    try:
        document = parse(line)
    except JsonError as e:
        raise InputError(f"{place}: an item must be one JSON object, but the line does not parse: {e}.") from e
    if not isinstance(document, dict):
        raise InputError(f"{place}: an item must be one JSON object, but got a {type(document).__name__}.")
    unknown = sorted(set(document) - _KEYS)
    if unknown:
        raise InputError(
            f"{place}: an item's keys must be {', '.join(sorted(_KEYS))}, but got {_cut(', '.join(unknown))}."
        )
    for key in ("id", "lang"):
        if not isinstance(document.get(key), str) or not document[key]:
            raise InputError(f"{place}: {key} must be a text that is not empty, but got {_shown(document.get(key))}.")
    for key in ("id", "lang", "label", "group"):
        _check_name(document.get(key), key, place)
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


def _check_name(value: object, key: str, place: str) -> None:
    """Ids, languages, labels and groups go into the database, tables and reports: one printable line, not too long."""
    if isinstance(value, str) and not (value.isprintable() and len(value) <= _MOST_NAME):
        raise InputError(
            f"{place}: {key} must be printable and of at most {_MOST_NAME} characters, but got {_shown(value)}."
        )


def _shown(value: object) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def _optional(document: Mapping[str, Any], key: str, kind: type, place: str) -> Any:
    value = document.get(key)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise InputError(f"{place}: {key} must be a {kind.__name__}, but got {_shown(value)}.")
    return value


def _prompt(value: Any, place: str) -> Prompt:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(_is_message(m) for m in value):
        return tuple({"role": m["role"], "content": m["content"]} for m in value)
    raise InputError(
        f"{place}: prompt must be a text or a list of {{role, content}} messages, but got {_shown(value)}."
    )


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"role", "content"}
        and all(isinstance(v, str) for v in value.values())
    )


def _choices(document: Mapping[str, Any], place: str) -> tuple[str, ...]:
    choices = _optional(document, "choices", list, place) or []
    if not all(isinstance(c, str) and c for c in choices) or len(choices) == 1:
        raise InputError(f"{place}: choices must be two or more texts, but got {_shown(choices)}.")
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
    _check_prompts(splits, files)


def _check_prompts(splits: Mapping[str, Sequence[Item]], files: SuiteFiles) -> None:
    """One question under two ids is one question: what the search has seen must not be called fresh."""
    first: dict[int, tuple[str, str]] = {}
    for split, items in splits.items():
        for item in items:
            place, name = first.setdefault(_hash(normalised(item)), (split, item.id))
            if place != split:
                raise InputError(
                    f"splits must be disjoint, but items {_cut(repr(name))} ({place}) and {_cut(repr(item.id))} "
                    f"({split}) of {files.path} ask the same; in one file, one group keeps both in one split."
                )


def normalised(item: Item) -> str:
    """What an item asks, its choices included: Unicode NFKC, case folded, white space as single blanks."""
    messages = (item.prompt,) if isinstance(item.prompt, str) else tuple(m["content"] for m in item.prompt)
    text = "\x1f".join((*messages, *sorted(item.choices)))
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
