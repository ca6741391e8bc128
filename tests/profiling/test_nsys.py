"""The tool nsys: its command lines, its tables, its failures. The program itself is played by a script."""

import json
import sys
from pathlib import Path

import pytest

from minigpt_ext.profiling import nsys

# Made by hand in the form of `nsys stats --format csv` (Nsight Systems 2025): what nsys does, then the table. No GPU
# wrote these figures.
# ruff: noqa: E501
KERNELS = """
Generating SQLite file profile-train.sqlite from profile-train.nsys-rep
Processing [profile-train.sqlite] with [/opt/nvidia/nsight-systems/reports/cuda_gpu_kern_sum.py]...
Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name
70.0,7000000,10,700000.0,700000.0,690000,710000,1000.0,"void cutlass::Kernel2<cutlass_80_tensorop, (int)4>(T1::Params)"
20.0,2000000,4,500000.0,500000.0,490000,510000,1000.0,void minigpt::gelu_forward_kernel<float>(minigpt::GeluForwardParams)
10.0,1000000,2,500000.0,500000.0,490000,510000,1000.0,void minigpt::gelu_backward_kernel<float>(minigpt::GeluBackwardParams)
"""
RANGES = """
Processing [profile-train.sqlite] with [/opt/nvidia/nsight-systems/reports/nvtx_gpu_proj_sum.py]...
Range,Style,Total Proj Time (ns),Total Range Time (ns),Range Instances,Proj Avg (ns),Proj Med (ns),Proj Min (ns),Proj Max (ns),Proj StdDev (ns),Total GPU Ops,Avg GPU Ops,Avg Range Lvl,Avg Num Child
:backward,PushPop,6000000,4000000,3,2000000.0,2000000.0,1900000,2100000,1000.0,90,30.0,1.0,0.0
:block 0,PushPop,1500000,9000000,3,500000.0,500000.0,490000,510000,1000.0,30,10.0,2.0,2.0
"""
# Plays nsys: keeps its arguments, a line a call, and answers `stats` with the report that is asked for.
NSYS = f"""
import json
with open("asked.json", "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
if sys.argv[1] == "profile":
    print("recorded")
    sys.exit({{status}})
print({KERNELS!r} if "--report=cuda_gpu_kern_sum" in sys.argv else {RANGES!r})
"""


def test_kernels_are_read() -> None:
    product, forward, backward = nsys.parse_kernels(KERNELS)
    assert product == nsys.Kernel("cutlass::Kernel2<cutlass_80_tensorop, (int)4>", 10, pytest.approx(7e-3))
    assert forward == nsys.Kernel("gelu_forward_kernel<float>", 4, pytest.approx(2e-3))
    assert backward.launches == 2


def test_ranges_are_read() -> None:
    backward, block = nsys.parse_ranges(RANGES)
    assert backward == nsys.Range("backward", 3, pytest.approx(6e-3), pytest.approx(4e-3))
    assert block.name == "block 0"


def test_a_record_without_data() -> None:
    said = (
        "Processing [x.sqlite] with [cuda_gpu_kern_sum.py]...\nSKIPPED: x.sqlite does not contain CUDA kernel data.\n"
    )
    assert nsys.parse_kernels(said) == [] and nsys.parse_ranges(said) == []


def test_the_commands_and_the_tables(minigpt, tool, tmp_path: Path) -> None:
    tool("nsys", NSYS.format(status=0))
    status, said, errors = minigpt("profile", "train", "--tool", "nsys", "--preset", "small", "--trace", "my run")
    assert status == 0, errors
    profile, *stats = map(json.loads, (tmp_path / "asked.json").read_text().splitlines())
    child = profile.index(sys.executable)
    assert profile[:2] == ["profile", "--trace=cuda,nvtx"]
    assert {"--capture-range=cudaProfilerApi", "--output=my run"} <= set(profile[:child])
    assert profile[child + 1 :] == [
        *("-m", "minigpt_ext.cli", "profile", "train", "--tool", "none", "--device", "cuda", "--dtype", "float32"),
        *("--repeat", "3", "--preset", "small"),
    ]
    assert [words[0] for words in stats] == ["stats", "stats"]
    assert all(words[-1] == "my run.nsys-rep" and "--format=csv" in words for words in stats)
    rows = [line.split() for line in said.splitlines()]
    assert ["gelu_forward_kernel<float>", "4", "2.000", "20.0%", "500.0"] in rows
    assert ["block", "0", "3", "1.500", "9.000"] in rows
    assert "my run.nsys-rep" in said


def test_an_op_is_held_against_its_formula(minigpt, tool) -> None:
    tool("nsys", NSYS.format(status=0))
    shape = "rows=1000,columns=1000,approximate=none,backward=yes"
    status, said, errors = minigpt("profile", "gelu", "--tool", "nsys", "--repeat", "2", "--shape", shape)
    assert status == 0, errors
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line}
    # forward: 2 ms in 2 calls, 8 MB each, of 2 GB/s; backward: 1 ms in 2 calls, 12 MB each
    assert rows["forward"] == ["1,000.0", "8.0", "MB", "8.0", "GB/s", "400%", "copy"]
    assert rows["backward"] == ["500.0", "12.0", "MB", "24.0", "GB/s", "1200%", "copy"]


def test_a_failure_is_told(minigpt, tool) -> None:
    tool("nsys", NSYS.format(status=3))
    status, _, errors = minigpt("profile", "train", "--tool", "nsys")
    assert status == 1 and "nsys profile ended with status 3" in errors and "recorded" in errors
