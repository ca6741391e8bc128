"""SwiGLU beside the torch composition: `python benchmarks/bench_swiglu.py [--quick] [--json FILE]`."""

import report
import torch
from torch import Tensor

from minigpt_ext import ops
from minigpt_ext.ops.swiglu import swiglu_reference


def make_case(options: report.Options, rows: int, F: int, backward: bool) -> report.Case:
    def inputs() -> list[Tensor]:
        place = {"device": options.device, "dtype": options.dtype}
        x, dy = torch.randn(rows, 2 * F, **place), torch.randn(rows, F, **place)
        return [x.requires_grad_(), dy] if backward else [x]

    # Forward reads gate and up and writes y; backward reads dy, gate and up and writes both gradients.
    nbytes = rows * F * options.dtype.itemsize
    return report.Case(
        shape=f"{rows}x(2x{F}) forward{'+backward' if backward else ''}",
        inputs=inputs,
        ours=ops.swiglu,
        torch=swiglu_reference,
        reference=swiglu_reference,
        bound="copy",
        work=(8 if backward else 3) * nbytes,
        forward_work=3 * nbytes if backward else None,
        goal=options.goal(1.0),
    )


def run(session: report.Session) -> None:
    rows, F = (512, 1024) if session.options.quick else (4096, 1024)
    cases = [make_case(session.options, rows, F, backward) for backward in (False, True)]
    session.compare("swiglu", cases)


if __name__ == "__main__":
    report.main("swiglu")
