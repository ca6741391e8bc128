"""Writing new keys and values into a paged cache (PagedAttention: Kwon et al., 2023, arXiv:2309.06180)."""

import math

import torch
from torch import Tensor

from ..backend import implementation, library
from .devices import check_same_device


def kv_append(
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor,
    v: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    query_start: Tensor | None = None,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> None:
    """Writes the new tokens' k and v behind the ones that each sequence has already. Changes the caches in place.

    k_cache, v_cache: (n_blocks, block_size, H_kv, D), contiguous. Position p of sequence b lives in block
        block_table[b, p // block_size], row p % block_size. A contiguous cache is the identity table.
    k, v: (B, T, H_kv, D); or, with query_start, (new tokens, H_kv, D): sequence b brings rows
        query_start[b] ... query_start[b + 1] - 1. Of the caches' dtype (float32, bfloat16 or float16 where those are
        int8), contiguous in the last dimension.
    block_table: (B, max_blocks) int32. seq_lens: (B,) int32, the tokens a sequence has *before* the new ones.
    query_start: (B + 1,) int32, from 0 to the number of new tokens.
    k_scales, v_scales: (n_blocks, block_size, H_kv) float32, contiguous, with int8 caches and only with these; written
        too. See :func:`quantised` for what they are; no token's depend on another's.
    Not differentiable (RuntimeError where k or v requires a gradient). On the CPU every table entry and length in use
    is checked before anything is written (RuntimeError naming it); a GPU's kernel skips what is out of range, unless
    MINIGPT_CHECK=1 has it checked there too, which waits for the device.
    """
    if k_cache.requires_grad or v_cache.requires_grad:
        raise RuntimeError("kv_append: k_cache and v_cache must not require gradients: they are written in place")
    if torch.is_grad_enabled() and (k.requires_grad or v.requires_grad):
        raise RuntimeError(
            "kv_append: k or v requires a gradient, and a cache keeps none; call it under torch.no_grad()"
        )
    kernels = implementation("kv_append", k_cache.device)
    if kernels == "torch":
        kv_append_reference(
            k_cache, v_cache, k, v, block_table, seq_lens, query_start=query_start, k_scales=k_scales, v_scales=v_scales
        )
    else:
        library(kernels).kv_append(k_cache, v_cache, k, v, block_table, seq_lens, query_start, k_scales, v_scales)


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., D) as int8 values of its shape and float32 scales (...): round(x / scale), scale = max |x| / 127.

    So values * scale is within scale / 2 of x (and the float32 rounding of the quotient, 1e-5 scale). A scale below
    2^-126 becomes 0, as do its values. Where x is not finite throughout, the scale is NaN and the values are 0: the
    whole row reads as NaN.
    """
    x = x.float()
    highest = x.abs().amax(-1)
    scale = highest / 127
    scale = torch.where(scale < torch.finfo(scale.dtype).tiny, 0, scale).masked_fill(~highest.isfinite(), math.nan)
    used = (scale > 0)[..., None]
    return torch.where(used, torch.round(x / scale.where(scale > 0, 1)[..., None]), 0).to(torch.int8), scale


def check_scales(op: str, k_cache: Tensor, k_scales: Tensor | None, v_scales: Tensor | None) -> None:
    """Raises RuntimeError unless int8 caches come with scales, and others without."""
    for name, scales in (("k_scales", k_scales), ("v_scales", v_scales)):
        if k_cache.dtype == torch.int8 and scales is None:
            raise RuntimeError(f"{op}: {name} must be given with int8 caches")
        if k_cache.dtype != torch.int8 and scales is not None:
            raise RuntimeError(f"{op}: {name} belongs to int8 caches, and k_cache is {k_cache.dtype}")


def token_places(
    rows: int, block_table: Tensor, seq_lens_before: Tensor, query_start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(rows,) sequence and (rows,) position of each new token, in the order in which they are packed."""
    B = block_table.shape[0]
    row = torch.arange(rows, device=block_table.device)
    if query_start is None:
        sequence, offset = row // max(1, rows // max(1, B)), row % max(1, rows // max(1, B))
    else:
        sequence = torch.searchsorted(query_start[1:].contiguous(), row.int(), right=True)
        offset = row - query_start[sequence]
    return sequence, seq_lens_before[sequence] + offset


def kv_append_reference(
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor,
    v: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    *,
    query_start: Tensor | None = None,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> None:
    """The same by torch's indexing."""
    check_scales("kv_append", k_cache, k_scales, v_scales)
    block_size = k_cache.shape[1]
    k, v = k.reshape(-1, *k_cache.shape[2:]), v.reshape(-1, *v_cache.shape[2:])
    sequence, position = token_places(k.shape[0], block_table, seq_lens, query_start)
    block = block_table[sequence, position // block_size].long()
    for cache, scales, new in ((k_cache, k_scales, k), (v_cache, v_scales, v)):
        if scales is not None:
            new, scales[block, position % block_size] = quantised(new)
        cache[block, position % block_size] = new


@torch.library.register_fake("minigpt::kv_append")
def _(k_cache, v_cache, k, v, block_table, seq_lens, query_start=None, k_scales=None, v_scales=None) -> None:
    check_same_device(
        "kv_append",
        k_cache=k_cache,
        v_cache=v_cache,
        block_table=block_table,
        seq_lens=seq_lens,
        query_start=query_start,
        k=k,
        v=v,
        k_scales=k_scales,
        v_scales=v_scales,
    )
