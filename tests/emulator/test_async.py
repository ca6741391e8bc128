"""Pipelines of asynchronous copies and products: right in every order, and each synchronisation left out is noticed."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch

import minigpt_ext as mg
from minigpt_ext.emulator.build import CSRC

KERNELS = Path(__file__).parent / "kernels"
SEEDS = (0, 1, 2, 3, 4, 5)
ARCHITECTURES = {"cp_async_pipeline": "80", "tma_wgmma_pipeline": "90a"}
SYNCHRONISATION = re.compile(
    r"^\s*((cp_async|wgmma|tma_store)_(commit|wait)|(mbarrier|named_barrier)_\w+|\w*fence\w*|__syncthreads)[<(]"
)


@cache
def library(kernel: str, check: str):
    return mg.emulator.compile(KERNELS / f"{kernel}.cu", check=check)


def small_integers(*shape: int, seed: int) -> torch.Tensor:
    """-1, 0 and 1, so that all sums are exact in every order."""
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def cp_async_pipeline(check: str, seed: int, m: int = 70, k: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel gives, and what it should."""
    a, b, c = small_integers(m, k, seed=1), small_integers(32, k, seed=2), torch.zeros(m, 32)
    library("cp_async_pipeline", check).call("cp_async_pipeline", a, b, c, m, k, seed=seed)
    return c, a.float() @ b.float().T


def tma_wgmma_pipeline(check: str, seed: int, m: int = 70, n: int = 230) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, v = (small_integers(rows, 64, seed=i) for i, rows in enumerate((m, n, n)))
    o = torch.zeros(m, 64, dtype=torch.bfloat16)
    library("tma_wgmma_pipeline", check).call("tma_wgmma_pipeline", q, k, v, o, m, n, seed=seed)
    wanted = torch.zeros(m, 64)
    for keys, values in zip(k.float().split(64), v.float().split(64), strict=True):
        wanted = wanted / 2 + q.float() @ keys.T @ values
    return o, wanted.to(torch.bfloat16)


PIPELINES = {"cp_async_pipeline": cp_async_pipeline, "tma_wgmma_pipeline": tma_wgmma_pipeline}
SIZES = {
    "cp_async_pipeline": [(1, 32), (64, 64), (65, 128), (130, 32)],
    "tma_wgmma_pipeline": [(1, 1), (64, 64), (65, 65), (130, 128), (64, 320)],
}


@pytest.mark.parametrize("kernel", PIPELINES)
def test_a_pipeline_is_right_in_every_order(kernel):
    for sizes in SIZES[kernel]:
        for check, seed in [*(("none", seed) for seed in SEEDS), ("race", 0), ("race", 1)]:
            got, wanted = PIPELINES[kernel](check, seed, *sizes)
            assert torch.equal(got, wanted), f"sizes {sizes}, check {check}, seed {seed}"


def synchronisations(kernel: str) -> dict[int, str]:
    """The lines of a kernel that synchronise, and what stands there."""
    lines = (KERNELS / f"{kernel}.cu").read_text().splitlines()
    return {n: line.strip() for n, line in enumerate(lines, 1) if SYNCHRONISATION.match(line)}


def what_notices(kernel: str, line: int) -> list[str]:
    """The runs that fail without the synchronisation at a line of a kernel, and how."""
    noticed = []
    for check, seeds in (("none", SEEDS), ("race", (0,))):
        with mg.emulator.without(f"kernels/{kernel}.cu", line, library(kernel, check)):
            for seed in seeds:
                try:
                    got, wanted = PIPELINES[kernel](check, seed)
                except mg.emulator.EmulatorError as error:
                    noticed.append(f"check {check}, seed {seed}: {str(error).splitlines()[0]}")
                else:
                    if not torch.equal(got, wanted):
                        noticed.append(f"check {check}, seed {seed}: a wrong result")
    return noticed


MUTANTS = [(kernel, line, text) for kernel in PIPELINES for line, text in synchronisations(kernel).items()]


def test_the_synchronisations_are_found():
    found = {kernel: len(synchronisations(kernel)) for kernel in PIPELINES}
    assert found == {"cp_async_pipeline": 6, "tma_wgmma_pipeline": 21}


@pytest.mark.parametrize("kernel, line, text", MUTANTS, ids=[f"{kernel}-{line}" for kernel, line, _ in MUTANTS])
def test_what_is_left_out_is_noticed(kernel, line, text):
    noticed = what_notices(kernel, line)
    if "// equivalent without: " in text:
        assert not noticed, f"line {line} says that it is not needed: {text}"
    else:
        assert noticed, f"nothing notices that line {line} is gone: {text}"


