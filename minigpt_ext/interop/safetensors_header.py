"""The header of a safetensors file: JSON read and checked to its last field, before anything is done with it.

A file from elsewhere is not to be trusted. The tensors must lie end to end, without a hole or an overlap, and fill the
data exactly: else bytes could hide in a file, or two names share memory. The memory taken follows the header's length,
not what it claims: 12 times as much for an honest header, some 40 times for the worst JSON (33 times in the library).

What is accepted is what `safetensors.safe_open` accepts, with two exceptions, both refused:

- a key that is there twice. The library lets the last of two tensors of one name win, and a reader that lets the first
  win would see another model in the same file.
- an array in place of a tensor's entry, or an object in place of a dtype's name. The format has no such spelling; the
  library takes them because its JSON parser does for any structure.
"""

from __future__ import annotations

import json
import math
import reprlib
from dataclasses import dataclass
from typing import Any

import torch

_MAX_DEPTH = 127  # objects and arrays inside one another; the library's own limit
_UINT64 = 2**64
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxlist = 8

# The format's name of a dtype: the bits of an element, and torch's dtype, where torch has it.
DTYPES: dict[str, tuple[int, torch.dtype | None]] = {
    "BOOL": (8, torch.bool),
    "F4": (4, torch.float4_e2m1fn_x2),  # two elements to a byte, here and in torch
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
    "U8": (8, torch.uint8),
    "I8": (8, torch.int8),
    "F8_E5M2": (8, torch.float8_e5m2),
    "F8_E4M3": (8, torch.float8_e4m3fn),
    "F8_E8M0": (8, torch.float8_e8m0fnu),
    "F8_E4M3FNUZ": (8, torch.float8_e4m3fnuz),
    "F8_E5M2FNUZ": (8, torch.float8_e5m2fnuz),
    "I16": (16, torch.int16),
    "U16": (16, torch.uint16),
    "F16": (16, torch.float16),
    "BF16": (16, torch.bfloat16),
    "I32": (32, torch.int32),
    "U32": (32, torch.uint32),
    "F32": (32, torch.float32),
    "C64": (64, torch.complex64),
    "F64": (64, torch.float64),
    "I64": (64, torch.int64),
    "U64": (64, torch.uint64),
}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor.

    Args:
        name: as in the file.
        dtype: one of the keys of `DTYPES`.
        shape: in elements; () is a single number.
        begin, end: where its first byte lies and where its last has passed, counted from the start of the data.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def parse_header(header: bytes, data_size: int) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """The metadata and the tensors, in the order in which they lie, that a header tells of.

    Args:
        header: the N bytes of JSON.
        data_size: how many bytes follow it.

    Raises:
        ValueError: the header is not one, or does not fit the data.
    """
    try:
        values = json.loads(
            header.decode(),
            object_pairs_hook=unique_keys,
            parse_int=_integer,
            parse_float=_real,
            parse_constant=_no_constant,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"the header is not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"the header is not JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"the header nests more than {_MAX_DEPTH} levels deep") from None
    if not isinstance(values, dict):
        raise ValueError(f"the header is {_kind(values)}, not an object")
    _check_depth_and_text(values)
    metadata = _metadata(values.pop("__metadata__", None))
    tensors = [_tensor_info(name, entry) for name, entry in values.items()]
    tensors.sort(key=lambda info: (info.begin, info.end))
    _check_layout(tensors, data_size)
    return metadata, {info.name: info for info in tensors}


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads(object_pairs_hook=...)`: the object. Raises ValueError where it has a key twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {shown(key)} is there twice")
            seen.add(key)
    return values


# Numbers as the library reads them: what 64 bits cannot hold is a float, and so is -0, and no float is infinite.
def _integer(text: str) -> int | float:
    return int(text) if len(text) <= 20 and text != "-0" else _real(text)


def _real(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the header has the number {shown(text)}, which is out of range")
    return value


def _no_constant(text: str) -> None:
    raise ValueError(f"the header is not JSON: {text} is no JSON value")


def _check_depth_and_text(values: dict[str, Any]) -> None:
    """Refuse the JSON that Python takes and the library does not: of great depth, or with half a surrogate pair."""
    level: list[Any] = [values]
    depth = 0
    while level := [value for value in level if isinstance(value, (dict, list))]:
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"the header nests more than {_MAX_DEPTH} levels deep")
        parts = [(*value.keys(), *value.values()) if isinstance(value, dict) else value for value in level]
        level = [part for some in parts for part in some]
        for text in level:
            if isinstance(text, str) and not text.isascii():
                try:
                    text.encode()
                except UnicodeEncodeError:
                    raise ValueError(f"the header has half a surrogate pair in {shown(text)}") from None


def _metadata(values: Any) -> dict[str, str]:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"__metadata__ must be an object of strings, not {_kind(values)}")
    for key, value in values.items():
        if not isinstance(value, str):
            raise ValueError(f"__metadata__ must hold strings, and {shown(key)} is {_kind(value)}")
    return values


def _tensor_info(name: str, entry: Any) -> TensorInfo:
    where = f"tensor {shown(name)}"
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: its entry must be an object, not {_kind(entry)}")
    if missing := [key for key in ("dtype", "shape", "data_offsets") if key not in entry]:
        raise ValueError(f"{where}: {missing[0]} is missing")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{where}: dtype must be one of {', '.join(DTYPES)}, not {shown(dtype)}")
    if not isinstance(shape, list) or not all(_is_uint64(size) for size in shape):
        raise ValueError(f"{where}: shape must be a list of integers from 0 to 2**64 - 1, not {shown(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_uint64(offset) for offset in offsets):
        raise ValueError(f"{where}: data_offsets must be two integers from 0 to 2**64 - 1, not {shown(offsets)}")
    begin, end = offsets
    if begin > end:
        raise ValueError(f"{where}: data_offsets end before they begin: {begin}, {end}")
    # In the library's order, so that [2**63, 2, 0] overflows and [0, 2**63, 2] does not.
    bits = 1
    for factor in (*shape, DTYPES[dtype][0]):
        bits *= factor
        if bits >= _UINT64:
            raise ValueError(f"{where}: shape {shown(shape)} of {dtype} overflows 64 bits")
    if bits % 8:
        raise ValueError(f"{where}: shape {shown(shape)} of {dtype} is {bits} bits, which are no whole bytes")
    if end - begin != bits // 8:
        raise ValueError(
            f"{where}: shape {shown(shape)} of {dtype} takes {bits // 8} bytes, and data_offsets "
            f"[{begin}, {end}] hold {end - begin}"
        )
    return TensorInfo(name, dtype, tuple(shape), begin, end)


def _check_layout(tensors: list[TensorInfo], data_size: int) -> None:
    """Sorted by offset, each tensor must begin where the one before it ends, and the last end with the file."""
    position = 0
    for info in tensors:
        where = f"tensor {shown(info.name)}: data_offsets [{info.begin}, {info.end}]"
        if info.end > data_size:
            raise ValueError(f"{where} lie beyond the file's {data_size} bytes of data: it is cut short, or damaged")
        if info.begin < position:
            raise ValueError(f"{where} overlap another tensor, which ends at {position}")
        if info.begin > position:
            raise ValueError(f"{where} leave a hole: bytes {position} to {info.begin} belong to no tensor")
        position = info.end
    if position != data_size:
        raise ValueError(
            f"the tensors end at byte {position} of the data, and {data_size - position} bytes too many follow"
        )


def _is_uint64(value: Any) -> bool:
    return type(value) is int and 0 <= value < _UINT64  # type(): True is an int too


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def shown(value: Any) -> str:
    """`value` for a message: what a terminal would obey is escaped, what is long is cut."""
    return _SHORT.repr(value)
