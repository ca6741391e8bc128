"""Attention of new queries over a paged cache; long caches are split, the parts merged, as in Flash-Decoding."""

import math

import torch
from torch import Tensor

from ..backend import implementation, library
from .devices import check_same_device
from .kv_append import check_scales, token_places
from .score import accumulation_type, check_score_rule, final_scores, probabilities


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    query_start: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> Tensor:
    """Causal attention of the newest tokens of each sequence over all that its cache holds, the new ones included.

    q: (B, T, H, D); or, with query_start, (new tokens, H, D): sequence b brings rows query_start[b] ...
        query_start[b + 1] - 1. Contiguous in the last dimension. H_kv divides H; D <= 256.
    k_cache, v_cache: (n_blocks, block_size, H_kv, D), contiguous, of q's dtype or int8; block_table: (B, max_blocks)
        int32.
    seq_lens: (B,) int32, the tokens a sequence has *with* the new ones; query i of T sees the first
        seq_lens - T + i + 1.
    scale: 1 / sqrt(D) by default. window: with w, of those the last w alone.
    alibi_slopes: (H,), float32 (float64 for float64 tensors), contiguous: of head h's score of a query and a key,
        alibi_slopes[h] * (position of the query - position of the key) is taken off (Press et al., 2022,
        arXiv:2108.12409).
    softcap: with c, each scaled score s becomes c * tanh(s / c), before ALiBi and the mask (Gemma 2, 2024,
        arXiv:2408.00118); from 1e-30 to 1e30.
    k_scales, v_scales: (n_blocks, block_size, H_kv) float32, contiguous, with int8 caches and only with these: a key or
        value is the int8 values of its token and head times their scale, as :func:`kv_append` writes them. q is then
        float32, bfloat16 or float16.
    Returns a contiguous tensor of q's shape. A query that sees nothing (seq_lens 0) gives zeros.
    Not differentiable (RuntimeError where q or alibi_slopes requires a gradient).
    Raises ValueError or RuntimeError naming the argument. Values of tables and lengths are checked on the CPU; a GPU's
    kernel skips what is out of range, unless MINIGPT_CHECK=1 has them checked there too, which waits for the device.
    """
    if window is not None and window < 1:
        raise ValueError(f"decode_attention: window must be at least 1, got {window}")
    if torch.is_grad_enabled() and q.requires_grad:
        raise RuntimeError("decode_attention: q requires a gradient, and there is none; call it under torch.no_grad()")
    check_score_rule("decode_attention", q, alibi_slopes, softcap)
    if scale is None:
        scale = 1.0 / math.sqrt(max(1, q.shape[-1] if q.dim() else 1))
    kernels = implementation("decode_attention", q.device)
    if kernels == "torch":
        return decode_attention_reference(
            q,
            k_cache,
            v_cache,
            block_table,
            seq_lens,
            query_start=query_start,
            scale=scale,
            window=window,
            alibi_slopes=alibi_slopes,
            softcap=softcap,
            k_scales=k_scales,
            v_scales=v_scales,
        )
    return library(kernels).decode_attention(
        q,
        k_cache,
        v_cache,
        block_table,
        seq_lens,
        query_start,
        scale,
        window or 0,
        alibi_slopes,
        softcap or 0.0,
        k_scales,
        v_scales,
    )


def decode_attention_reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    query_start: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> Tensor:
    """The same by torch ops of any precision: each row's keys are gathered, then scaled_dot_product_attention; or, with
    int8 caches, alibi_slopes or softcap, the formula, in float32 at least."""
    check_scales("decode_attention", k_cache, k_scales, v_scales)
    wide = accumulation_type(q.dtype)
    if k_scales is not None:
        k_cache, v_cache = (
            cache.to(wide) * scales[..., None] for cache, scales in ((k_cache, k_scales), (v_cache, v_scales))
        )
    H, D = q.shape[-2:]
    B, max_blocks = block_table.shape
    block_size, H_kv = k_cache.shape[1:3]
    rows = q.reshape(-1, H, D)
    if query_start is None:
        fresh = torch.full_like(seq_lens, q.shape[1])
    else:
        fresh = query_start[1:] - query_start[:-1]
    sequence, position = token_places(rows.shape[0], block_table, seq_lens - fresh, query_start)

    capacity = max_blocks * block_size
    table = block_table[sequence].long().clamp(0, max(0, k_cache.shape[0] - 1))
    k, v = (cache[table].reshape(-1, capacity, H_kv, D).transpose(1, 2) for cache in (k_cache, v_cache))
    key = torch.arange(capacity, device=q.device)[None, :]
    visible = key <= position[:, None]
    if window:
        visible &= key > position[:, None] - window
    sees_any = visible.any(-1)[:, None, None]
    # Unwritten rows of the cache may hold NaN, which a weight of zero would not stop.
    written = (key <= position[:, None])[:, None, :, None]
    k, v = k.masked_fill(~written, 0), v.masked_fill(~written, 0)
    scale = 1.0 / math.sqrt(D) if scale is None else scale
    if k_scales is not None or alibi_slopes is not None or softcap is not None:
        k, v = (t.to(wide).repeat_interleave(H // H_kv, dim=1) for t in (k, v))  # (rows, H, capacity, D)
        scores = rows[:, :, None].to(wide) @ k.transpose(2, 3) * scale
        distance = (position[:, None] - key)[:, None, None]
        weights = probabilities(final_scores(scores, distance, alibi_slopes, softcap), visible[:, None, None])
        return (weights @ v)[:, :, 0].to(q.dtype).reshape(q.shape)
    out = torch.nn.functional.scaled_dot_product_attention(
        rows[:, :, None],
        k,
        v,
        attn_mask=(visible[:, None, None] | ~sees_any[..., None]),
        scale=scale,
        enable_gqa=H != H_kv,
    )
    return (out[:, :, 0] * sees_any).reshape(q.shape)


@torch.library.register_fake("minigpt::decode_attention")
def _(
    q,
    k_cache,
    v_cache,
    block_table,
    seq_lens,
    query_start,
    scale,
    window,
    alibi_slopes,
    softcap,
    k_scales=None,
    v_scales=None,
) -> Tensor:
    check_same_device(
        "decode_attention",
        k_cache=k_cache,
        v_cache=v_cache,
        block_table=block_table,
        seq_lens=seq_lens,
        query_start=query_start,
        q=q,
        alibi_slopes=alibi_slopes,
        k_scales=k_scales,
        v_scales=v_scales,
    )
    return q.new_empty(q.shape)
