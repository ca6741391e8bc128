"""The tool "ncu": Nsight Compute replays each launch of a kernel of ours until it has read all counters of it."""

from __future__ import annotations

import csv
import io
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minigpt_ext.backend import OPS
from minigpt_ext.profiling import external
from minigpt_ext.profiling.cases import case_of
from minigpt_ext.profiling.job import Job, ToolFailed
from minigpt_ext.profiling.table import table
from minigpt_ext.profiling.work import measured_ceilings, work_of_case

# heading of the table -> the counters it is made of, which are added up
COUNTERS = {
    "time us": ("gpu__time_duration.sum",),
    "DRAM MB": ("dram__bytes_read.sum", "dram__bytes_write.sum"),
    "DRAM %": ("gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",),
    "SM %": ("sm__throughput.avg.pct_of_peak_sustained_elapsed",),
    "sectors/ld": ("l1tex__average_t_sectors_per_request_pipe_lsu_mem_global_op_ld.ratio",),
    "sectors/st": ("l1tex__average_t_sectors_per_request_pipe_lsu_mem_global_op_st.ratio",),
    "bank conflicts": (
        "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum",
        "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum",
    ),
    "occupancy %": ("sm__warps_active.avg.pct_of_peak_sustained_active",),
    "of possible %": ("sm__maximum_warps_per_active_cycle_pct",),
    "registers": ("launch__registers_per_thread",),
}
READING = """\
A row is the mean of the kernel's launches. DRAM %, SM %: of what the memory and the multiprocessors can do at most.
sectors/ld, /st: 32-byte sectors a request of a warp touches; 4-byte accesses side by side touch 4, 16-byte ones 16.
occupancy: warps at work of those a multiprocessor holds; of possible: the most that registers, shared memory allow."""
# ncu's units -> seconds, bytes; what has no entry is a number as it stands
_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "nsecond": 1e-9,
    "usecond": 1e-6,
    "msecond": 1e-3,
    "second": 1.0,
}
_UNITS |= {"Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}
_SHOWN_IN = {"time us": 1e6, "DRAM MB": 1e-6}
NO_PERMISSION = """\
ncu may not read the GPU's performance counters (ERR_NVGPUCTRPERM): the driver keeps them for administrators. One of
  - run the command below with sudo, or as root; in a container, start that with --cap-add=SYS_ADMIN;
  - let every user read them: `options nvidia NVreg_RestrictProfilingToAdminUsers=0` in /etc/modprobe.d/profiling.conf,
    then load the driver anew or reboot;
  - do without counters: --tool torch gives the times of the kernels."""


@dataclass
class Launches:
    """All launches of a kernel. values: of each counter, in seconds, bytes or as it stands; nan where ncu has none."""

    name: str
    count: int = 0
    values: dict[str, list[float]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of all launches together."""
        return sum(self.values["gpu__time_duration.sum"])

    def mean(self, heading: str) -> float:
        return sum(sum(self.values.get(counter, [math.nan])) for counter in COUNTERS[heading]) / self.count


def command(job: Job, log: Path | None = None, ncu: str = "ncu") -> list[str]:
    """The command line. What ncu says goes to `log`; without one it stands among what else is printed."""
    words = [
        ncu,
        "--csv",
        "--page=raw",
        "--print-units=base",
        "--metrics=" + ",".join(counter for counters in COUNTERS.values() for counter in counters),
        f"--kernel-name=regex:{external.kernels_of(*([job.what] if job.is_op else OPS))}",
        "--profile-from-start=off",  # the warm-up comes before
        "--clock-control=none",  # times as the benchmarks have them; and a GPU's settings stay as they are
        "--cache-control=all",  # caches are emptied before each launch
    ]
    if job.range:
        # The slash marks a push/pop range. Backward launches its kernels from threads of its own: hence the scope.
        words += ["--nvtx", f"--nvtx-include={job.range}/", "--nvtx-push-pop-scope=process"]
    if log:
        words.append(f"--log-file={log}")
    return [*words, *job.command()]


def profile(job: Job) -> None:
    """Run ncu on the job and print its counters; where ncu cannot run, print the command instead.

    Raises ValueError where the job makes no sense, ToolFailed where ncu delivers nothing.
    """
    case = case_of(job) if job.is_op else None
    print(f"{job.what} {case.shape}, {job.dtype}" if case else job.summary)
    if reason := external.why_not("ncu"):
        return external.tell_command(reason, [command(job)])
    ceilings = measured_ceilings(job)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "ncu.csv")
        line = command(job, log, external.find("ncu"))
        ended = external.start(line)
        written = log.read_text(errors="replace") if log.is_file() else ""
    kernels = parse(written)
    if not kernels:
        raise ToolFailed(_what_failed(written, ended.stdout + ended.stderr, ended.returncode, job))
    print(counter_table(kernels))
    if case:
        works, seconds = work_of_case(case), external.seconds_of_pass(kernels, job.what, job.repeat)
        print(f"\n{external.formula_table(works, seconds, ceilings)}")


def parse(text: str) -> list[Launches]:
    """The kernels of `ncu --csv --page raw`, in the order of their first launch.

    Before the table stand lines of ncu's own (==PROF== ...). The table: a line of names, a line of units, a line a
    launch, all quoted. A column a counter; "n/a" or an empty cell where ncu could not read it.
    """
    lines = text.splitlines()
    begin = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), None)
    if begin is None:
        return []
    names, units, *launches = csv.reader(io.StringIO("\n".join(lines[begin:])))
    kernels: dict[str, Launches] = {}
    for cells in launches:
        if len(cells) != len(names):  # what ncu says after the table
            continue
        row = dict(zip(names, cells, strict=True))
        kernel = kernels.setdefault(row["Kernel Name"], Launches(external.short_name(row["Kernel Name"])))
        kernel.count += 1
        for name, unit, cell in zip(names, units, cells, strict=True):
            if "__" in name:
                kernel.values.setdefault(name, []).append(_number(cell) * _UNITS.get(unit, 1.0))
    return list(kernels.values())


def counter_table(kernels: Sequence[Launches]) -> str:
    rows = [
        [
            kernel.name,
            f"{kernel.count}",
            *(_cell(kernel.mean(heading) * _SHOWN_IN.get(heading, 1.0)) for heading in COUNTERS),
        ]
        for kernel in kernels
    ]
    return f"{table(['kernel', 'launches', *COUNTERS], rows)}\n{READING}"


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.1f}"


def _number(cell: str) -> float:
    try:
        return float(cell.replace(",", ""))
    except ValueError:
        return math.nan


def _what_failed(written: str, said: str, status: int, job: Job) -> str:
    again = f"The command was\n{external.layout(command(job))}"
    if "ERR_NVGPUCTRPERM" in written + said:
        return f"{NO_PERMISSION}\n{again}"
    if "No kernels were profiled" in written + said and status == 0:
        inside = f" within a range called {job.range!r}" if job.range else ""
        return f"ncu saw no kernel of ours{inside}. {again}"
    return f"ncu ended with status {status}. It said\n{external.last_lines(written + said)}\n{again}"
