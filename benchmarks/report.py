"""What every benchmark shares: a case is described, checked against float64, timed beside torch, and told as a row.

    python benchmarks/bench_gelu.py --quick        is        minigpt bench gelu --quick

A bench_<name>.py has one function, `run(session)`: for an op it hands its cases to `session.compare`, which checks and
times each; training, generation and the tokenizer make their rows themselves. The goals beside the ratios are the
project's own, for a CPU with two threads.
"""

import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import machine
import timing
import torch
from timing import Times
from torch import Tensor

from minigpt_ext.data.files import write_atomically
from minigpt_ext.training import keep_freed_memory


@dataclass(frozen=True)
class Options:
    """What the command line chose."""

    quick: bool = False
    compile: bool = False
    warm: bool = False  # the same inputs at each call, so that caches may hold them
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    plot: Path | None = None  # where the sweep's picture goes

    def goal(self, ratio: float) -> float | None:
        """A goal, which holds for float32 on a CPU and for the full shapes; None elsewhere."""
        return ratio if self.device.type == "cpu" and self.dtype == torch.float32 and not self.quick else None


@dataclass(frozen=True)
class Case:
    """One shape of one op.

    inputs() makes the tensors. Where some require a gradient it is a case of forward and backward: the last one is then
    dy (of functions that return a tuple, their dys, stacked), and the functions are called with the others. ours, torch
    and reference return a tensor or several; reference gets float64. Inputs of a case that memory bounds ("read",
    "copy") are cold at each call, unless the command line wants them warm. What "read" bounds is held against a plain
    read of the same tensors that takes its turn among the functions: memory's speed changes by the minute.
    """

    shape: str
    inputs: Callable[[], Sequence[Tensor]]
    ours: Callable[..., Any]
    torch: Callable[..., Any]
    reference: Callable[..., Any]
    bound: str  # the ceiling that it is held against: "read", "copy" or "gemm"
    work: float  # bytes for "read" and "copy", floating-point operations for "gemm"
    forward_work: float | None = None  # of the forward alone, in a case of forward and backward
    goal: float | None = None  # least ratio torch/ours
    share_goal: float | None = None  # least share of the ceiling
    yardstick: Callable[..., Any] | None = (
        None  # whose error ours is held against, where `torch` computes another thing
    )
    least_scale: float = 0.0  # of errors: the size of the terms, where a small result may be what is left of large ones
    tensors_read: int | None = None  # how many of the inputs one call reads, where the functions read different ones


@dataclass(frozen=True)
class Row:
    """One line of a table, and one object of the JSON. Times in seconds; errors relative to the largest true value."""

    shape: str
    times: Mapping[str, Times]  # "ours" first
    work: float
    work_unit: str  # what `rate` counts: "GB/s", "GFLOP/s", "tokens/s", "MB/s"
    ceiling: str | None = None
    share: float | None = None  # of the ceiling
    goals: Mapping[str, float] = field(default_factory=dict)
    share_goal: float | None = None
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def ratios(self) -> dict[str, float]:
        ours = self.times["ours"].median
        return {name: times.median / ours for name, times in self.times.items() if name != "ours"}

    @property
    def rate(self) -> float:
        return self.work / self.times["ours"].median

    @property
    def lost_to(self) -> dict[str, float]:
        return {name: ratio for name, ratio in self.ratios.items() if round(ratio, 2) < 1}

    @property
    def verdict(self) -> str:
        if self.lost_to:
            return f"slower than {' and '.join(self.lost_to)}"
        short = any(self.ratios[name] < goal for name, goal in self.goals.items())
        return "short of the goal" if short or (self.share_goal and self.share < self.share_goal) else ""

    def as_json(self, benchmark: str) -> dict[str, Any]:
        microseconds = {
            name: {f"{key}_us": round(1e6 * value, 3) for key, value in asdict(times).items()}
            for name, times in self.times.items()
        }
        facts = asdict(self) | {
            "times": microseconds,
            "ratios": self.ratios,
            "rate": self.rate,
            "verdict": self.verdict,
        }
        return {"benchmark": benchmark} | facts


READER = "reader"  # among the functions of a case


class WrongResult(Exception):
    """An implementation computed something else than the formula says."""


