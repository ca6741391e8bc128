"""Occupancy: beside NVIDIA's own calculator, cuda_occupancy.h of the toolkit, and by hand."""

import ctypes
import itertools
import subprocess
from pathlib import Path

import pytest

from minigpt_ext.emulator import BuildError
from minigpt_ext.emulator.build import compiler
from minigpt_ext.emulator.headers import cuda_include_folders
from minigpt_ext.profiling.occupancy import SHARED_BYTES, occupancy

# The device's numbers are those of the CUDA C++ Programming Guide's tables for 8.0, 9.0 and 10.0.
CALCULATOR = r"""
#include <climits>
#include <cuda_occupancy.h>
extern "C" int blocks(int major, int shared_kb, int threads, int registers, int static_bytes, int dynamic_bytes) {
  cudaOccDeviceProp device;
  device.computeMajor = major;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = 2048;
  device.regsPerBlock = device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerBlock = 48 * 1024;
  device.sharedMemPerMultiprocessor = shared_kb * 1024;
  device.numSms = 100;
  device.sharedMemPerBlockOptin = (shared_kb - 1) * 1024;
  device.reservedSharedMemPerBlock = 1024;
  cudaOccFuncAttributes kernel;
  kernel.maxThreadsPerBlock = INT_MAX;
  kernel.numRegs = registers;
  kernel.sharedSizeBytes = static_bytes;
  kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
  kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  kernel.maxDynamicSharedSizeBytes = device.sharedMemPerBlockOptin - static_bytes;
  kernel.numBlockBarriers = 1;
  cudaOccDeviceState state;
  cudaOccResult result;
  if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, dynamic_bytes)) return -1;
  return result.activeBlocksPerMultiprocessor;
}
"""


@pytest.fixture(scope="module")
def calculator(tmp_path_factory) -> ctypes.CDLL:
    try:
        command, folders = compiler()[0], cuda_include_folders()
    except BuildError as error:
        pytest.skip(str(error))
    if not any((Path(folder) / "cuda_occupancy.h").is_file() for folder in folders):
        pytest.skip("CUDA's headers here are without cuda_occupancy.h")
    folder = tmp_path_factory.mktemp("occupancy")
    (folder / "calculator.cpp").write_text(CALCULATOR)
    includes = [f"-I{each}" for each in folders]
    library = folder / "calculator.so"
    command = [*command, "-shared", "-fPIC", *includes, str(folder / "calculator.cpp"), "-o", str(library)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_as_nvidia_calculates(calculator, capability: str) -> None:
    major, shared_kb = int(capability.split(".")[0]), SHARED_BYTES[capability] // 1024
    threads = (1, 32, 33, 96, 128, 160, 256, 288, 384, 512, 768, 1000, 1024)
    registers = (16, 31, 32, 33, 40, 48, 64, 65, 80, 96, 128, 168, 200, 255)
    shared = (0, 1, 1024, 4736, 7168, 16384, 33333, 49152, 72704, 87040, 101376, 112640, 163 * 1024, 200000, 227 * 1024)
    for case in itertools.product(threads, registers, shared):
        ours = occupancy(capability, *case)
        assert ours.blocks == calculator.blocks(major, shared_kb, *case[:2], 0, case[2]), case
        assert ours.warps == ours.blocks * -(-case[0] // 32) and ours.share == ours.warps / 64


def test_static_and_dynamic_together(calculator) -> None:
    assert occupancy("9.0", 256, 32, 2000 + 3000).blocks == calculator.blocks(9, 228, 256, 32, 2000, 3000) == 8


@pytest.mark.parametrize(
    "capability, threads, registers, shared_bytes, blocks, limits",
    [
        # 64 warps a multiprocessor, 8 a block; 32 registers: 1,024 a warp, 64 warps of 65,536.
        ("8.0", 256, 32, 0, 8, ("registers", "threads")),
        # 33 registers: 1,056 a warp, given as 1,280; 16,384 / 1,280 = 12 warps in each of 4 parts: 48, 6 blocks of 8.
        ("8.0", 256, 33, 0, 6, ("registers",)),
        # 87,040 + 1,024 bytes: 1 of 167,936, 2 of 233,472. 128 registers: 4,096 a warp, 16 warps, 2 blocks.
        ("8.0", 256, 128, 87040, 1, ("shared memory",)),
        ("9.0", 256, 128, 87040, 2, ("registers", "shared memory")),
        ("10.0", 256, 100, 87040, 2, ("registers", "shared memory")),
        ("9.0", 256, 64, 87040, 2, ("shared memory",)),
        # 32 blocks a multiprocessor, though it had room for 64 of a warp.
        ("9.0", 32, 16, 0, 32, ("blocks",)),
        # 1,024 threads of 72 registers: 2,304 a warp, 73,728 of 65,536.
        ("9.0", 1024, 72, 0, 0, ("registers",)),
    ],
)
def test_by_hand(capability: str, threads: int, registers: int, shared_bytes: int, blocks: int, limits: tuple) -> None:
    found = occupancy(capability, threads, registers, shared_bytes)
    assert (found.blocks, found.limits) == (blocks, limits)


def test_unknown_capability() -> None:
    with pytest.raises(ValueError, match=r"capability must be one of 8.0, 9.0, 10.0, got '7.5'"):
        occupancy("7.5", 256, 32, 0)