WRONG = {
    "copy_to_odd_address": "cp.async: the destination lies 8 bytes past a multiple of 16",
    "row_at_odd_address": "ldmatrix_x4: the row lies 2 bytes past a multiple of 16",
    "too_many_arrivals": "mbarrier_arrive: more arrivals than the 1 of the mbarrier made at misuse.cu",
    "too_few_bytes": r"deadlock:\n.* 128 threads wait at mbarrier_wait for 0 arrivals and 16 bytes",
    "too_many_bytes": "all have arrived, and 16 bytes more came than they announced",
    "box_at_odd_address": "tma_load_2d: the box in shared memory lies 128 bytes past a multiple of 1024",
    "barrier_not_made": "mbarrier_arrive_expect_tx: no mbarrier_init has been done there",
    "barrier_written_to": "mbarrier_arrive_expect_tx: the memory of the mbarrier made at misuse.cu:.* was written to",
    "barrier_made_twice": "mbarrier_init where the mbarrier made at misuse.cu:.* is; it needs mbarrier_inval first",
    "barrier_gone_too_early": "mbarrier_inval: boxes of tma_load_2d are on their way",
    "parity_of_two": "mbarrier_wait: parity must be 0 or 1, got 2",
    "block_gone_too_early": "the block ended before a box of tma_load_2d had landed",
    "odd_thread_count": "named_barrier_sync: threads must be a multiple of 32 up to 1024, got 100",
    "descriptors_differ": "wgmma: lane 31 has other descriptors than lane 0",
    "warps_differ": "wgmma: the warps of a warpgroup issue different ones",
    "accumulators_touched": "wgmma: its accumulators were written to before it was waited for",
    "a_touched": "wgmma: no wgmma_fence since A's registers were last written to",
    "tile_at_odd_row": "wgmma: the swizzled tile of B begins 128 bytes past a multiple of 1024",
    "tile_outside": "wgmma: a descriptor leads out of shared memory",
    "warp_missing": r"deadlock:\n(.*\n)?.* wait at wgmma_wait for the other warps of the warpgroup",
    "descriptor_at_odd_address": "wgmma_descriptor: start, leading_bytes and stride_bytes must be multiples of 16",
}


def test_what_is_being_loaded_is_not_there():
    by_thread, by_wgmma = torch.zeros(128), torch.zeros(128)
    library("misuse", "none").call("read_while_loading", torch.ones(64, 32), by_thread, by_wgmma)
    assert by_thread.isnan().all() and by_wgmma.isnan().all()
    with pytest.raises(mg.emulator.EmulatorError, match="that an asynchronous copy .* is still writing"):
        library("misuse", "race").call("read_while_loading", torch.ones(64, 32), by_thread, by_wgmma)


def misuse(launcher: str, number: int) -> torch.Tensor:
    out = torch.zeros(128)
    library("misuse", "none").call(launcher, torch.ones(64, 32), out, number)
    return out


def test_what_is_not_wrong_is_not_told():
    for kernel, expected in enumerate((1.0, 32.0, 1.0)):
        assert misuse("proper_use", kernel)[:32].tolist() == [expected] * 32


@pytest.mark.parametrize("number, wrong", list(enumerate(WRONG, 1)), ids=list(WRONG))
def test_what_is_wrong_is_told(number, wrong):
    names = re.search(r"enum Wrong \{(.*?)\}", (KERNELS / "misuse.cu").read_text(), re.DOTALL)[1]
    assert [name.strip() for name in names.split(",")][number] == wrong
    with pytest.raises(mg.emulator.EmulatorError, match=WRONG[wrong]):
        misuse("misuse", number)


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not here: whether it takes these kernels is not tested")
@pytest.mark.parametrize("kernel, architecture", ARCHITECTURES.items())
def test_nvcc_takes_these_kernels(kernel, architecture, tmp_path):
    target = f"arch=compute_{architecture},code=sm_{architecture}"
    source, cubin = KERNELS / f"{kernel}.cu", tmp_path / "kernel.cubin"
    command = ["nvcc", "-std=c++20", "-O2", "-gencode", target, f"-I{CSRC}", "-cubin", str(source), "-o", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stdout + done.stderr  # ptxas tells where it has to add a wait or a fence of its own
    assert done.returncode == 0 and not said.strip(), said
