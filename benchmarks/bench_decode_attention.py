"""Decode attention beside torch's SDPA: `python benchmarks/bench_decode_attention.py [--quick] [--json FILE]`."""

import report
import torch
from bench_attention import alibi_slopes
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from minigpt_ext import ops
from minigpt_ext.ops.decode_attention import decode_attention_reference
from minigpt_ext.ops.kv_append import quantised

CACHE_BLOCK = 64


def make_case(
    options: report.Options,
    B: int,
    S: int,
    H: int = 12,
    H_kv: int = 12,
    D: int = 64,
    scattered: bool = False,
    alibi: bool = False,
    int8: bool = False,
    dtype: torch.dtype | None = None,
    goal: float | None = None,
) -> report.Case:
    """One new query a sequence over S tokens; scattered: the blocks lie in the pool in random order.

    int8: ours reads an int8 cache of the same keys and values, torch the unrounded one. The formula is that of the
    unrounded one too, and our error is held against that of torch ops over the int8 cache.
    dtype: where it is not the command line's.
    """
    dtype = dtype or options.dtype
    max_blocks = S // CACHE_BLOCK

    def inputs() -> list[Tensor]:
        place = {"device": options.device}
        q = torch.randn(B, 1, H, D, dtype=dtype, **place)
        caches = [torch.randn(B * max_blocks, CACHE_BLOCK, H_kv, D, dtype=dtype, **place) for _ in range(2)]
        blocks = torch.randperm(B * max_blocks) if scattered else torch.arange(B * max_blocks)
        block_table = blocks.to(options.device, torch.int32).view(B, max_blocks)
        seq_lens = torch.full((B,), S, dtype=torch.int32, **place)
        # torch's own copy of the cache, in the layout that suits it: (B, H_kv, S, D)
        theirs = [cache[block_table.long()].view(B, S, H_kv, D).transpose(1, 2).contiguous() for cache in caches]
        if int8:
            parts = [quantised(cache) for cache in caches]
            return [
                q,
                *caches,
                block_table,
                seq_lens,
                *theirs,
                *(values for values, _ in parts),
                *(s for _, s in parts),
            ]
        if not alibi:
            return [q, *caches, block_table, seq_lens, *theirs]
        slopes = alibi_slopes(H, options)
        mask = (slopes[:, None, None] * torch.arange(1 - S, 1, device=options.device)).to(dtype)  # (H, 1, S)
        return [q, *caches, block_table, seq_lens, *theirs, mask, slopes]

    def torch_attention(q, k_cache, v_cache, block_table, seq_lens, k, v, mask=None, slopes=None) -> Tensor:
        out = scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask, enable_gqa=H != H_kv)
        return out.transpose(1, 2)

    def formula(q, k_cache, v_cache, block_table, seq_lens, k, v, mask=None, slopes=None) -> Tensor:
        return decode_attention_reference(q, k_cache, v_cache, block_table, seq_lens, alibi_slopes=slopes)

    def ours(q, k_cache, v_cache, block_table, seq_lens, k, v, mask=None, slopes=None) -> Tensor:
        return ops.decode_attention(q, k_cache, v_cache, block_table, seq_lens, alibi_slopes=slopes)

    def torch_unrounded(q, k_cache, v_cache, block_table, seq_lens, k, v, *_) -> Tensor:
        return torch_attention(q, k_cache, v_cache, block_table, seq_lens, k, v)

    def formula_unrounded(q, k_cache, v_cache, block_table, seq_lens, *_) -> Tensor:
        return decode_attention_reference(q, k_cache, v_cache, block_table, seq_lens)

    def ours_int8(q, k_cache, v_cache, block_table, seq_lens, k, v, k_int8, v_int8, k_scales, v_scales) -> Tensor:
        return ops.decode_attention(q, k_int8, v_int8, block_table, seq_lens, k_scales=k_scales, v_scales=v_scales)

    def torch_int8(q, k_cache, v_cache, block_table, seq_lens, k, v, k_int8, v_int8, k_scales, v_scales) -> Tensor:
        return decode_attention_reference(
            q, k_int8, v_int8, block_table, seq_lens, k_scales=k_scales, v_scales=v_scales
        )

    kind = f"{' scattered blocks' if scattered else ''}{' alibi' if alibi else ''}{' int8 cache' if int8 else ''}"
    if dtype != options.dtype:
        kind += f" {str(dtype).removeprefix('torch.')}"
    return report.Case(
        shape=f"B{B} S{S} H{H}{f' H_kv{H_kv}' if H != H_kv else ''} D{D}{kind}",
        inputs=inputs,
        ours=ours_int8 if int8 else ours,
        torch=torch_unrounded if int8 else torch_attention,
        reference=formula_unrounded if int8 else formula,
        bound="read",
        # k and v once, with their scales; q and the result are nothing beside them
        work=2 * B * S * H_kv * (D + 4 if int8 else D * dtype.itemsize),
        goal=options.goal(goal) if goal else None,
        share_goal=options.goal(0.85) if goal else None,
        yardstick=torch_int8 if int8 else None,
        tensors_read=5,
    )


def run(session: report.Session) -> None:
    options = session.options
    if options.quick:
        cases = [make_case(options, 1, 1024, goal=2.0), make_case(options, 1, 1024, scattered=True)]
        cases += [make_case(options, 1, 1024, alibi=True), make_case(options, 1, 1024, int8=True)]
    else:
        cases = [make_case(options, 1, S, goal=2.0) for S in (1024, 2048, 4096, 8192)]
        cases += [
            make_case(options, 1, 4096, scattered=True),
            make_case(options, 1, 4096, H_kv=4),
            make_case(options, 1, 4096, alibi=True),
            make_case(options, 8, 1024),
            *(make_case(options, 1, S, dtype=torch.bfloat16) for S in (1024, 4096, 8192)),
            *(make_case(options, 1, S, int8=True) for S in (1024, 4096, 8192)),
        ]
    session.compare("decode_attention", cases, note=f"one query a sequence; cache blocks of {CACHE_BLOCK} tokens")


if __name__ == "__main__":
    report.main("decode_attention")
