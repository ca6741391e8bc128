"""Squared ReLU beside the torch composition: `python benchmarks/bench_relu_squared.py [--quick] [--json FILE]`."""

import report
import torch
from torch import Tensor

from minigpt_ext import ops
from minigpt_ext.ops.relu_squared import relu_squared_reference


def make_case(options: report.Options, rows: int, columns: int, backward: bool) -> report.Case:
    def inputs() -> list[Tensor]:
        x, dy = (torch.randn(rows, columns, device=options.device, dtype=options.dtype) for _ in range(2))
        return [x.requires_grad_(), dy] if backward else [x]

    # Forward reads x and writes y; backward reads dy and x and writes dx.
    nbytes = rows * columns * options.dtype.itemsize
    return report.Case(
        shape=f"{rows}x{columns} forward{'+backward' if backward else ''}",
        inputs=inputs,
        ours=ops.relu_squared,
        torch=relu_squared_reference,
        reference=relu_squared_reference,
        bound="copy",
        work=(5 if backward else 2) * nbytes,
        forward_work=2 * nbytes if backward else None,
        goal=options.goal(1.0),
    )


def run(session: report.Session) -> None:
    rows, columns = (512, 1536) if session.options.quick else (4096, 1536)
    cases = [make_case(session.options, rows, columns, backward) for backward in (False, True)]
    session.compare("relu_squared", cases)


if __name__ == "__main__":
    report.main("relu_squared")
