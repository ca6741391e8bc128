"""Causal attention (Vaswani et al., 2017), block by block with an online softmax, so that no T x S matrix is ever in
memory (Dao et al., 2022, arXiv:2205.14135).

Letters: B batch, T queries, S keys, H heads, H_kv key/value heads, D head dim.
"""

import math

import torch
from torch import Tensor

from ..backend import implementation, library
from .devices import check_same_device
from .philox import attention_keep_mask
from .score import accumulation_type, check_score_rule, final_scores, probabilities


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
) -> Tensor:
    """softmax(scale * q k^T) v, a head at a time, over the keys that a query sees.

    q: (B, T, H, D); k, v: (B, S, H_kv, D). Contiguous in the last dimension, any strides in the others: views of a
        packed projection are read where they lie. float32, bfloat16, float16 or float64. H_kv divides H, query head h
        reads key/value head h // (H / H_kv). D is at most 256.
    causal: query i stands at position i + S - T (the last query sees the last key) and sees no key behind its position.
    scale: 1 / sqrt(D) by default.
    window: with w, a query sees the last w keys up to its own position alone (causal only).
    alibi_slopes: (H,), float32 (float64 for float64 tensors), contiguous, causal only: of head h's score of a query and
        a key, alibi_slopes[h] * (position of the query - position of the key) is taken off (Press et al., 2022,
        arXiv:2108.12409). No gradient in it (RuntimeError where it requires one).
    softcap: with c, each scaled score s becomes c * tanh(s / c), before ALiBi and the mask (Gemma 2, 2024,
        arXiv:2408.00118); from 1e-30 to 1e30.
    dropout_p: share of the probabilities that are set to 0, the rest scaled by 1 / (1 - dropout_p). Which ones depends
        on the seed and on (b * H + h, i, j) alone: the same on every device.
    seed: an int, or a one-element int64 tensor on q's device; drawn from torch's default generator if None.
    Returns (B, T, H, D), contiguous. A query that sees no key gives zeros. Differentiable once in q, k and v.
    Raises ValueError or RuntimeError naming the argument.
    """
    if window is not None and (window < 1 or not causal):
        raise ValueError(
            f"attention: window must be at least 1 and needs causal=True, got {window} with causal={causal}"
        )
    if alibi_slopes is not None and not causal:
        raise ValueError("attention: alibi_slopes needs causal=True")
    check_score_rule("attention", q, alibi_slopes, softcap)
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"attention: dropout_p must be in [0, 1), got {dropout_p}")
    if scale is None:
        scale = 1.0 / math.sqrt(max(1, q.shape[-1] if q.dim() else 1))
    kernels = implementation("attention", q.device)
    if kernels == "torch":
        return _attention_torch(q, k, v, causal, scale, window, alibi_slopes, softcap, dropout_p, seed)
    if dropout_p == 0.0:
        seed = None
    elif seed is None:
        seed = torch.randint(2**63 - 1, (1,), device=q.device)
    elif isinstance(seed, int):
        seed = torch.full((1,), seed, dtype=torch.int64, device=q.device)
    window, softcap = window or 0, softcap or 0.0
    if not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)):
        forward = library(kernels).attention_forward  # a Function costs as much as a short call's work
        return forward(q, k, v, scale, causal, window, alibi_slopes, softcap, dropout_p, seed)[0]
    return AttentionFunction.apply(q, k, v, alibi_slopes, seed, (scale, causal, window, softcap, dropout_p), kernels)


