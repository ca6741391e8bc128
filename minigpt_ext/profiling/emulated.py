"""The tool "emulator": what an op's CUDA kernels ask of memory, line by line, counted without a GPU."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from minigpt_ext.backend import backend
from minigpt_ext.emulator import BuildError, EmulatorError, counted
from minigpt_ext.emulator.counters import Launches, Line
from minigpt_ext.profiling.cases import case_of
from minigpt_ext.profiling.external import short_name
from minigpt_ext.profiling.job import Job, ToolFailed
from minigpt_ext.profiling.occupancy import SHARED_BYTES, occupancy
from minigpt_ext.profiling.ptxas import Resources, find_nvcc, resources
from minigpt_ext.profiling.table import table
from minigpt_ext.profiling.work import Work, pass_of, work_of_case

_WIDEST_SOURCE = 60
READING = """\
A row is a line of the kernel. Requests: instructions of a warp. Needed, a request: 32-byte sectors of global memory,
wavefronts of shared memory, lanes on one address for atomics. Ideal: the same bytes side by side; no two words in one
bank. Of ideal: ideal/needed. Worst: of one request, the most sectors, words in one bank, or lanes on one address."""


def profile(job: Job) -> None:
    """Run the op once in the emulator and print what its kernels asked for.

    Without a shape the heaviest of the benchmark's quick ones is taken; the emulator needs seconds for it.
    """
    if not job.is_op:
        raise ValueError(f"--tool emulator looks at an op, not at {job.what}")
    case = case_of(job if job.shape else replace(job, quick=True))
    torch.manual_seed(0)
    function = importlib.import_module("report").with_gradients(case.ours)
    try:
        inputs = case.inputs()
        with backend("emulated", check="race"), counted() as launches:
            function(*inputs)
    except (BuildError, EmulatorError) as error:
        raise ToolFailed(str(error)) from error
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--shape {job.shape or case.shape}: {error}") from error
    print(f"{job.what} {case.shape}, {job.dtype}, in the emulator\n")
    known = _resources(job) if launches else {}
    for launch in launches:
        print("\n".join([_heading(launch), line_table(launch.lines), *_resource_lines(launch, known, job.arch), ""]))
    print(formula_text(launches, work_of_case(case)))
    print(f"\n{READING}")


def line_table(lines: Sequence[Line]) -> str:
    """A row a line of the kernel, its source beside it."""
    headings = ["line", "access", "requests", "KB", "needed", "ideal", "of ideal", "worst"]
    rows = [
        [
            line.place,
            line.kind,
            f"{line.requests:,}",
            f"{line.bytes / 1e3:,.1f}",
            f"{line.units / line.requests:.2f}",
            f"{line.ideal / line.requests:.2f}",
            _percent(line.ideal / line.units),
            f"{line.worst}",
        ]
        for line in lines
    ]
    text = table(headings, rows).splitlines()
    width = max(map(len, text))
    sources = ["source", "------", *(_source(line.file, line.line) for line in lines)]
    return "\n".join(f"{row:<{width}}  {source}".rstrip() for row, source in zip(text, sources, strict=True))


def formula_text(launches: Sequence[Launches], works: Mapping[str, Work]) -> str:
    """The bytes that the passes of an op move, and their FLOPs, against the benchmark's formula."""
    paragraphs = []
    for name, work in works.items():
        of_pass = [launch for launch in launches if pass_of(launch.kernel) == name]
        touched = sum(launch.bytes_read + launch.bytes_written for launch in of_pass)
        asked = sum(launch.bytes_asked_for for launch in of_pass)
        if not of_pass:
            paragraphs.append(f"{name}: {work.text} by the formula; no kernel was launched")
            continue
        if work.ceiling == "gemm":
            flops = sum(launch.tensor_flops for launch in of_pass)
            each = f"{work.amount / touched:,.1f} FLOPs for each of " if touched else ""
            text = f"{work.text} by the formula, {each}{_mb(touched)} touched; "
            text += f"tensor cores do {flops / work.amount:.2f}x the formula" if flops else "none by tensor cores"
            more = f"asked for are {_mb(asked)}" + (f", {asked / touched:.2f}x what is touched" if touched else "")
        else:
            text = f"{_mb(work.amount)} by the formula; touches {_mb(touched)}{_times(touched, work.amount)}"
            more = f"asks for {_mb(asked)}{_times(asked, work.amount)}"
        paragraphs.append(f"{name}: {text}; {more}")
    paragraphs.append(
        "Touched: each byte once a launch. What is asked for again a GPU's caches serve, as far as they hold it."
    )
    return "\n".join(paragraphs)


def _heading(launch: Launches) -> str:
    grid, block = (" x ".join(str(n) for n in sizes if n > 1) or "1" for sizes in (launch.grid, launch.block))
    shared = f"{launch.static_bytes + launch.dynamic_bytes:,} bytes of shared memory ({launch.dynamic_bytes:,} dynamic)"
    times = f", {launch.launches} times" if launch.launches > 1 else ""
    blocks = "block" if grid == "1" else "blocks"
    threads = "thread" if block == "1" else "threads"
    return f"{short_name(launch.function) or launch.kernel}: {grid} {blocks} of {block} {threads}, {shared}{times}"


def _resources(job: Job) -> dict[str, Resources]:
    nvcc = find_nvcc()
    if nvcc is None:
        print("Registers and occupancy are left out: no nvcc on PATH, under CUDA_HOME or in /usr/local/cuda.\n")
        return {}
    try:
        return resources(job.what, job.arch, nvcc)
    except (ToolFailed, BuildError) as error:
        print(f"Registers and occupancy are left out: {error}\n")
        return {}


def _resource_lines(launch: Launches, known: Mapping[str, Resources], arch: str) -> list[str]:
    kernel = known.get(short_name(launch.function))
    if kernel is None:
        return []
    threads = launch.block[0] * launch.block[1] * launch.block[2]
    held: dict[str, list[str]] = {}  # what a multiprocessor holds -> the capabilities where it does
    for capability in SHARED_BYTES:
        of = occupancy(capability, threads, kernel.registers, kernel.static_bytes + launch.dynamic_bytes)
        limits = " and ".join(of.limits)
        blocks = "1 block" if of.blocks == 1 else f"{of.blocks} blocks"
        warps = "1 warp" if of.warps == 1 else f"{of.warps} warps"
        text = f"{blocks}, {warps}, {of.share:.0%} of most; limited by {limits}"
        held.setdefault(text, []).append(capability)
    spilled = f"{kernel.spilled_bytes} bytes spilled" if kernel.spilled_bytes else "none spilled"
    target = f"sm_{arch.replace('.', '')}"
    lines = [f"{kernel.registers} registers a thread, {spilled}; with the registers of {target} a multiprocessor holds"]
    return lines + [f"  {', '.join(capabilities)}: {text}" for text, capabilities in held.items()]


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share in (0, 1) else f"{min(100 * share, 99.9):.1f}%"


def _times(amount: float, formula: float) -> str:
    return f", {amount / formula:.2f}x" if formula else ""


def _mb(nbytes: float) -> str:
    return f"{nbytes / 1e6:,.2f} MB"


@cache
def _lines_of(file: str) -> list[str]:
    path = Path(file)
    return path.read_text().splitlines() if path.is_file() else []


def _source(file: str, line: int) -> str:
    lines = _lines_of(file)
    text = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    return text if len(text) <= _WIDEST_SOURCE else text[: _WIDEST_SOURCE - 3] + "..."
