"""The GGUF file format, version 3: what llama.cpp and its relatives run. Written from scratch; little-endian.

    magic "GGUF" | version u32 | tensors u64 | entries u64
    entries:  key string | type u32 | value                         the metadata, which is all there is of a config
    tensors:  name string | dimensions u32 | extent u64 each | type u32 | offset u64
    zeros up to a multiple of 32
    data:     each tensor's values at its offset from here, with zeros up to the next multiple of 32

A string is its length in bytes (u64) and UTF-8. An array is the type of its elements (u32), their number (u64), and
they. The extents of a tensor come with the innermost first: a matrix of torch's shape (out, in) has extents in, out.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from minigpt_ext.data.files import replacing

Value = bool | int | float | str | list[int] | list[float] | list[str]

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9  # the types of values that are needed here
TENSOR_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}


class GGUFTensor(NamedTuple):
    """A tensor to be written. `values` is called when its turn comes, so that one tensor at a time takes memory.

    Args:
        name: its name in the file.
        shape: torch's.
        dtype: one of TENSOR_TYPES.
        values: gives a tensor of that shape, of any floating dtype and device.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    values: Callable[[], Tensor]


def write_gguf(path: Path, metadata: Mapping[str, Value], tensors: Iterable[GGUFTensor]) -> None:
    """Write a GGUF file, wholly or not at all.

    Args:
        path: the file.
        metadata: by key: bool, int (0 to 2^32 - 1), float (kept in 32 bits), str, or a list of ints, floats or strs.
        tensors: in the order in which their data shall lie.

    Raises:
        ValueError: a value or a tensor is not of the kind it was said to be.
        OSError: as the file system does.
    """
    tensors = list(tensors)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_string(key) + _value(key, value))
        offset = 0
        for tensor in tensors:
            extents = tensor.shape[::-1]
            file.write(_string(tensor.name) + struct.pack(f"<I{len(extents)}Q", len(extents), *extents))
            file.write(struct.pack("<IQ", TENSOR_TYPES[tensor.dtype], offset))
            offset += _padded(torch.Size(tensor.shape).numel() * tensor.dtype.itemsize)
        _pad(file)
        for tensor in tensors:
            values = tensor.values()
            if values.shape != tensor.shape:
                raise ValueError(f"{tensor.name}: expected the shape {tensor.shape}, got {tuple(values.shape)}")
            data = values.detach().to("cpu", tensor.dtype).contiguous()
            file.write(data.view(torch.uint8).numpy() if data.ndim else bytes(data.view(torch.uint8)))
            _pad(file)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _pad(file: BinaryIO) -> None:
    file.write(bytes(_padded(file.tell()) - file.tell()))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Value) -> bytes:
    if not isinstance(value, list):
        kind, data = _scalar(key, value, _UINT32)
        return struct.pack("<I", kind) + data
    scalars = [_scalar(key, element, _INT32) for element in value]
    kinds = {kind for kind, _ in scalars}
    if len(kinds) > 1:
        raise ValueError(f"{key}: a list must hold values of one type")
    kind = kinds.pop() if kinds else _STRING
    return struct.pack("<IIQ", _ARRAY, kind, len(value)) + b"".join(data for _, data in scalars)


def _scalar(key: str, value: bool | int | float | str, integer: int) -> tuple[int, bytes]:
    if isinstance(value, str):
        return _STRING, _string(value)
    kind = {bool: _BOOL, int: integer, float: _FLOAT32}[type(value)]
    try:
        return kind, struct.pack({_BOOL: "<?", _UINT32: "<I", _INT32: "<i", _FLOAT32: "<f"}[kind], value)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"{key}: {value} cannot be written in 32 bits: {error}") from None
