"""Tensors and JSON in one safetensors file, whole or not there, and checked when it is read."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minigpt_ext.data.files import replacing


class CheckpointError(Exception):
    """A checkpoint that cannot be written or read; the message names the file."""


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write `tensors` and `facts` (anything JSON can hold) to `path` atomically, with a checksum a tensor.

    Floats among the facts come back bit for bit. Raises CheckpointError, the old file untouched, where the file
    system refuses (a full disk, a folder that cannot be written to).
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {
        "facts": json.dumps(facts),
        "crc32": json.dumps({name: _crc32(tensor) for name, tensor in tensors.items()}),
    }
    metadata["metadata_crc32"] = _metadata_crc32(metadata)
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and facts of a file that `save_checkpoint` wrote.

    Raises CheckpointError where it cannot be read, is cut short, or differs from what was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        facts, sums = json.loads(metadata["facts"]), json.loads(metadata["crc32"])
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    except KeyError as error:
        raise CheckpointError(f"{path} is not a checkpoint of minigpt: it lacks {error} in its metadata") from error
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if metadata.get("metadata_crc32") != _metadata_crc32(metadata):
        raise CheckpointError(f"{path} is damaged: its metadata is not what was written")
    for name, tensor in tensors.items():
        if sums.get(name) != _crc32(tensor):
            raise CheckpointError(f"{path} is damaged: {name} is not what was written")
    return tensors, facts


def load_facts(path: Path) -> dict[str, Any]:
    """The facts alone, without reading the tensors. Raises CheckpointError as `load_checkpoint` does."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["facts"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of minigpt, or damaged: {error}") from error


def _crc32(tensor: Tensor) -> int:
    """Of dtype, shape and values."""
    kind = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), kind)


def _metadata_crc32(metadata: Mapping[str, str]) -> str:
    return str(zlib.crc32((metadata["facts"] + metadata["crc32"]).encode()))
