"""The tool "torch": torch.profiler on this process, as tables of ranges and ops, and as a Chrome trace.

An op's time is its own, without the ops it calls. On a CPU it is the time of the calling thread, which works along with
the others; on a GPU it is that of the kernels the op launched.
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from minigpt_ext.data.files import replacing
from minigpt_ext.profiling import ranges
from minigpt_ext.profiling.job import Job
from minigpt_ext.profiling.table import table
from minigpt_ext.profiling.work import Work, measured_ceilings
from minigpt_ext.profiling.workload import WARM_UP, Workload, prepare

_MOST_ROWS = 15
_LEAST_SHARE = 0.002  # of the time; a row below it goes to the others
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")  # the FLOPs of these are torch.profiler's


@dataclass
class Row:
    """Calls of one name: their number, their seconds, and their work where it is known of each."""

    calls: int = 0
    seconds: float = 0.0
    work: Work | None = None

    def add(self, seconds: float, work: Work | None) -> None:
        known = work is not None and (self.calls == 0 or self.work is not None)
        total = work if self.work is None else Work(self.work.ceiling, self.work.amount + (work.amount if work else 0))
        self.work = total if known else None
        self.calls += 1
        self.seconds += seconds


def profile(job: Job) -> None:
    """Run the job under torch.profiler, print what was seen and write the trace.

    Raises ValueError where the job cannot be made, OSError where the trace cannot be written.
    """
    load = prepare(job)
    ceilings = measured_ceilings(job)
    for _ in range(WARM_UP):
        load.run()
    alone = _timed(load, job)
    if job.device == "cpu":  # else torch 2.13 tells on standard error when its profiler starts and stops
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if job.device == "cuda" else [])]
    with torch.profiler.profile(activities=activities, record_shapes=True, with_flops=True) as profiler:
        with ranges.shown("torch"):
            watched = _timed(load, job)
    print(
        f"\n{load.title}: {1e3 * alone / job.repeat:.3f} ms a {job.unit}; below, {job.repeat} under the profiler, "
        f"{1e3 * watched / job.repeat:.3f} ms each\n"
    )
    print(report(profiler.events(), load, watched, ceilings, on_gpu=job.device == "cuda"))
    trace = job.trace or Path(f"profile-{job.what}.json")
    with replacing(trace) as temporary:
        profiler.export_chrome_trace(str(temporary))
    print(f"\nChrome trace: {trace} (open it in https://ui.perfetto.dev or chrome://tracing)")


def report(events: Sequence[Any], load: Workload, seconds: float, ceilings: Mapping[str, float], on_gpu: bool) -> str:
    """The tables of a profile.

    Args:
        events: torch.profiler's, of `seconds` of the load.
    """
    on_host = [event for event in events if event.device_type == DeviceType.CPU]
    ops = [event for event in on_host if not event.is_user_annotation]
    annotations = [event for event in on_host if event.is_user_annotation]
    own_time = _device_seconds if on_gpu else _host_seconds
    total = sum(map(own_time, ops)) if on_gpu else seconds
    parts = [_op_table(ops, load, own_time, total, ceilings, rest=None if on_gpu else "outside of ops")]
    if annotations:
        parts.insert(0, _range_table(annotations, ops if on_gpu else [], load, seconds, ceilings))
    if on_gpu:
        parts.append(f"The GPU computed for {total / seconds:.0%} of the time.")
    return "\n\n".join(parts)


def _timed(load: Workload, job: Job) -> float:
    wait = torch.cuda.synchronize if job.device == "cuda" else lambda: None
    wait()
    began = perf_counter()
    for _ in range(job.repeat):
        load.run()
    wait()
    return perf_counter() - began


def _host_seconds(event: Any) -> float:
    return 1e-6 * event.self_cpu_time_total


def _device_seconds(event: Any) -> float:
    return 1e-6 * event.self_device_time_total


def _op_table(
    ops: Sequence[Any],
    load: Workload,
    own_time: Callable[[Any], float],
    total: float,
    ceilings: Mapping[str, float],
    rest: str | None,
) -> str:
    rows: dict[str, Row] = {}
    for event in ops:
        rows.setdefault(event.name, Row()).add(own_time(event), _work_of(event, load))
    ordered = sorted(rows.items(), key=lambda item: item[1].seconds, reverse=True)
    shown = [(name, row) for name, row in ordered[:_MOST_ROWS] if row.seconds >= _LEAST_SHARE * total]
    lines = [[name, *_figures(row, total), *_rates(row, ceilings)] for name, row in shown]
    others = [row for _, row in ordered[len(shown) :] if row.seconds > 0]
    if others:
        together = Row(sum(row.calls for row in others), sum(row.seconds for row in others))
        lines.append([f"{len(others)} others", *_figures(together, total), "", "", ""])
    if rest:
        left = Row(seconds=max(total - sum(row.seconds for row in rows.values()), 0.0))
        lines.append([rest, "", *_figures(left, total)[1:3], "", "", "", ""])
    return table(["op", "calls", "total ms", "share", "each us", "work each", "rate", "of ceiling"], lines)


def _range_table(
    annotations: Sequence[Any],
    ops_on_gpu: Sequence[Any],
    load: Workload,
    seconds: float,
    ceilings: Mapping[str, float],
) -> str:
    """Ranges as a tree.

    A range's GPU time is that of all kernels launched while it was open, by whatever thread. Rates go by it then, since
    the host may be far ahead.
    """
    gpu_seconds = _launched_between(ops_on_gpu)
    rows: dict[tuple[str, ...], tuple[Row, list[float]]] = {}
    for event in sorted(annotations, key=lambda event: event.time_range.start):
        row, on_gpu = rows.setdefault(_path(event), (Row(), []))
        row.add(1e-6 * event.cpu_time_total, load.work_of_range.get(event.name))
        on_gpu.append(gpu_seconds(event.time_range.start, event.time_range.end))
    lines = []
    for path, (row, on_gpu) in sorted(rows.items(), key=lambda item: _order(item[0], list(rows))):
        name = "  " * (len(path) - 1) + path[-1]
        gpu = [f"{1e3 * sum(on_gpu):,.3f}"] if ops_on_gpu else []
        timed = Row(row.calls, sum(on_gpu), row.work) if ops_on_gpu else row
        lines.append([name, *_figures(row, seconds)[:3], *gpu, _figures(row, seconds)[3], *_rates(timed, ceilings)])
    gpu = ["GPU ms"] if ops_on_gpu else []
    return table(["range", "times", "total ms", "share", *gpu, "each us", "work each", "rate", "of ceiling"], lines)


def _path(event: Any) -> tuple[str, ...]:
    names, parent = [event.name], event.cpu_parent
    while parent is not None:
        if parent.is_user_annotation:
            names.insert(0, parent.name)
        parent = parent.cpu_parent
    return tuple(names)


def _order(path: tuple[str, ...], seen: list[tuple[str, ...]]) -> list[int]:
    """Sorts a tree as it is read: each range after the one around it, and sisters as they first came."""
    return [seen.index(path[:depth]) for depth in range(1, len(path) + 1)]


def _launched_between(ops: Sequence[Any]) -> Callable[[float, float], float]:
    """The seconds of the kernels of all ops that start between two times."""
    ordered = sorted(ops, key=lambda event: event.time_range.start)
    starts = [event.time_range.start for event in ordered]
    sums = [0.0, *itertools.accumulate(map(_device_seconds, ordered))]
    return lambda begin, end: sums[bisect.bisect_right(starts, end)] - sums[bisect.bisect_left(starts, begin)]


def _work_of(event: Any, load: Workload) -> Work | None:
    if event.name in _PRODUCTS:
        return Work("gemm", event.flops) if event.flops else None
    return load.work_of_call(event.name, event.input_shapes) if event.name.startswith("minigpt::") else None


def _figures(row: Row, total: float) -> list[str]:
    each = f"{1e6 * row.seconds / row.calls:,.1f}" if row.calls else ""
    return [f"{row.calls:,}", f"{1e3 * row.seconds:,.3f}", f"{row.seconds / total:.1%}", each]


def _rates(row: Row, ceilings: Mapping[str, float]) -> list[str]:
    if row.work is None or row.seconds == 0:
        return ["", "", ""]
    each = row.work * (1 / row.calls)
    return [each.text, row.work.rate_text(row.seconds), row.work.share_text(row.seconds, ceilings)]
