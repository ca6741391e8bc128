"""Recordings of the conformance cases: how they are built for a GPU, written and read."""

import base64
import ctypes
import hashlib
import zlib
from pathlib import Path

import numpy as np

from .cases import HERE, Run

CSRC = HERE.parents[2] / "csrc"


def nvcc_command(file: str, library: Path, *options: str, architecture: str) -> list[str]:
    """The command that compiles a .cu of this folder into a shared library for one architecture ("80", "90a")."""
    target = f"arch=compute_{architecture},code=sm_{architecture}"
    host = ["-Xcompiler", "-Wall,-Wextra,-fPIC", "-shared", f"-I{CSRC}"]
    return [
        "nvcc",
        "-std=c++20",
        "-O2",
        "-gencode",
        target,
        *host,
        *options,
        str(HERE / f"{file}.cu"),
        "-o",
        str(library),
    ]


def case_indices(library: ctypes.CDLL, file: str) -> dict[str, int]:
    """The numbers of a file's cases, by name."""
    name_of = getattr(library, f"conformance_{file}_name")
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.c_int64]
    names: list[str] = []
    while name := name_of(len(names)):
        names.append(name.decode())
    return {name: i for i, name in enumerate(names)}


def inputs_hash(run: Run) -> str:
    digest = hashlib.sha256(repr(run.p).encode())
    for x in (run.a, run.b, run.c, run.out):
        digest.update(b"-" if x is None else x.tobytes())
    return digest.hexdigest()[:16]


def recording(outputs: list[tuple[Run, np.ndarray]], card: dict) -> dict:
    """What goes into golden.json. Outputs are compressed by zlib and written in base64."""
    runs = [
        {
            "name": run.name,
            "inputs": inputs_hash(run),
            "output": base64.b64encode(zlib.compress(np.ascontiguousarray(out).tobytes(), 9)).decode(),
        }
        for run, out in outputs
    ]
    return {"card": card, "runs": runs}


def read(recorded: dict, runs: list[Run]) -> list[tuple[Run, np.ndarray]]:
    """The outputs of those runs that were recorded with the same inputs."""
    known = {(entry["name"], entry["inputs"]): entry["output"] for entry in recorded["runs"]}
    outputs = []
    for run in runs:
        if packed := known.get((run.name, inputs_hash(run))):
            out = np.frombuffer(zlib.decompress(base64.b64decode(packed)), run.out.dtype)
            outputs.append((run, out.reshape(run.out.shape)))
    return outputs
