"""GELU, also with a bias before it, beside torch's: `python benchmarks/bench_gelu.py [--quick] [--json FILE]`."""

import report
import torch
from torch import Tensor
from torch.nn.functional import gelu as torch_gelu

from minigpt_ext import ops
from minigpt_ext.ops.gelu import bias_gelu_reference, gelu_reference

GOALS = {"none": 1.3, "tanh": 2.5}  # forward and backward


def make_case(options: report.Options, rows: int, columns: int, approximate: str, backward: bool) -> report.Case:
    def inputs() -> list[Tensor]:
        x, dy = (torch.randn(rows, columns, device=options.device, dtype=options.dtype) for _ in range(2))
        return [x.requires_grad_(), dy] if backward else [x]

    formula = "erf" if approximate == "none" else "tanh"
    # Forward reads x and writes y; backward reads dy and x and writes dx.
    nbytes = rows * columns * options.dtype.itemsize
    return report.Case(
        shape=f"{formula} {rows}x{columns} forward{'+backward' if backward else ''}",
        inputs=inputs,
        ours=lambda x: ops.gelu(x, approximate),
        torch=lambda x: torch_gelu(x, approximate=approximate),
        reference=lambda x: gelu_reference(x, approximate),
        bound="copy",
        work=(5 if backward else 2) * nbytes,
        forward_work=2 * nbytes if backward else None,
        goal=options.goal(GOALS[approximate]) if backward else None,
    )


def make_bias_case(options: report.Options, rows: int, C: int, approximate: str, backward: bool) -> report.Case:
    """gelu(x + bias), of which torch makes two ops."""
    place = {"device": options.device, "dtype": options.dtype}

    def inputs() -> list[Tensor]:
        tensors = [torch.randn(rows, C, **place), torch.randn(C, **place)]
        return [*(t.requires_grad_() for t in tensors), torch.randn(rows, C, **place)] if backward else tensors

    formula = "erf" if approximate == "none" else "tanh"
    nbytes = rows * C * options.dtype.itemsize
    return report.Case(
        shape=f"bias {formula} {rows}x{C} forward{'+backward' if backward else ''}",
        inputs=inputs,
        ours=lambda x, bias: ops.bias_gelu(x, bias, approximate),
        torch=lambda x, bias: torch_gelu(x + bias, approximate=approximate),
        reference=lambda x, bias: bias_gelu_reference(x, bias, approximate),
        bound="copy",
        work=(5 if backward else 2) * nbytes,
        forward_work=2 * nbytes if backward else None,
        goal=options.goal(GOALS[approximate]) if backward else None,
    )


def run(session: report.Session) -> None:
    rows, columns = (512, 1536) if session.options.quick else (4096, 1536)
    cases = [
        make_case(session.options, rows, columns, approximate, backward)
        for approximate in ("none", "tanh")
        for backward in (False, True)
    ]
    cases += [make_bias_case(session.options, rows, columns, approximate, True) for approximate in ("none", "tanh")]
    session.compare("gelu", cases)


if __name__ == "__main__":
    report.main("gelu")
