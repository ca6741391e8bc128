"""Cross-entropy beside torch's: `python benchmarks/bench_cross_entropy.py [--quick] [--json FILE]`.

torch's stands as nanoGPT calls it: under autocast it takes 16-bit logits to float32 first.
"""

from collections.abc import Callable

import report
import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt_ext import ops
from minigpt_ext.ops.cross_entropy import cross_entropy_reference


def make_case(options: report.Options, rows: int, V: int, backward: bool, goal: float = 1.0) -> report.Case:
    targets = torch.randint(V, (rows,), device=options.device)

    def on_targets(function: Callable) -> Callable:
        return lambda logits: function(logits, targets)

    def inputs() -> list[Tensor]:
        logits = torch.randn(rows, V, device=options.device, dtype=options.dtype)
        return [logits.requires_grad_(), torch.ones((), device=options.device)] if backward else [logits]

    # Forward reads the logits; with a gradient it writes theirs too, and the backward of a loss has nothing left to do.
    nbytes = rows * V * options.dtype.itemsize
    return report.Case(
        shape=f"{rows}x{V} forward{'+backward' if backward else ''}",
        inputs=inputs,
        ours=on_targets(ops.cross_entropy),
        torch=on_targets(lambda logits, targets: F.cross_entropy(logits.float(), targets)),
        reference=on_targets(cross_entropy_reference),
        bound="copy" if backward else "read",
        work=(2 if backward else 1) * nbytes,
        goal=options.goal(goal),
    )


def run(session: report.Session) -> None:
    shapes = ((256, 65), (16, 50257)) if session.options.quick else ((8192, 65), (512, 50257))
    cases = [
        make_case(session.options, rows, V, backward, goal=1.5 if backward else 1.0)
        for rows, V in shapes
        for backward in (False, True)
    ]
    session.compare("cross_entropy", cases)


if __name__ == "__main__":
    report.main("cross_entropy")
