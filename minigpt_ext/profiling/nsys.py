"""The tool "nsys": Nsight Systems records when each kernel ran, and in which range it was launched."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minigpt_ext.profiling import external
from minigpt_ext.profiling.cases import case_of
from minigpt_ext.profiling.job import Job, ToolFailed
from minigpt_ext.profiling.table import table
from minigpt_ext.profiling.work import measured_ceilings, work_of_case

_MOST_ROWS = 20
KERNELS, RANGES = "cuda_gpu_kern_sum", "nvtx_gpu_proj_sum"  # the reports of nsys stats


@dataclass(frozen=True)
class Kernel:
    """A kernel of the report cuda_gpu_kern_sum: all its launches together."""

    name: str
    launches: int
    seconds: float


@dataclass(frozen=True)
class Range:
    """A range of the report nvtx_gpu_proj_sum: on the GPU its seconds run from its first kernel to its last."""

    name: str
    times: int
    gpu_seconds: float
    host_seconds: float


def report_file(job: Job) -> Path:
    return (job.trace or Path(f"profile-{job.what}")).with_suffix(".nsys-rep")


def command(job: Job, nsys: str = "nsys") -> list[str]:
    """The command line that records."""
    return [
        nsys,
        "profile",
        "--trace=cuda,nvtx",
        "--sample=none",
        "--cpuctxsw=none",
        "--capture-range=cudaProfilerApi",  # the warm-up comes before
        "--capture-range-end=stop",
        "--force-overwrite=true",
        f"--output={report_file(job).with_suffix('')}",  # nsys adds the suffix
        *job.command(),
    ]


def stats_command(job: Job, report: str, nsys: str = "nsys") -> list[str]:
    """The command line that makes a table of the record."""
    options = ["--force-export=true", f"--report={report}", "--format=csv", "--output=-"]
    return [nsys, "stats", *options, str(report_file(job))]


def profile(job: Job) -> None:
    """Run nsys on the job and print its kernels and ranges; where nsys cannot run, print the commands instead.

    Raises ValueError where the job makes no sense, ToolFailed where nsys delivers nothing.
    """
    case = case_of(job) if job.is_op else None
    print(f"{job.what} {case.shape}, {job.dtype}" if case else job.summary)
    if reason := external.why_not("nsys"):
        return external.tell_command(reason, [command(job), *(stats_command(job, each) for each in (KERNELS, RANGES))])
    ceilings = measured_ceilings(job) if case else {}
    nsys = external.find("nsys")
    _must(external.start(command(job, nsys)), "nsys profile")
    kernels = parse_kernels(_must(external.start(stats_command(job, KERNELS, nsys)), "nsys stats"))
    if not kernels:
        raise ToolFailed(f"nsys recorded no kernel; the command was\n{external.layout(command(job))}")
    ranges = parse_ranges(_must(external.start(stats_command(job, RANGES, nsys)), "nsys stats"))
    if ranges:
        print(range_table(ranges), end="\n\n")
    print(kernel_table(kernels))
    if case:
        works, seconds = work_of_case(case), external.seconds_of_pass(kernels, job.what, job.repeat)
        print(f"\n{external.formula_table(works, seconds, ceilings)}")
    print(f"\nThe record: {report_file(job)} (open it with nsys-ui)")


def parse_kernels(text: str) -> list[Kernel]:
    """`nsys stats --report cuda_gpu_kern_sum --format csv`, longest first, as nsys has them."""
    return [
        Kernel(external.short_name(row["Name"]), int(row["Instances"]), 1e-9 * _number(row["Total Time (ns)"]))
        for row in _rows(text, "Total Time (ns)", "Instances", "Name")
    ]


def parse_ranges(text: str) -> list[Range]:
    """`nsys stats --report nvtx_gpu_proj_sum --format csv`. A name is domain:name, and ours are of no domain."""
    return [
        Range(
            row["Range"].removeprefix(":"),
            int(row["Range Instances"]),
            1e-9 * _number(row["Total Proj Time (ns)"]),
            1e-9 * _number(row["Total Range Time (ns)"]),
        )
        for row in _rows(text, "Range", "Total Proj Time (ns)", "Total Range Time (ns)", "Range Instances")
    ]


def _rows(text: str, *needed: str) -> list[dict[str, str]]:
    """The rows below the line that names all columns needed; before it nsys tells what it does."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if set(needed) <= set(next(csv.reader([line]), [])):
            rows = csv.DictReader(io.StringIO("\n".join(lines[number:])))
            return [row for row in rows if all(row[name] for name in needed)]
    return []


def kernel_table(kernels: Sequence[Kernel]) -> str:
    total = sum(kernel.seconds for kernel in kernels)
    shown, others = kernels[:_MOST_ROWS], kernels[_MOST_ROWS:]
    if others:
        launches = sum(kernel.launches for kernel in others)
        together = Kernel(f"{len(others)} others", launches, sum(kernel.seconds for kernel in others))
        shown = [*shown, together]
    rows = [
        [
            kernel.name,
            f"{kernel.launches:,}",
            f"{1e3 * kernel.seconds:,.3f}",
            f"{kernel.seconds / total:.1%}",
            f"{1e6 * kernel.seconds / kernel.launches:,.1f}",
        ]
        for kernel in shown
    ]
    return table(["kernel", "launches", "total ms", "share", "each us"], rows)


def range_table(ranges: Sequence[Range]) -> str:
    rows = [
        [each.name, f"{each.times:,}", f"{1e3 * each.gpu_seconds:,.3f}", f"{1e3 * each.host_seconds:,.3f}"]
        for each in ranges
    ]
    return table(["range", "times", "GPU ms", "host ms"], rows)


def _number(cell: str) -> float:
    return float(cell.replace(",", ""))


def _must(ended, what: str) -> str:
    if ended.returncode != 0:
        said = external.last_lines(ended.stdout + ended.stderr)
        raise ToolFailed(f"{what} ended with status {ended.returncode}. It said\n{said}")
    return ended.stdout
