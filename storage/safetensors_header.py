"""The header of a safetensors file, checked before anything maps the file.

Format: https://github.com/huggingface/safetensors#format. Eight bytes say how long the header is (little-endian), then
comes the header, a JSON object, then the data. The library (0.8) checks offsets, gaps, overlaps and sizes when it
opens a file; it lets pass a name that stands twice (the last one wins), control characters in names, headers of up
to 100 MB, element types that no merge can be made of, and shapes that overflow in torch. Here all of it is refused.
"""

import os
from math import prod
from pathlib import Path
from typing import Any

from storage.errors import CheckpointError
from storage.strict_json import JsonError, parse

MOST_BYTES = 25_000_000
"""Of a header: some 150,000 tensors in one file. The library takes four times that, which costs gigabytes to parse."""

_PREFIX = 8
_DIMENSIONS = 16
_LARGEST = 2**63 - 1
_WIDTH = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes of an element. Quantised types are missing on purpose: without their scales they cannot be added up."""

Header = dict[str, Any]


def read_header(path: Path) -> Header:
    """The entries of a file by tensor name, ``__metadata__`` left out, in the header's order.

    What comes back is safe to map: every tensor lies within the file, none overlaps another, and no byte is left over.

    Raises: CheckpointError naming the file and what is wrong with its header; OSError where it does not open.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(_PREFIX), "little")
            if length > min(size - _PREFIX, MOST_BYTES):
                raise JsonError(_too_long(length, size))
            text = file.read(length)
        return _checked(text, size - _PREFIX - length)
    except JsonError as e:
        raise CheckpointError(f"a weight file must be whole safetensors, but {path} is not: {e}.") from e


def _too_long(length: int, size: int) -> str:
    if length > size - _PREFIX:
        return f"its header shall have {length:,} bytes and the file has {size:,}"
    return f"its header has {length:,} bytes and may have {MOST_BYTES:,}"


def _checked(text: bytes, data: int) -> Header:
    """The entries of a header before so many bytes of data."""
    if not text.startswith(b"{"):
        raise JsonError("its header is no JSON object")
    entries: Header = parse(text)
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise JsonError("its __metadata__ does not map names to texts")
    places = [(*_place(name, entry), name) for name, entry in entries.items()]
    end = 0
    for start, stop, name in sorted(places):
        if start != end:
            raise JsonError(f"{name} begins at byte {start:,} and the tensor before it ends at {end:,}")
        end = stop
    if end != data:
        raise JsonError(f"its tensors end at byte {end:,} of the data and the file holds {data:,}")
    return entries


def _place(name: str, entry: Any) -> tuple[int, int]:
    """Where a tensor begins and ends in the data."""
    if not name.isprintable() or not name:
        raise JsonError(f"the tensor name {name[:100]!r} holds what cannot be printed")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise JsonError(f"{name} must have dtype, shape and data_offsets, and nothing else")
    width = _WIDTH.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if width is None:
        raise JsonError(f"{name} has the type {str(entry['dtype'])[:20]!r}, and a merge takes {', '.join(_WIDTH)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not (_are_sizes(shape) and len(shape) <= _DIMENSIONS and prod(d or 1 for d in shape) * width <= _LARGEST):
        raise JsonError(f"{name} has a shape that no tensor has: {str(shape)[:100]}")
    if not (_are_sizes(offsets) and len(offsets) == 2):
        raise JsonError(f"{name} has data_offsets that are no two places: {str(offsets)[:100]}")
    start, stop = offsets
    if stop - start != prod(shape) * width:
        raise JsonError(f"{name} takes {prod(shape) * width:,} bytes and its data_offsets are {stop - start:,} apart")
    return start, stop


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v <= _LARGEST for v in values)
