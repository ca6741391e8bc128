"""The emulator builds with g++ and clang, with the headers of a CUDA toolkit and of pip's packages, from nothing."""

import os
import shutil
import subprocess
import sys

import pytest

from minigpt_ext.emulator import BuildError, headers

ONE_KERNEL = """
import torch
import minigpt_ext as mg

x, y = torch.arange(64.0), torch.empty(64)
for check in ("none", "race"):
    kernels = mg.emulator.compile({source!r}, check=check)
    kernels.call("reverse", x, y)
    assert torch.equal(y, x.flip(0))
try:
    with mg.emulator.without("reverse.cu", 8, kernels):
        kernels.call("reverse", x, y)
except mg.emulator.EmulatorError as error:
    assert "uninitialised shared memory" in str(error) and error.line == 9, error
else:
    raise AssertionError("the missing barrier went unnoticed")
"""

KERNEL = """#include "common/device.cuh"
using namespace minigpt;

__global__ void reverse_kernel(const float* x, float* y) {
  SHARED(float[64], all);
  const int i = threadIdx.x;
  all[i] = x[i];
  __syncthreads();
  y[i] = all[63 - i];
}

extern "C" void reverse(const float* x, float* y) { launch("reverse_kernel", reverse_kernel, 1, 64, 0, nullptr, x, y); }
"""

ALL_OPS = """
import torch
import minigpt_ext as mg

x = torch.randn(5, 33, requires_grad=True)
q = torch.randn(2, 65, 2, 64, requires_grad=True)
for check in ("none", "race"):
    with mg.backend("emulated", check=check):
        y = mg.ops.layer_norm(mg.ops.gelu(x), torch.ones(33))
        out = mg.ops.attention(q, q, q)
        gradients = torch.autograd.grad([y.square().sum(), out.square().sum()], [x, q])
    expected = torch.autograd.grad(
        [
            torch.nn.functional.layer_norm(torch.nn.functional.gelu(x), (33,)).square().sum(),
            torch.nn.functional.scaled_dot_product_attention(
                *[q.transpose(1, 2)] * 3, is_causal=True
            ).square().sum(),
        ],
        [x, q],
    )
    for ours, theirs in zip(gradients, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
"""


def build_and_run(program: str, tmp_path, compiler: str, where: str) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    environment = {"CXX": compiler, "MINIGPT_CUDA_HEADERS": where, "MINIGPT_CACHE": str(tmp_path / "cache")}
    try:
        headers.folders_of(where)
    except BuildError as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("compiler", "where"), [("g++", "packages"), ("clang++", "toolkit")])
def test_one_kernel(tmp_path, compiler, where):
    source = tmp_path / "reverse.cu"
    source.write_text(KERNEL)
    build_and_run(ONE_KERNEL.format(source=str(source)), tmp_path, compiler, where)


@pytest.mark.slow
def test_all_ops_by_clang_with_the_packages(tmp_path):
    build_and_run(ALL_OPS, tmp_path, "clang++", "packages")
