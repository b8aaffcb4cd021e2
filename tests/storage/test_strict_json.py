import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.strict_json import DEPTH, JsonError, parse, read

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(PLAIN)
def test_what_is_plain_json_is_read_as_python_reads_it(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert parse(text) == json.loads(text) == value
        assert parse(text.encode()) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 1}', "'a' stands twice"),
        ('[{"b": {"a": 1, "a": 2}}]', "'a' stands twice"),
        ("NaN", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ("1e999", "1e999 overflows"),
        ("1" * 5000, "digits"),
        ('"\\ud800"', "surrogate"),
        ('{"\\udfff": 1}', "surrogate"),
        ("[" * (DEPTH + 1) + "]" * (DEPTH + 1), f"deeper than {DEPTH}"),
        ("[" * 10**6, f"deeper than {DEPTH}"),
        ('{"a":' * 10**5, f"deeper than {DEPTH}"),
        (b"\xff\xfe", "codec"),
        (b'"\xed\xa0\x80"', "codec"),
        ("", "Expecting value"),
    ],
)
def test_what_cannot_be_trusted_is_refused(text: str | bytes, reason: str) -> None:
    with pytest.raises(JsonError, match=reason):
        parse(text)


def test_depth_counts_nesting_and_not_length() -> None:
    assert len(parse("[" + "[]," * 1000 + "[]]")) == 1001
    assert parse("[" * DEPTH + "]" * DEPTH)
    assert parse('"' + "[" * 1000 + '"')


def test_pythons_infinity_passes_where_it_is_allowed() -> None:
    assert parse("[Infinity, 1e999]", infinite=True) == [float("inf")] * 2


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("[1, 2]")
    assert read(tmp_path / "x", limit=6) == [1, 2]
    with pytest.raises(JsonError, match="more than 5 bytes"):
        read(tmp_path / "x", limit=5)
    with pytest.raises(JsonError, match="more than 1,000 bytes"):
        read(Path("/dev/zero"), limit=1000)
