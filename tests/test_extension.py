"""The extension module: what is in it."""

import os
import re
import shutil
import struct
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch
from test_rooms import SCHEMAS

from minigpt_ext import _C
from minigpt_ext.backend import OPS

INFO = _C.build_info()
needs_cuda = pytest.mark.skipif(not INFO["cuda_toolkit"], reason="built without CUDA kernels")


def has_kernel(schema: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"minigpt::{schema}", key)


def architectures() -> list[str]:
    """ "8.0;9.0a;10.0+PTX" -> ["sm_80", "sm_90a", "sm_100", "compute_100"]."""
    names = []
    for arch in filter(None, re.split(r"[; ]", INFO["cuda_archs"] or "")):
        number = arch.removesuffix("+PTX").replace(".", "")
        names += [f"sm_{number}"] + ([f"compute_{number}"] if arch.endswith("+PTX") else [])
    return names


def test_build_info():
    assert set(INFO) >= {"compiler", "torch_target", "pybind11", "cuda_toolkit", "cuda_archs"}
    assert (INFO["cuda_toolkit"] is None) == (INFO["cuda_archs"] is None)
    assert _C.simd_level() in ("portable", "avx2", "avx2_vnni", "avx512", "avx512_bf16")


def test_where_cuda_is_insisted_on_it_is_there():
    """CI builds with MINIGPT_CUDA=1: then no test below may be skipped for want of CUDA kernels."""
    if os.environ.get("MINIGPT_CUDA") == "1":
        assert INFO["cuda_toolkit"], "MINIGPT_CUDA=1, but the module was built without CUDA kernels"


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_schema_has_a_cpu_kernel(schema):
    assert has_kernel(schema, "CPU")


@needs_cuda
@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_schema_has_a_cuda_kernel(schema):
    assert has_kernel(schema, "CUDA")


def device_code() -> Counter[str]:
    """How often each architecture's code is in the module: {"sm_90a": 5, "compute_100": 5, ...}.

    Read from the fat binaries that nvcc embeds: a header (magic, version, own size, size of all that follows), then
    entries, each with a header (kind 2: machine code, 1: PTX; sizes; architecture; flags, among them one for "a").
    """
    content = Path(_C.__file__).read_bytes()
    found: Counter[str] = Counter()
    for match in re.finditer(re.escape(struct.pack("<I", 0xBA55ED50)), content):
        if len(content) < match.start() + 16:
            continue
        _, _, header_size, size = struct.unpack_from("<IHHQ", content, match.start())
        at = match.start() + header_size
        end = at + size
        if header_size != 16 or end > len(content):
            continue  # the same four bytes, but no fat binary
        while at < end:
            kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", content, at)
            architecture, _, _, flags = struct.unpack_from("<IIIQ", content, at + 28)
            name = {1: "compute", 2: "sm"}[kind]
            found[f"{name}_{architecture}{'a' if flags & 0x100000 else ''}"] += 1
            at += entry_header + entry_size
    return found


@needs_cuda
def test_every_architecture_is_in_the_module():
    rooms = len(list((Path(__file__).resolve().parents[1] / "csrc").glob("*/*_cuda.cu")))
    assert rooms == len(OPS)
    assert device_code() == dict.fromkeys(architectures(), rooms)


def test_the_stable_abi_is_all_that_is_needed():
    """No C++ symbol of torch's is asked for, so that one build serves every torch from 2.11 on."""
    if not shutil.which("nm"):
        pytest.skip("nm is not on PATH")
    run = subprocess.run(["nm", "-D", "--undefined-only", _C.__file__], capture_output=True, text=True, check=True)
    foreign = [line.split()[-1] for line in run.stdout.splitlines() if re.search(r"_ZN\w*(2at|3c10|5torch)\d", line)]
    assert not foreign
