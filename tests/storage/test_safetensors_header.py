"""Headers that lie. Each is refused before the file is mapped, also those that the library itself would open."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from storage.errors import CheckpointError
from storage.safetensors_header import MOST_BYTES, read_header
from storage.tensor_files import open_tensors

DATA = 32


def tensor(dtype: str, shape: list[Any], start: Any, end: Any, **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]} | more


WHOLE = tensor("F32", [8], 0, 32)


def write(path: Path, header: bytes, *, length: int | None = None, data: int = DATA) -> Path:
    prefix = (len(header) if length is None else length).to_bytes(8, "little")
    path.write_bytes(prefix + header + bytes(data))
    return path


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError, match="a weight file must be whole safetensors, but .*x.safetensors is not: "):
        open_tensors(path)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    return str(caught.value).partition(" is not: ")[2]


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": tensor("F32", [9], 0, 36)}, "end at byte 36 of the data and the file holds 32"),
        ({"a": tensor("F32", [4], 0, 16)}, "end at byte 16 of the data and the file holds 32"),
        ({"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [4], 16, 32)}, "begins at byte 16 and the tensor before"),
        ({"a": WHOLE, "b": tensor("F32", [4], 16, 32)}, "b begins at byte 16 and the tensor before it ends at 32"),
        ({"a": WHOLE, "b": WHOLE}, "b begins at byte 0 and the tensor before it ends at 32"),
        ({"a": tensor("F32", [8], 32, 0)}, "takes 32 bytes and its data_offsets are -32 apart"),
        ({"a": tensor("F32", [4], 0, 32)}, "takes 16 bytes and its data_offsets are 32 apart"),
        ({"a": tensor("F32", [-8], 0, 32)}, "a shape that no tensor has"),
        ({"a": tensor("F32", [2**62, 4], 0, 32)}, "a shape that no tensor has"),
        ({"a": tensor("F32", [0, 2**63], 0, 0), "b": WHOLE}, "a shape that no tensor has"),
        ({"a": tensor("F32", [1] * 1000 + [8], 0, 32)}, "a shape that no tensor has"),
        ({"a": tensor("F32", [8.0], 0, 32)}, "a shape that no tensor has"),
        ({"a": tensor("F32", [True, 8], 0, 32)}, "a shape that no tensor has"),
        ({"a": tensor("F32", [8], 0.0, 32.0)}, "data_offsets that are no two places"),
        ({"a": tensor("F32", [8], 0, 2**64)}, "data_offsets that are no two places"),
        ({"a": tensor("F31", [8], 0, 32)}, "has the type 'F31', and a merge takes F64"),
        ({"a": tensor("F8_E4M3", [32], 0, 32)}, "has the type 'F8_E4M3', and a merge takes F64"),
        ({"a": tensor("F32", [8], 0, 32, more=1)}, "must have dtype, shape and data_offsets, and nothing else"),
        ({"a": [1, 2]}, "must have dtype, shape and data_offsets, and nothing else"),
        ({"a\n\x1b[2J": WHOLE}, "holds what cannot be printed"),
        ({"": WHOLE}, "holds what cannot be printed"),
        ({"__metadata__": {"format": 1}, "a": WHOLE}, "__metadata__ does not map names to texts"),
        ({"__metadata__": ["pt"], "a": WHOLE}, "__metadata__ does not map names to texts"),
    ],
)
def test_an_entry_that_lies_is_refused(tmp_path: Path, header: dict[str, Any], reason: str) -> None:
    assert reason in refused(write(tmp_path / "x.safetensors", json.dumps(header).encode()))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b'{"a":%s,"a":%s}' % ((json.dumps(WHOLE).encode(),) * 2), "the key 'a' stands twice"),
        (b'{"a":{"dtype":"F32","shape":[8],"shape":[8],"data_offsets":[0,32]}}', "the key 'shape' stands twice"),
        (b"[" * 100_000, "no JSON object"),
        (b'{"a":' + b"[" * 100_000, "nested deeper than 64"),
        (b'{"a":' + b"[" * 70 + b"]" * 70 + b"}", "nested deeper than 64"),
        (b"  {}", "no JSON object"),
        (b"\xff{}", "no JSON object"),
        (b'{"\xff":1}', "invalid start byte"),
        (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,32]}}', "NaN is no number"),
        (b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,32]}}', "the number 1e999 overflows"),
        (b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,32]}}', "4300 digits"),
        (b'{"\\ud800":%s}' % json.dumps(WHOLE).encode(), "half of a surrogate pair"),
        (b"", "no JSON object"),
    ],
)
def test_a_header_that_is_no_honest_json_is_refused(tmp_path: Path, header: bytes, reason: str) -> None:
    assert reason in refused(write(tmp_path / "x.safetensors", header))


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**31, 1000])
def test_a_header_longer_than_its_file_is_refused(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "x.safetensors", json.dumps({"a": WHOLE}).encode(), length=length)
    assert f"its header shall have {length:,} bytes and the file has" in refused(path)


def test_a_huge_header_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((MOST_BYTES + 1).to_bytes(8, "little"))
        file.truncate(MOST_BYTES + 100)
    assert refused(path) == f"its header has {MOST_BYTES + 1:,} bytes and may have {MOST_BYTES:,}."


@pytest.mark.parametrize("size", [0, 3, 8])
def test_a_file_too_short_for_a_header_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "x.safetensors").write_bytes(bytes(size))
    refused(tmp_path / "x.safetensors")


@settings(max_examples=50, deadline=None)
@given(
    tensors=st.dictionaries(
        st.text("abc.0_é", min_size=1, max_size=8),
        st.tuples(
            st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.float64]),
            st.lists(st.integers(0, 3), max_size=4),
        ),
        max_size=5,
    )
)
def test_whatever_the_library_writes_is_read_as_the_library_reads_it(
    tensors: dict[str, tuple[torch.dtype, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("x") / "x.safetensors"
    save_file({name: torch.ones(shape).to(dtype) for name, (dtype, shape) in tensors.items()}, path)
    stored, found = load_file(path), open_tensors(path)
    assert set(found) == set(stored)
    assert all(torch.equal(found[name], stored[name]) and found[name].dtype == stored[name].dtype for name in stored)
