"""Causal attention beside torch's SDPA: `python benchmarks/bench_attention.py [--quick] [--json FILE]`."""

import report
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from minigpt_ext import ops
from minigpt_ext.ops.attention import attention_reference

SEED = 1  # of the dropout masks that are checked


def make_case(
    options: report.Options,
    B: int,
    H: int,
    T: int,
    D: int,
    backward: bool,
    dropout_p: float = 0.0,
    goal: float | None = None,
) -> report.Case:
    def inputs() -> list[Tensor]:
        # q, k, v as the model has them: views of one packed projection
        packed = torch.randn(B, T, 3, H, D, device=options.device, dtype=options.dtype)
        q, k, v = (t.requires_grad_(backward) for t in packed.unbind(2))
        return [q, k, v, torch.randn(B, T, H, D, device=options.device, dtype=options.dtype)] if backward else [q, k, v]

    def torch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads_first = (t.transpose(1, 2) for t in (q, k, v))
        return scaled_dot_product_attention(*heads_first, is_causal=True, dropout_p=dropout_p).transpose(1, 2)

    def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention_reference(q, k, v, dropout_p=dropout_p, seed=SEED)

    # Two products of T x S x D a head forward, five backward; causal: T (T + 1) / 2 of the T x S pairs.
    flops_of_a_product = 2 * B * H * D * T * (T + 1) / 2
    return report.Case(
        shape=f"B{B} H{H} T{T} D{D} fwd{'+bwd' if backward else ''}{f' dropout {dropout_p:g}' if dropout_p else ''}",
        inputs=inputs,
        ours=lambda q, k, v: ops.attention(q, k, v, dropout_p=dropout_p, seed=SEED),
        torch=torch_attention,
        reference=formula,
        yardstick=formula if dropout_p else None,  # torch drops others than we do
        bound="gemm",
        work=(7 if backward else 2) * flops_of_a_product,
        forward_work=2 * flops_of_a_product if backward else None,
        goal=options.goal(goal) if goal else None,
    )


def run(session: report.Session) -> None:
    options = session.options
    B, H, T, D = (2, 2, 128, 64) if options.quick else (16, 6, 256, 64)
    cases = [
        make_case(options, B, H, T, D, backward=False),
        make_case(options, B, H, T, D, backward=True, goal=2.0),
        make_case(options, B, H, T, D, backward=False, dropout_p=0.2),
        make_case(options, B, H, T, D, backward=True, dropout_p=0.2, goal=5.0),
    ]
    if not options.quick:
        cases.append(make_case(options, 1, 12, 1024, 64, backward=True))  # one sequence of GPT-2's
    session.compare("attention", cases, note="causal; q, k, v are views of a packed projection")


if __name__ == "__main__":
    report.main("attention")
