"""Safetensors files: read as views of the mapped file, written as a stream.

A stream has one tensor in memory at a time, and the next one is made while the last is written.
"""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from storage.errors import CheckpointError
from storage.safetensors_header import read_header

_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8


def open_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of one safetensors file as a view of the mapped file, by name in the header's order.

    Raises: CheckpointError where the header lies or the file is not whole; see :mod:`storage.safetensors_header`.
    """
    try:
        names = read_header(path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"a weight file must be whole safetensors, but {path} is not: {e}.") from e


def write_tensors(path: Path, like: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write one safetensors file.

    Args:
        like: names, shapes and types in the order of the file; may be on the meta device.
        tensors: the same names in that order with what is written, on the CPU.
    Raises: ValueError where a tensor is not as ``like`` says.
    """
    names = iter(like)
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        file.write(_header(like))
        last: Future[None] | None = None
        for name, tensor in tensors:
            expected = next(names, None)
            if name != expected or (tensor.shape, tensor.dtype) != (like[name].shape, like[name].dtype):
                raise ValueError(f"tensors must come as announced, but {name} came and {expected} was announced.")
            if last is not None:
                last.result()
            last = pool.submit(_write, file, tensor)
        if last is not None:
            last.result()
    missing = next(names, None)
    if missing is not None:
        raise ValueError(f"tensors must come as announced, but {missing} did not come.")


def _write(file: FileIO, tensor: Tensor) -> None:
    view = tensor.contiguous().view(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")
    while view:
        view = view[file.write(view) :]


def _header(like: Mapping[str, Tensor]) -> bytes:
    places: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in like.items():
        end = start + tensor.nbytes
        places[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(places, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
