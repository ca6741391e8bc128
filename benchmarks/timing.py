"""How long things take, side by side: samples of every implementation alternate within one process, so that whatever
else the machine does meets all of them alike."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles
from time import perf_counter
from typing import Any

import torch


@dataclass(frozen=True)
class Times:
    """Seconds a call: the median, and the 20th and 80th percentile."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Times":
        deciles = quantiles(samples, n=10, method="inclusive") if len(samples) > 1 else list(samples) * 9
        return cls(median=deciles[4], p20=deciles[1], p80=deciles[7])


def interleave(
    runs: Mapping[str, Callable[[], float]], seconds: float, at_least: int, at_most: int
) -> dict[str, Times]:
    """Calls each of `runs` in turn (there and back again) until `seconds` have passed; a run returns its own time."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    end = perf_counter() + seconds
    for done in range(at_most):
        if done >= at_least and perf_counter() > end:
            break
        for name in order:
            samples[name].append(runs[name]())
        order.reverse()
    return {name: Times.of(taken) for name, taken in samples.items()}


def compare(
    functions: Mapping[str, Callable[..., Any]],
    input_sets: Sequence[Sequence[Any]],
    device: torch.device,
    seconds: float,
    at_least: int,
    at_most: int = 200,
) -> dict[str, Times]:
    """Times of each function over `input_sets`: every call, whosever it is, takes the next set."""
    turn = itertools.cycle(input_sets)
    clock = _gpu_clock if device.type == "cuda" else _cpu_clock
    shortest = (
        2e-3 if device.type == "cuda" else 200e-6
    )  # a sample: long beside the clock's own cost, and on a GPU a queue

    def run(function: Callable[..., Any], calls: int) -> float:
        return clock(function, [next(turn) for _ in range(calls)], device) / calls

    runs = {}
    for name, function in functions.items():
        run(function, 1)
        once = min(run(function, 1) for _ in range(2))
        calls = max(1, math.ceil(shortest / max(once, 1e-7)))
        runs[name] = lambda function=function, calls=calls: run(function, calls)
    return interleave(runs, seconds, at_least, at_most)


def best_time(function: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """The shortest of many samples: for ceilings, where only the machine's best counts."""
    clock = _gpu_clock if device.type == "cuda" else _cpu_clock
    calls = 10 if device.type == "cuda" else 1
    function()
    end, samples = perf_counter() + seconds, []
    while len(samples) < 5 or perf_counter() < end:
        samples.append(clock(function, [()] * calls, device) / calls)
    return min(samples)


def _cpu_clock(function: Callable[..., Any], arguments: Sequence[Sequence[Any]], device: torch.device) -> float:
    began = perf_counter()
    for inputs in arguments:
        result = function(*inputs)
    seconds = perf_counter() - began
    del result  # the last result's memory is given back off the clock
    return seconds


def _gpu_clock(function: Callable[..., Any], arguments: Sequence[Sequence[Any]], device: torch.device) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        begin.record()
        for inputs in arguments:
            function(*inputs)
        end.record()
        end.synchronize()
    return begin.elapsed_time(end) * 1e-3
