"""Our safetensors reader beside the library: the same verdict on a file, and the same tensors in it."""

import json
import struct
from pathlib import Path

import safetensors
import torch
from safetensors import SafetensorError

from minigpt_ext.interop.safetensors_reader import SafetensorsFile


def write_raw(path: Path, header: bytes | str, data: bytes = b"", length: int | None = None) -> Path:
    """A file of any header and data, and of any length that it claims the header to have."""
    header = header.encode() if isinstance(header, str) else header
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def entry(dtype: str = "F32", shape: list = (1,), offsets: list = (0, 4)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def compare(path: Path) -> bool:
    """Whether the reader accepts the file. AssertionError where the library does not agree, or sees other content."""
    ours = theirs = refusal = None
    try:
        ours = SafetensorsFile(path)
    except ValueError as error:
        refusal = str(error)
        assert refusal.startswith(f"{path}: "), refusal
    try:
        theirs = safetensors.safe_open(path, framework="pt")
    except (SafetensorError, OSError):
        pass
    if theirs is None:
        assert ours is None, "the library refuses this file, and our reader does not"
        return False
    if ours is None:
        assert is_refused_on_purpose(path), f"the library accepts this file, and our reader does not: {refusal}"
        return False
    with ours, theirs:
        assert sorted(ours.names) == sorted(theirs.keys())
        assert ours.metadata == (theirs.metadata() or {})
        for name in ours.names:
            _compare_tensor(name, ours, theirs)
    return True


def _compare_tensor(name: str, ours: SafetensorsFile, theirs: safetensors.safe_open) -> None:
    try:
        expected = theirs.get_tensor(name)
    except Exception:  # of several kinds: a dtype or a dimension that torch has not
        expected = None
    try:
        tensor = ours.tensor(name)
    except ValueError:
        assert expected is None, f"the library gives {name!r}, and our reader does not"
        return
    assert expected is not None, f"our reader gives {name!r}, and the library does not"
    kinds = (tensor.dtype, tensor.shape), (expected.dtype, expected.shape)
    assert kinds[0] == kinds[1], f"{name!r} is {kinds[0]} here and {kinds[1]} in the library"
    assert bytes_of(tensor) == bytes_of(expected), f"{name!r} holds other bytes than the library reads"
    assert tensor.data_ptr() % tensor.dtype.itemsize == 0, f"{name!r} lies askew"


def bytes_of(tensor: torch.Tensor) -> bytes:
    if tensor.numel() == 0:
        return b""
    return tensor.reshape(-1).view(torch.uint8).clone().numpy().tobytes()


def is_refused_on_purpose(path: Path) -> bool:
    """Whether the header is one of the kinds that the reader's page says the library takes and it does not."""
    twice = []

    def look(pairs):
        twice.append(len({key for key, _ in pairs}) < len(pairs))
        return dict(pairs)

    content = path.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]], object_pairs_hook=look)
    if any(twice):
        return True
    entries = [value for name, value in header.items() if name != "__metadata__"]
    return any(isinstance(value, list) or isinstance(value.get("dtype"), dict) for value in entries)
