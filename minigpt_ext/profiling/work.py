"""How much work a kernel has, against what the machine can do: the formulas are the benchmarks' own."""

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minigpt_ext.profiling.job import Job


@dataclass(frozen=True)
class Work:
    """Bytes or floating-point operations, and the ceiling they are held against: "read", "copy" or "gemm"."""

    ceiling: str
    amount: float

    def __mul__(self, factor: float) -> "Work":
        return Work(self.ceiling, self.amount * factor)

    @property
    def text(self) -> str:
        amount = self.amount / 1e6
        unit = "MFLOP" if self.ceiling == "gemm" else "MB"
        return f"{amount:,.1f} {unit}" if amount >= 1 else f"{amount:.2g} {unit}"

    def rate_text(self, seconds: float) -> str:
        return f"{self.amount / seconds / 1e9:,.1f} {'GFLOP/s' if self.ceiling == 'gemm' else 'GB/s'}"

    def share_text(self, seconds: float, ceilings: Mapping[str, float]) -> str:
        return f"{self.amount / seconds / ceilings[self.ceiling]:.0%} {self.ceiling}"


def options_of(job: Job) -> Any:
    """The benchmarks' options (`report.Options`) that go with a job."""
    return importlib.import_module("report").Options(quick=job.quick, device=job.torch_device, dtype=job.torch_dtype)


def measured_ceilings(job: Job) -> dict[str, float]:
    """The most the machine reads, copies (bytes/s) and multiplies (FLOP/s), measured now. Prints card and ceilings."""
    machine = importlib.import_module("machine")
    place = job.torch_device, job.torch_dtype, job.quick
    print(machine.card_text(machine.card(*place) | {"warm": False}, machine.load_average()))
    ceilings = machine.ceilings(*place)
    print(machine.ceilings_text(ceilings, job.torch_dtype), flush=True)
    return ceilings


def work_of_case(case: Any) -> dict[str, Work]:
    """The work of a benchmark's case, by pass: "forward", and "backward" where the case has one."""
    if case.forward_work is None:
        return {"forward": Work(case.bound, case.work)}
    backward = case.work - case.forward_work
    return {"forward": Work(case.bound, case.forward_work), "backward": Work(case.bound, backward)}


def pass_of(name: str) -> str:
    """The pass that an op or a kernel of ours belongs to, by its name."""
    return "backward" if "_backward" in name else "forward"


def room_of(name: str) -> str:
    """attention of "minigpt::attention_backward"."""
    return name.removeprefix("minigpt::").removesuffix("_forward").removesuffix("_backward")


# The shapes of an op's arguments -> the arguments of its benchmark's make_case that mean the same work. What decode
# attention reads depends on the lengths of the sequences, which no shape tells.
_CASES = {
    "attention": lambda q, *_: dict(B=q[0], H=q[2], T=q[1], D=q[3], backward=True),
    "layer_norm": lambda x, *_: dict(rows=math.prod(x[:-1]), C=x[-1], backward=True),
    "gelu": lambda x, *_: dict(rows=math.prod(x[:-1]), columns=x[-1], approximate="tanh", backward=True),
    "rope": lambda x, *_: dict(B=x[0], T=x[1], H=x[2], D=x[3], backward=False),
    "rms_norm": lambda x, *_: dict(rows=math.prod(x[:-1]), C=x[-1], backward=True),
    "swiglu": lambda *dy_x: dict(rows=math.prod(dy_x[-1][:-1]), F=dy_x[-1][-1] // 2, backward=True),
    "relu_squared": lambda x, *_: dict(rows=math.prod(x[:-1]), columns=x[-1], backward=True),
    "cross_entropy": lambda logits, *_: dict(rows=math.prod(logits[:-1]), V=logits[-1], backward=True),
    "dropout": lambda x, *_: dict(rows=math.prod(x[:-1]), columns=x[-1], backward=False),
    "kv_append": lambda k_cache, v_cache, k, *_: dict(B=k[0], T=k[1], H=k[2], D=k[3], before=0),
}


def work_of_call(name: str, shapes: Sequence[Sequence[int]], job: Job) -> Work | None:
    """The work of one call of an op ("minigpt::gelu_forward") within a model, where its formula is known, else None.

    Attention is taken to be the model's: causal, as many keys as queries. Under autocast the dtypes of the arguments
    differ from op to op, so that bytes are not known there.
    """
    room = room_of(name)
    if room not in _CASES:
        return None
    case = importlib.import_module(f"bench_{room}").make_case(options_of(job), **_CASES[room](*shapes))
    if case.bound != "gemm" and job.what == "train" and job.dtype != "float32":
        return None
    return work_of_case(case)[pass_of(name)]
