"""From a data set's published files to a suite of ours: `mergefront suites import`."""

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.data_sets import DATA_SETS, DataSet, Item, Place, Row
from search_spaces.errors import InputError
from storage.files import whole_file
from storage.strict_json import JsonError, parse
from workers.suites import normalised, read_items

_MOST_CELL = 8 << 20
_MOST_BYTES = 4 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What was written: items by label and by language, and how many rows were left out, by the reason."""

    path: Path
    items: int
    labels: Mapping[str, int]
    languages: Mapping[str, int]
    dropped: Mapping[str, int]


def import_suite(
    name: str, files: Sequence[Path], out: Path, *, lang: str = "", label: str = "", plain: bool = False
) -> Imported:
    """Write the items of a data set's files as one suite; it appears whole or not at all.

    Args:
        name: the data set's. files: as its authors publish them (CSV, TSV, JSON, JSONL or Parquet).
        lang: language of the files, where neither they nor their names say it; of MultiJail the one column to take.
        label: ``harmful`` or ``benign``, where neither the files nor their names say it.
        plain: prompts as plain texts; otherwise each is a user's turn in a chat.

    Raises: InputError for a data set that is not known, and for a file that does not open, lacks a column, or gives
        no item.
    """
    data_set = find_data_set(name)
    dropped: Counter[str] = Counter()
    items: dict[str, Item] = {}
    for item in _items(data_set, files, Place(file="", number=0, lang=lang, label=label), dropped):
        items.setdefault(item["id"], item)
        dropped["rows that stand twice"] += items[item["id"]] is not item
    if not items:
        reasons = "; ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
        raise InputError(
            f"a suite must have items, but {', '.join(map(str, files))} give none ({reasons or 'no rows'})."
        )
    found = _without_repetitions([item if plain else _as_chat(item) for item in items.values()], dropped)
    _write(found, out)
    return Imported(
        path=out,
        items=len(found),
        labels=Counter(item.get("label", "") for item in found),
        languages=Counter(item["lang"] for item in found),
        dropped={reason: count for reason, count in dropped.items() if count},
    )


def find_data_set(name: str) -> DataSet:
    """The data set of that name; raises InputError where there is none."""
    if name not in DATA_SETS:
        raise InputError(f"a data set must be one of {', '.join(DATA_SETS)}, but got {name!r}.")
    return DATA_SETS[name]


def _items(data_set: DataSet, files: Sequence[Path], said: Place, dropped: Counter[str]) -> Iterator[Item]:
    for path in files:
        number = -1
        for number, row in enumerate(_rows(path, data_set)):
            for lang in _languages(data_set, said, path):
                place = Place(file=path.name, number=number, lang=lang, label=said.label)
                item = data_set.convert(row, place)
                if isinstance(item, str):
                    dropped[item] += 1
                else:
                    yield item
        if number < 0:
            raise InputError(f"a data set must have rows, but {path} has none.")


def _languages(data_set: DataSet, said: Place, path: Path) -> Sequence[str]:
    """The languages of a row: of one with a column a language all of them, or the one that the user names."""
    parallel = [lang for lang in data_set.languages.split() if lang in data_set.columns]
    if said.lang and parallel and said.lang not in parallel:
        raise InputError(f"{data_set.title} is in {', '.join(parallel)}, but --lang is {said.lang} ({path}).")
    return parallel if parallel and not said.lang else [said.lang]


def _as_chat(item: Item) -> Item:
    return item | {"prompt": [{"role": "user", "content": item["prompt"]}]}


def _without_repetitions(items: Sequence[Item], dropped: Counter[str]) -> list[Item]:
    """One question under two ids would stand in two splits; the first of them stays."""
    from workers.suites import Item as Known

    kept: dict[tuple[str, str], Item] = {}
    for item in items:
        prompt = item["prompt"] if isinstance(item["prompt"], str) else tuple(item["prompt"])
        asked = normalised(Known(id=item["id"], prompt=prompt, lang=item["lang"]))
        first = kept.setdefault((item["lang"], asked), item)
        dropped["prompts that stand twice"] += first is not item
    return list(kept.values())


def _write(items: Sequence[Item], out: Path) -> None:
    with whole_file(out) as file:
        file.writelines(json.dumps(item, ensure_ascii=False).encode() + b"\n" for item in items)
    try:
        read_items(out)
    except InputError:
        out.unlink()
        raise


# Reading -----------------------------------------------------------------------------------------------------------


def _rows(path: Path, data_set: DataSet) -> Iterator[Row]:
    """Every row with its cells as texts; raises InputError where a column is missing."""
    readers = {".csv": _csv, ".tsv": _csv, ".json": _json, ".jsonl": _jsonl, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"a data set must be a file of kind {', '.join(readers)}, but got {path}.")
    try:
        for number, row in enumerate(reader(path, data_set), 1):
            missing = [column for column in data_set.columns if column not in row]
            if missing:
                found = ", ".join(map(str, row)) or "nothing"
                raise InputError(
                    f"{path}, row {number}: {data_set.title} must have the columns {', '.join(data_set.columns)}, but "
                    f"{missing[0]} is missing (there are {found})."
                )
            yield {column: _text(row[column]) for column in data_set.columns}
    except (OSError, UnicodeDecodeError, csv.Error, JsonError) as e:
        raise InputError(f"a data set must be a file that reads, but {path} does not: {e}.") from e


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _csv(path: Path, data_set: DataSet) -> Iterator[Mapping[str, Any]]:
    csv.field_size_limit(_MOST_CELL)
    tabs = path.suffix.lower() == ".tsv"
    with path.open(encoding="utf-8-sig", newline="") as file:
        form: Any = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
        for row in csv.DictReader(file, None if data_set.header else list(data_set.columns), **form):
            # Short rows lack cells: their columns are missing, and not empty.
            yield {key: value for key, value in row.items() if key is not None and value is not None}


def _jsonl(path: Path, _: DataSet) -> Iterator[Mapping[str, Any]]:
    with path.open("rb") as file:
        while line := file.readline(_MOST_CELL + 1):
            if len(line) > _MOST_CELL:
                raise JsonError(f"a line has more than {_MOST_CELL:,} bytes")
            if line.strip():
                yield _mapping(parse(line))


def _json(path: Path, _: DataSet) -> Iterator[Mapping[str, Any]]:
    with path.open("rb") as file:
        document = parse(file.read(_MOST_BYTES))
    if not isinstance(document, list):
        raise JsonError(f"it is a {type(document).__name__}, and not a list of rows")
    yield from map(_mapping, document)


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise JsonError(f"a row is a {type(value).__name__}, and not an object")
    return value


def _parquet(path: Path, data_set: DataSet) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as e:
        raise InputError(f"Parquet files need pyarrow, but it is not installed ({e}): pip install pyarrow.") from e
    try:
        with ParquetFile(path) as file:
            columns = [column for column in data_set.columns if column in file.schema_arrow.names]
            for batch in file.iter_batches(columns=columns):
                yield from batch.to_pylist()
    except ArrowException as e:
        raise InputError(f"a data set must be a file that reads, but {path} does not: {e}") from e


def say(imported: Imported) -> None:
    """What was written, for people."""
    parts = [f"{count} {label}" for label, count in imported.labels.items() if label]
    parts.append(", ".join(f"{lang} {count}" for lang, count in sorted(imported.languages.items())))
    print(f"{imported.path}: {imported.items} items ({'; '.join(parts)})", file=sys.stderr)
    for reason, count in imported.dropped.items():
        print(f"left out: {count} {reason}", file=sys.stderr)