@dataclass
class Session:
    """One run of the command: its options, the machine's ceilings, and the rows so far."""

    options: Options
    ceilings: Mapping[str, float]
    results: list[dict[str, Any]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    table: "Table | None" = None

    @property
    def seconds(self) -> float:
        """To spend on timing one case."""
        return 0.1 if self.options.quick else 1.5

    def begin(self, benchmark: str, rivals: Sequence[str], unit: str = "us", note: str = "") -> None:
        self.table = Table(benchmark, rivals, unit)
        print(f"\n{self.table.heading(note)}", flush=True)

    def add(self, row: Row) -> None:
        print(self.table.line(row), flush=True)
        self.results.append(row.as_json(self.table.benchmark))
        self.lost += [f"{self.table.benchmark} {row.shape}: {r:.2f}x {name}" for name, r in row.lost_to.items()]

    def compare(self, benchmark: str, cases: Sequence[Case], note: str = "") -> None:
        """Checks and times each case of an op, and prints its table."""
        self.begin(benchmark, ["torch", *(["compile"] if self.options.compile else [])], note=note)
        for case in cases:
            self.add(self.measure(benchmark, case))

    def measure(self, benchmark: str, case: Case) -> Row:
        options = self.options
        torch.manual_seed(0)
        inputs = case.inputs()
        functions = {"ours": case.ours, "torch": case.torch}
        if options.compile:
            torch._dynamo.reset()  # else it generalises from the last shape to any
            functions["compile"] = torch.compile(case.torch, dynamic=False)
        runs = {name: with_gradients(function) for name, function in functions.items()}
        errors = check(f"{benchmark} {case.shape}", case, inputs, runs)
        sets = input_sets(case, inputs, options)
        if case.bound == "read":
            runs[READER] = lambda *inputs: [read(t) for t in inputs[: case.tensors_read]]
        times = timing.compare(runs, sets, options.device, self.seconds, at_least=3 if options.quick else 7)
        rate, ceiling = case.work / times["ours"].median, self.ceilings[case.bound]
        if reading := times.pop(READER, None):
            ceiling = sum(t.nbytes for t in inputs[: case.tensors_read]) / reading.median
        return Row(
            shape=case.shape,
            times=times,
            work=case.work,
            work_unit="GFLOP/s" if case.bound == "gemm" else "GB/s",
            ceiling=case.bound,
            share=rate / ceiling,
            goals={} if case.goal is None else {"torch": case.goal},
            share_goal=case.share_goal,
            errors=errors,
        )


def input_sets(case: Case, inputs: Sequence[Tensor], options: Options) -> list[Sequence[Tensor]]:
    """The inputs, and as many copies of them as it takes for each to be cold when its turn comes."""
    if case.bound == "gemm" or options.warm:
        return [inputs]
    cold = machine.rotation_bytes(options.device, options.quick)
    size = sum(t.nbytes for t in inputs[: case.tensors_read])
    return [inputs, *([copy_of(t) for t in inputs] for _ in range(min(cold // max(size, 1), 1000)))]


def read(t: Tensor) -> Tensor:
    """Reads all of t's bytes as torch reads fastest."""
    return t.detach().view(-1).view(torch.float32).sum()


def with_gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    """function(*inputs) as a user's step would call it: where inputs want gradients, forward and backward.

    The gradients are new tensors each time, as they are where a step begins with gradients set to None.
    """

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        leaves = [t for t in inputs if t.requires_grad]
        if not leaves:
            return as_tuple(function(*inputs))
        *arguments, dy = inputs
        y = function(*arguments)
        gradients = dy.unbind() if isinstance(y, tuple) else dy
        return (*as_tuple(y), *torch.autograd.grad(y, leaves, gradients))

    return run


def check(name: str, case: Case, inputs: Sequence[Tensor], runs: Mapping[str, Callable[..., Any]]) -> dict[str, float]:
    """Runs every implementation once and returns its worst error; raises WrongResult where ours is wrong."""

    def fresh(dtype: torch.dtype | None = None) -> list[Tensor]:  # ops that write must not spoil the next one's inputs
        return [copy_of(t, dtype if t.is_floating_point() else None) for t in inputs]

    truth = with_gradients(case.reference)(*fresh(torch.float64))
    if case.yardstick is not None:
        runs = {"ours": runs["ours"], "torch": with_gradients(case.yardstick)}
    return worst_errors(name, {key: run(*fresh()) for key, run in runs.items()}, truth, case.least_scale)


def worst_errors(
    name: str, results: Mapping[str, Sequence[Tensor]], truth: Sequence[Tensor], least_scale: float = 0.0
) -> dict[str, float]:
    """The worst error of each implementation's results, each relative to the largest value of its tensor in float64,
    and no less than least_scale.

    results: "ours" and "torch", and others. Raises WrongResult where an error of ours is above 3 x torch's + 16 eps.
    That is wide: here the question is whether the right thing is timed, and tests/accuracy.py judges precision.
    """
    errors = {
        key: [relative_error(a, b, least_scale) for a, b in zip(value, truth, strict=True)]
        for key, value in results.items()
    }
    for i, (ours, theirs) in enumerate(zip(errors["ours"], errors["torch"], strict=True)):
        limit = 3 * theirs + 16 * torch.finfo(results["ours"][i].dtype).eps
        if not ours <= limit < float("inf"):
            raise WrongResult(f"{name}: result {i} is wrong: error {ours:.2g} where at most {limit:.2g} is rounding")
    return {key: max(value) for key, value in errors.items()}


def relative_error(result: Tensor, truth: Tensor, least_scale: float = 0.0) -> float:
    """Largest difference, relative to the largest true value, or to least_scale where that is more; infinite for a
    wrong shape or what is not finite."""
    if result.shape != truth.shape:
        return float("inf")
    difference = (result.detach().double() - truth.detach()).abs().nan_to_num(nan=float("inf")).max().item()
    return difference / max(truth.detach().abs().max().item(), least_scale, torch.finfo(torch.float64).tiny)


def as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def copy_of(t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A leaf of its own memory, with t's strides: a view of a packed tensor is read in the same steps."""
    copy = torch.empty_strided(t.shape, t.stride(), dtype=dtype or t.dtype, device=t.device)
    return copy.copy_(t.detach()).requires_grad_(t.requires_grad)


class Table:
    """Aligned text, line by line, so that each row shows when it is measured."""

    def __init__(self, benchmark: str, rivals: Sequence[str], unit: str) -> None:
        self.benchmark, self.rivals, self.unit = benchmark, rivals, unit
        self.scale, self.width = {"us": (1e6, 25), "ms": (1e3, 20)}[unit]

    def heading(self, note: str) -> str:
        cells = [f"{self.benchmark:<34}", f"{'ours ' + self.unit + ' (p20-p80)':>{self.width}}"]
        for rival in self.rivals:
            cells += [f"{rival + ' ' + self.unit:>{self.width}}", f"{'/ours':>6}", f"{'goal':>7}"]
        cells += [f"{'rate':>15}", f"{'of ceiling':>16}", f"{'error':>8}", f"{'torch':>8}"]
        heading = " ".join(cells)
        return "\n".join(filter(None, [note, heading, "-" * len(heading)]))

    def line(self, row: Row) -> str:
        cells = [f"{row.shape:<34}", f"{self.time(row.times['ours']):>{self.width}}"]
        for rival in self.rivals:
            if rival not in row.times:
                cells.append(" " * (self.width + 15))
                continue
            goal = f">={row.goals[rival]:g}x" if rival in row.goals else ""
            cells += [f"{self.time(row.times[rival]):>{self.width}}", f"{row.ratios[rival]:>5.2f}x", f"{goal:>7}"]
        share = "" if row.share is None else f"{row.share:.0%} {row.ceiling}"
        share += "" if row.share_goal is None else f" (>={row.share_goal:.0%})"
        cells += [f"{rate_text(row.rate, row.work_unit):>15}", f"{share:>16}"]
        cells += [f"{row.errors[name]:>8.1e}" if name in row.errors else " " * 8 for name in ("ours", "torch")]
        return " ".join([*cells, row.verdict]).rstrip()

    def time(self, times: Times) -> str:
        median, low, high = (f"{self.scale * t:,.{0 if self.scale * t >= 100 else 1}f}" for t in asdict(times).values())
        return f"{median} ({low}-{high})"


def rate_text(rate: float, unit: str) -> str:
    if unit == "tokens/s":
        return f"{rate:,.0f} {unit}"
    return f"{rate / {'MB/s': 1e6}.get(unit, 1e9):,.1f} {unit}"


def run(names: Sequence[str], options: Options, json_path: Path | None = None) -> None:
    """Runs the benchmarks called `names` and prints them; the last line is the JSON, also written to json_path."""
    began = perf_counter()
    if options.device.type == "cpu":
        keep_freed_memory()  # else page faults of fresh results fall now on one side, now on the other
    load = machine.load_average()
    card = machine.card(options.device, options.dtype, options.quick) | {"warm": options.warm}
    print(machine.card_text(card, load))
    session = Session(options, machine.ceilings(options.device, options.dtype, options.quick))
    print(machine.ceilings_text(session.ceilings, options.dtype), flush=True)
    for name in names:
        importlib.import_module(f"bench_{name}").run(session)
    print("\n".join(["\nSlower than the peer:", *(f"  {line}" for line in session.lost or ["nothing here"])]))
    results = {
        "format": "minigpt-bench",
        "version": 1,
        "card": card | {"load_average": load, "quick": options.quick, "seconds": round(perf_counter() - began, 1)},
        "ceilings": session.ceilings,
        "rows": session.results,
    }
    line = json.dumps(results, allow_nan=False)
    if json_path is not None:
        write_atomically(json_path, line + "\n")
    print(line)


def main(name: str) -> None:
    """`python benchmarks/bench_<name>.py ...` is `minigpt bench <name> ...`."""
    from minigpt_ext.cli import main as minigpt

    sys.argv[1:1] = ["bench", name]
    minigpt()
