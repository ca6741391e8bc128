"""RMSNorm, also with the residual's addition, beside torch's:

python benchmarks/bench_rms_norm.py [--quick] [--json FILE]
"""

import report
import torch
from torch import Tensor
from torch.nn.functional import rms_norm as torch_rms_norm

from minigpt_ext import ops
from minigpt_ext.ops.rms_norm import residual_rms_norm_reference, rms_norm_reference


def make_case(options: report.Options, rows: int, C: int, backward: bool, heads: int = 0) -> report.Case:
    """heads: as QK-norm has it, of rows tokens with `heads` heads of C values each, a part of a packed projection."""

    def inputs() -> list[Tensor]:
        place = {"device": options.device, "dtype": options.dtype}
        x = torch.randn(1, rows, 3, heads, C, **place)[:, :, 0] if heads else torch.randn(rows, C, **place)
        weight = torch.randn(C, **place)
        dy = torch.randn(x.shape, **place)
        return [x.requires_grad_(), weight.requires_grad_(), dy] if backward else [x, weight]

    # Forward reads x and writes y; backward reads dy and x and writes dx. The rest is a few numbers a row or column.
    nbytes = rows * max(heads, 1) * C * options.dtype.itemsize
    return report.Case(
        shape=f"{rows}x{f'{heads}x' if heads else ''}{C} forward{'+backward' if backward else ''}",
        inputs=inputs,
        ours=ops.rms_norm,
        torch=lambda x, weight: torch_rms_norm(x, weight.shape, weight, 1e-6),
        reference=rms_norm_reference,
        bound="copy",
        work=(5 if backward else 2) * nbytes,
        forward_work=2 * nbytes if backward else None,
        goal=options.goal(1.2),
    )


def make_residual_case(options: report.Options, rows: int, C: int, backward: bool) -> report.Case:
    """s = residual + x, y = RMSNorm(s), of which torch makes two ops; both results are used."""
    place = {"device": options.device, "dtype": options.dtype}

    def inputs() -> list[Tensor]:
        tensors = [torch.randn(rows, C, **place), torch.randn(rows, C, **place), torch.randn(C, **place)]
        return [*(t.requires_grad_() for t in tensors), torch.randn(2, rows, C, **place)] if backward else tensors

    def torchs(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        s = residual + x
        return torch_rms_norm(s, weight.shape, weight, 1e-6), s

    # Forward reads x and residual and writes s and y; backward reads dy, ds and s and writes dx, dresidual too.
    nbytes = rows * C * options.dtype.itemsize
    return report.Case(
        shape=f"residual {rows}x{C} forward{'+backward' if backward else ''}",
        inputs=inputs,
        ours=ops.residual_rms_norm,
        torch=torchs,
        reference=residual_rms_norm_reference,
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
            make_case(options, 4096, 384, backward=True),
            make_case(options, 4096, 768, backward=True),
            make_case(options, 4096, 64, backward=False, heads=12),
            make_case(options, 4096, 64, backward=True, heads=12),
            make_residual_case(options, 4096, 384, backward=False),
            make_residual_case(options, 4096, 384, backward=True),
        ]
    session.compare("rms_norm", cases)


if __name__ == "__main__":
    report.main("rms_norm")