def visible_keys(T: int, S: int, causal: bool, window: int | None, device: torch.device) -> Tensor:
    """(T, S), True where query i sees key j."""
    position = torch.arange(T, device=device)[:, None] + (S - T)
    key = torch.arange(S, device=device)[None, :]
    if not causal:
        return torch.ones(T, S, dtype=torch.bool, device=device)
    return (key <= position) & (key > position - window) if window else key <= position


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor | None = None,
) -> Tensor:
    """The formula, in torch ops of any precision; every (T, S) matrix is made in full. dropout_p needs a seed."""
    B, T, H, D = q.shape
    S, H_kv = k.shape[1:3]
    k, v = (t.repeat_interleave(H // H_kv, dim=2) for t in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) * (1.0 / math.sqrt(D) if scale is None else scale)
    distance = torch.arange(T, device=q.device)[:, None] + (S - T) - torch.arange(S, device=q.device)
    scores = final_scores(scores, distance, alibi_slopes, softcap)
    weights = probabilities(scores, visible_keys(T, S, causal, window, q.device))
    if dropout_p:
        weights = weights * attention_keep_mask(seed, B, H, T, S, dropout_p, q.device) / (1.0 - dropout_p)
    return torch.einsum("bhts,bshd->bthd", weights, v)


def _attention_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    scale: float,
    window: int | None,
    alibi_slopes: Tensor | None,
    softcap: float | None,
    dropout_p: float,
    seed: int | Tensor | None,
) -> Tensor:
    """torch's scaled_dot_product_attention; dropout then is torch's own, unless a seed asks for ours. It has no soft
    cap, and a bias would have to be rounded to q's dtype: the formula in float32 or float64 stands in."""
    if alibi_slopes is not None or softcap is not None:
        if dropout_p and seed is None:
            seed = torch.randint(2**63 - 1, (1,), device=q.device)
        return (
            attention_reference(
                *(t.to(accumulation_type(q.dtype)) for t in (q, k, v)),
                causal=causal,
                scale=scale,
                window=window,
                alibi_slopes=alibi_slopes,
                softcap=softcap,
                dropout_p=dropout_p,
                seed=seed,
            )
            .to(q.dtype)
            .contiguous()
        )
    if dropout_p and seed is not None:
        return attention_reference(
            q, k, v, causal=causal, scale=scale, window=window, dropout_p=dropout_p, seed=seed
        ).contiguous()
    T, S = q.shape[1], k.shape[1]
    heads_first = (t.transpose(1, 2) for t in (q, k, v))
    square = T == S and window is None
    mask = sees_any = None
    if causal and not square:  # torch aligns its causal mask to the start, and gives NaN for a row that sees nothing
        mask = visible_keys(T, S, causal, window, q.device)
        sees_any = mask.any(-1, keepdim=True)
        mask = mask | ~sees_any
    out = torch.nn.functional.scaled_dot_product_attention(
        *heads_first,
        attn_mask=mask,
        dropout_p=dropout_p,
        is_causal=causal and square,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    if sees_any is not None:
        out = out * sees_any
    return out.transpose(1, 2).contiguous()


class AttentionFunction(torch.autograd.Function):
    """arguments: scale, causal, window, softcap, dropout_p; in one, since each argument of a Function costs time."""

    @staticmethod
    def forward(
        ctx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        alibi_slopes: Tensor | None,
        seed: Tensor | None,
        arguments: tuple[float, bool, int, float, float],
        kernels: str,
    ) -> Tensor:
        scale, causal, window, softcap, dropout_p = arguments
        out, lse = library(kernels).attention_forward(
            q, k, v, scale, causal, window, alibi_slopes, softcap, dropout_p, seed
        )
        ctx.save_for_backward(q, k, v, out, lse, alibi_slopes, seed)
        ctx.arguments = arguments, kernels
        return out

    @staticmethod
    def backward(ctx, dout: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # a backward that is to be differentiated, which says that it cannot be
            return torch.autograd.function.once_differentiable(_backward)(ctx, dout)
        return _backward(ctx, dout)


def _backward(ctx, dout: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, alibi_slopes, seed = ctx.saved_tensors
    (scale, causal, window, softcap, dropout_p), kernels = ctx.arguments
    dq, dk, dv = library(kernels).attention_backward(
        dout, q, k, v, out, lse, scale, causal, window, alibi_slopes, softcap, dropout_p, seed
    )
    return dq, dk, dv, None, None, None, None


@torch.library.register_fake("minigpt::attention_forward")
def _(q, k, v, scale, causal, window, alibi_slopes, softcap, dropout_p, seed) -> tuple[Tensor, Tensor]:
    check_same_device("attention", q=q, k=k, v=v, alibi_slopes=alibi_slopes, seed=seed)
    B, T, H, _ = q.shape
    statistics = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(B, H, T, dtype=statistics)


@torch.library.register_fake("minigpt::attention_backward")
def _(
    dout, q, k, v, out, lse, scale, causal, window, alibi_slopes, softcap, dropout_p, seed
) -> tuple[Tensor, Tensor, Tensor]:
    check_same_device("attention", q=q, k=k, v=v, dout=dout, out=out, lse=lse, alibi_slopes=alibi_slopes, seed=seed)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
