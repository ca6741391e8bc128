"""Causal attention beside torch's SDPA: `python benchmarks/bench_attention.py [--quick] [--json FILE]`."""

import math

import report
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from minigpt_ext import ops
from minigpt_ext.ops.attention import attention_reference
from minigpt_ext.ops.score import accumulation_type

SEED = 1  # of the dropout masks that are checked


def alibi_slopes(H: int, options: report.Options) -> Tensor:
    """(H,): the geometric series of Press et al., 2^(-8 / H), 2^(-16 / H), ..., 2^-8."""
    place = {"device": options.device, "dtype": accumulation_type(options.dtype)}
    return 2.0 ** (-8 / H * torch.arange(1, H + 1, **place))


def make_case(
    options: report.Options,
    B: int,
    H: int,
    T: int,
    D: int,
    backward: bool,
    dropout_p: float = 0.0,
    alibi: bool = False,
    softcap: float = 0.0,
    goal: float | None = None,
) -> report.Case:
    """dropout_p, alibi and softcap are not combined: torch's fastest way is another for each."""
    place = {"device": options.device, "dtype": options.dtype}

    def inputs() -> list[Tensor]:
        # q, k, v as the model has them: views of one packed projection
        q, k, v = (t.requires_grad_(backward) for t in torch.randn(B, T, 3, H, D, **place).unbind(2))
        return [q, k, v, *masks(), *([torch.randn(B, T, H, D, **place)] if backward else [])]

    def masks() -> list[Tensor]:
        """The causal mask as torch takes it where it cannot be told by a flag, with ALiBi's bias; and the slopes."""
        if not (alibi or softcap):
            return []
        distance = torch.arange(T, device=options.device)[:, None] - torch.arange(T, device=options.device)
        slopes = alibi_slopes(H, options) if alibi else torch.zeros(1, device=options.device)
        bias = -slopes[:, None, None] * distance
        mask = bias.masked_fill(distance < 0, -math.inf).to(options.dtype)  # (H or 1, T, T)
        return [mask, slopes] if alibi else [mask]

    def torch_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, slopes=None) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if softcap:  # torch's attention has none: op by op
            scores = softcap * torch.tanh(q @ k.transpose(2, 3) * (D**-0.5 / softcap)) + mask
            return (torch.softmax(scores, -1) @ v).transpose(1, 2)
        flags = {"attn_mask": mask, "is_causal": mask is None, "dropout_p": dropout_p}
        return scaled_dot_product_attention(q, k, v, **flags).transpose(1, 2)

    def rule(slopes: Tensor | None) -> dict:
        return {"dropout_p": dropout_p, "seed": SEED, "alibi_slopes": slopes, "softcap": softcap or None}

    def formula(q: Tensor, k: Tensor, v: Tensor, mask=None, slopes: Tensor | None = None) -> Tensor:
        return attention_reference(q, k, v, **rule(slopes))

    # Two products of T x S x D a head forward, five backward; causal: T (T + 1) / 2 of the T x S pairs.
    flops_of_a_product = 2 * B * H * D * T * (T + 1) / 2
    kind = f"{' dropout ' + format(dropout_p, 'g') if dropout_p else ''}{' alibi' if alibi else ''}"
    kind += f" softcap {softcap:g}" if softcap else ""
    return report.Case(
        shape=f"B{B} H{H} T{T} D{D} fwd{'+bwd' if backward else ''}{kind}",
        inputs=inputs,
        ours=lambda q, k, v, mask=None, slopes=None: ops.attention(q, k, v, **rule(slopes)),
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
        make_case(options, B, H, T, D, backward=True, alibi=True),
        make_case(options, B, H, T, D, backward=True, softcap=50.0),
    ]
    if not options.quick:
        cases.append(make_case(options, 1, 12, 1024, 64, backward=True))  # one sequence of GPT-2's
    session.compare("attention", cases, note="causal; q, k, v are views of a packed projection")


if __name__ == "__main__":
    report.main("attention")
