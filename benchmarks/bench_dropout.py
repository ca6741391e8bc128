"""Dropout, with and without a residual, beside torch's: `python benchmarks/bench_dropout.py [--quick] [--json FILE]`.

Both draw their mask: ours from a seed that is given, torch's from its generator, in the same call.
"""

import report
import torch
from torch import Tensor
from torch.nn.functional import dropout as torch_dropout

from minigpt_ext import ops
from minigpt_ext.ops.dropout import dropout_reference

P, SEED = 0.2, 7


def make_case(options: report.Options, rows: int, columns: int, backward: bool, residual: bool = False) -> report.Case:
    seed = torch.tensor([SEED], device=options.device)

    def inputs() -> list[Tensor]:
        tensors = [torch.randn(rows, columns, device=options.device, dtype=options.dtype) for _ in range(1 + residual)]
        if not backward:
            return tensors
        dout = torch.randn(rows, columns, device=options.device, dtype=options.dtype)
        return [*(t.requires_grad_() for t in tensors), dout]

    def torchs(x: Tensor, *residual: Tensor) -> Tensor:
        return sum(residual, torch_dropout(x, P))

    # Forward reads x (and the residual) and writes out; backward reads dout and writes dx.
    nbytes = rows * columns * options.dtype.itemsize
    forward = (3 if residual else 2) * nbytes
    return report.Case(
        shape=f"{'residual ' if residual else ''}{rows}x{columns} forward{'+backward' if backward else ''}",
        inputs=inputs,
        ours=lambda x, *residual: ops.dropout(x, P, seed, *residual),
        torch=torchs,
        reference=lambda x, *residual: dropout_reference(x, P, SEED, *residual),
        bound="copy",
        work=forward + 2 * nbytes if backward else forward,
        forward_work=forward if backward else None,
        yardstick=lambda x, *residual: dropout_reference(x, P, SEED, *residual),
    )


def run(session: report.Session) -> None:
    options = session.options
    if options.quick:
        cases = [
            make_case(options, 512, 384, backward, residual) for backward, residual in ((False, False), (True, True))
        ]
    else:
        cases = [
            make_case(options, 4096, 384, backward=False),
            make_case(options, 4096, 384, backward=True),
            make_case(options, 4096, 384, backward=True, residual=True),
            make_case(options, 4096, 768, backward=True, residual=True),
        ]
    session.compare("dropout", cases)


if __name__ == "__main__":
    report.main("dropout")
