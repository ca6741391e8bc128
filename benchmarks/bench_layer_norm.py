"""LayerNorm, also with the residual's addition, beside torch's:

python benchmarks/bench_layer_norm.py [--quick] [--json FILE]
"""

import report
import torch
from torch import Tensor
from torch.nn.functional import layer_norm as torch_layer_norm

from minigpt_ext import ops
from minigpt_ext.ops.layer_norm import layer_norm_reference, residual_layer_norm_reference


def make_case(options: report.Options, rows: int, C: int, backward: bool, goal: float | None = None) -> report.Case:
    def inputs() -> list[Tensor]:
        x, dy = (torch.randn(rows, C, device=options.device, dtype=options.dtype) for _ in range(2))
        weight, bias = (torch.randn(C, device=options.device, dtype=options.dtype) for _ in range(2))
        tensors = [x, weight, bias]
        return [*(t.requires_grad_() for t in tensors), dy] if backward else tensors

    # Forward reads x and writes y; backward reads dy and x and writes dx. The rest is a few numbers a row or column.
    nbytes = rows * C * options.dtype.itemsize
    return report.Case(
        shape=f"{rows}x{C} forward{'+backward' if backward else ''}",
        inputs=inputs,
        ours=ops.layer_norm,
        torch=lambda x, weight, bias: torch_layer_norm(x, weight.shape, weight, bias),
        reference=layer_norm_reference,
        bound="copy",
        work=(5 if backward else 2) * nbytes,
        forward_work=2 * nbytes if backward else None,
        goal=options.goal(goal) if goal else None,
    )


def make_residual_case(options: report.Options, rows: int, C: int, backward: bool) -> report.Case:
    """s = residual + x, y = LayerNorm(s), of which torch makes two ops; both results are used."""
    place = {"device": options.device, "dtype": options.dtype}

    def inputs() -> list[Tensor]:
        tensors = [torch.randn(*shape, **place) for shape in ((rows, C), (rows, C), (C,), (C,))]
        return [*(t.requires_grad_() for t in tensors), torch.randn(2, rows, C, **place)] if backward else tensors

    def torchs(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        s = residual + x
        return torch_layer_norm(s, weight.shape, weight, bias), s

    # Forward reads x and residual and writes s and y; backward reads dy, ds and s and writes dx, dresidual too.
    nbytes = rows * C * options.dtype.itemsize
    return report.Case(
        shape=f"residual {rows}x{C} forward{'+backward' if backward else ''}",
        inputs=inputs,
        ours=ops.residual_layer_norm,
        torch=torchs,
        reference=residual_layer_norm_reference,
        bound="copy",
        work=(8 if backward else 4) * nbytes,
        forward_work=4 * nbytes if backward else None,
        goal=options.goal(1.2),
    )


def run(session: report.Session) -> None:
    options = session.options
    if options.quick:
        cases = [make_case(options, 512, 384, backward=False), make_case(options, 512, 384, backward=True)]
        cases.append(make_residual_case(options, 512, 384, backward=True))
    else:
        cases = [
            make_case(options, 4096, 384, backward=False),
            make_case(options, 4096, 384, backward=True, goal=1.2),
            make_case(options, 8192, 128, backward=True, goal=1.2),
            make_case(options, 4096, 768, backward=True, goal=1.2),
            make_residual_case(options, 4096, 384, backward=False),
            make_residual_case(options, 4096, 384, backward=True),
            make_residual_case(options, 4096, 768, backward=True),
        ]
    session.compare("layer_norm", cases)


if __name__ == "__main__":
    report.main("layer_norm")
