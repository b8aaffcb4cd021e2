"""JSON as one can trust it: no key twice, no NaN, no number that overflows, no broken Unicode, nothing too deep."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

DEPTH = 64
"""How deep objects and arrays may be nested."""


class JsonError(ValueError):
    """What is wrong with a JSON text, in words that go after "but"."""


def parse(text: str | bytes, *, infinite: bool = False) -> Any:
    """The value of a JSON text (RFC 8259); bytes are UTF-8.

    Args:
        infinite: let ``Infinity`` and ``NaN`` pass, which Python writes into configs though JSON has no such numbers.
    Raises: JsonError where it does not parse, a key stands twice in one object, a number overflows, a text holds half
        of a surrogate pair, or it is nested deeper than ``DEPTH``.
    """
    number = None if infinite else _refuse_constant
    finite = None if infinite else _finite
    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=number, parse_float=finite)
    except RecursionError:
        raise JsonError(f"it is nested deeper than {DEPTH}") from None
    except ValueError as e:  # broken JSON or UTF-8, an integer of more digits than Python reads, and ours
        raise JsonError(str(e)) from e
    if text.count("[") + text.count("{") > DEPTH and _depth(value) > DEPTH:
        raise JsonError(f"it is nested deeper than {DEPTH}")
    if "\\u" in text:
        _require_unicode(value)
    return value


def read(path: Path, *, limit: int, infinite: bool = False) -> Any:
    """The value of a JSON file of at most ``limit`` bytes. Raises: JsonError as :func:`parse`, OSError."""
    with path.open("rb") as file:
        text = file.read(limit + 1)
    if len(text) > limit:
        raise JsonError(f"it has more than {limit:,} bytes")
    return parse(text, infinite=infinite)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise JsonError(f"the key {twice[:100]!r} stands twice")
    return found


def _refuse_constant(name: str) -> float:
    raise JsonError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise JsonError(f"the number {text[:30]} overflows")
    return value


def _depth(value: Any) -> int:
    """Levels of objects and arrays; 0 for a plain value. Counted without recursion."""
    level, depth = [value], 0
    while level := [v for v in level if isinstance(v, dict | list)]:
        level = [child for v in level for child in (v.values() if isinstance(v, dict) else v)]
        depth += 1
    return depth


def _require_unicode(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise JsonError("a text holds half of a surrogate pair") from None
