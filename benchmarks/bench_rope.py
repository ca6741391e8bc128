"""Rotary positions beside the torch composition: `python benchmarks/bench_rope.py [--quick] [--json FILE]`."""

import report
import torch
from torch import Tensor

from minigpt_ext import ops
from minigpt_ext.ops.rope import rope_reference


def tables(n_positions: int, R: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    frequencies = 10000.0 ** -(torch.arange(0, R, 2, device=device, dtype=torch.float64) / R)
    angles = torch.arange(n_positions, device=device, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def torch_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As Hugging Face's Llama has it, x cos + rotate_half(x) sin, with tables made for it once, in x's dtype."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos + turned * sin


def make_case(options: report.Options, B: int, T: int, H: int, D: int, backward: bool) -> report.Case:
    """The queries of a packed projection, all of D rotated, as Llama has it."""

    def inputs() -> list[Tensor]:
        # The tables: ours, and torch's, both halves of them and of x's dtype.
        x, dy = torch.randn(2, B, T, 3, H, D, device=options.device, dtype=options.dtype)[:, :, :, 0]
        cos, sin = tables(T, D, options.device, torch.float32)
        wide = [torch.cat([t, t], -1).unsqueeze(-2).to(options.dtype) for t in (cos, sin)]
        tensors = [x.detach(), cos, sin, *wide]
        return [tensors[0].requires_grad_(), *tensors[1:], dy] if backward else tensors

    # Forward and backward read and write (B, T, H, D) each; the tables are a head's worth.
    nbytes = B * T * H * D * options.dtype.itemsize
    return report.Case(
        shape=f"B{B} T{T} H{H} D{D} forward{'+backward' if backward else ''}",
        inputs=inputs,
        ours=lambda x, cos, sin, *_: ops.rope(x, cos, sin),
        torch=lambda x, cos, sin, wide_cos, wide_sin: torch_rope(x, wide_cos, wide_sin),
        reference=lambda x, cos, sin, *_: rope_reference(x, cos, sin),
        bound="copy",
        work=(4 if backward else 2) * nbytes,
        forward_work=2 * nbytes if backward else None,
        goal=options.goal(1.0),
    )


def run(session: report.Session) -> None:
    if session.options.quick:
        shapes = [(1, 128, 6, 64, False), (1, 128, 6, 64, True)]
    else:
        shapes = [(16, 1, 12, 64, False), (4, 1024, 12, 64, False), (4, 1024, 12, 64, True), (4, 1024, 8, 128, True)]
    session.compare("rope", [make_case(session.options, *shape) for shape in shapes])


if __name__ == "__main__":
    report.main("rope")
