"""Writing to the paged cache, beside an index_copy_: `python benchmarks/bench_kv_append.py [--quick] [--json FILE]`."""

import report
import torch
from torch import Tensor

from minigpt_ext import ops
from minigpt_ext.ops.kv_append import kv_append_reference

CACHE_BLOCK = 64


def make_case(options: report.Options, B: int, T: int, H: int, D: int, before: int, int8: bool = False) -> report.Case:
    """T new tokens for each of B sequences that hold `before` tokens.

    int8: ours goes into int8 caches, while torch copies as ever; the results compared are the scales, with those of the
    same by torch ops.
    """
    max_blocks = -(-(before + T) // CACHE_BLOCK)

    def inputs() -> list[Tensor]:
        place = {"device": options.device}
        caches = [torch.zeros(B * max_blocks, CACHE_BLOCK, H, D, dtype=options.dtype, **place) for _ in range(2)]
        new = [torch.randn(B, T, H, D, dtype=options.dtype, **place) for _ in range(2)]
        block_table = torch.arange(B * max_blocks, dtype=torch.int32, **place).view(B, max_blocks)
        seq_lens = torch.full((B,), before, dtype=torch.int32, **place)
        position = before + torch.arange(T, **place)
        rows = (torch.arange(B, **place)[:, None] * max_blocks * CACHE_BLOCK + position).flatten()
        if not int8:
            return [*caches, *new, block_table, seq_lens, rows]
        values = [torch.zeros(cache.shape, dtype=torch.int8, **place) for cache in caches]
        scales = [torch.zeros(cache.shape[:3], **place) for cache in caches]
        return [*caches, *new, block_table, seq_lens, rows, *values, *scales]

    def ours(k_cache, v_cache, k, v, block_table, seq_lens, rows) -> tuple[Tensor, Tensor]:
        ops.kv_append(k_cache, v_cache, k, v, block_table, seq_lens)
        return k_cache, v_cache

    def torch_copy(k_cache, v_cache, k, v, block_table, seq_lens, rows, *_) -> tuple[Tensor, Tensor]:
        # The least that torch can do: it is told the rows, and need not find them through the table.
        k_cache.view(-1, H, D).index_copy_(0, rows, k.view(-1, H, D))
        v_cache.view(-1, H, D).index_copy_(0, rows, v.view(-1, H, D))
        return k_cache, v_cache

    def reference(k_cache, v_cache, k, v, block_table, seq_lens, rows) -> tuple[Tensor, Tensor]:
        kv_append_reference(k_cache, v_cache, k, v, block_table, seq_lens)
        return k_cache, v_cache

    def ours_int8(
        k_cache, v_cache, k, v, block_table, seq_lens, rows, k_int8, v_int8, k_scales, v_scales
    ) -> tuple[Tensor, Tensor]:
        ops.kv_append(k_int8, v_int8, k, v, block_table, seq_lens, k_scales=k_scales, v_scales=v_scales)
        return k_scales, v_scales

    def reference_int8(
        k_cache, v_cache, k, v, block_table, seq_lens, rows, k_int8, v_int8, k_scales, v_scales
    ) -> tuple[Tensor, Tensor]:
        k_scales, v_scales = k_scales.float(), v_scales.float()
        kv_append_reference(k_int8, v_int8, k, v, block_table, seq_lens, k_scales=k_scales, v_scales=v_scales)
        return k_scales, v_scales

    written = D + 4 if int8 else D * options.dtype.itemsize
    return report.Case(
        shape=f"B{B} T{T} H{H} D{D} after {before}{' int8 cache' if int8 else ''}",
        inputs=inputs,
        ours=ours_int8 if int8 else ours,
        torch=torch_copy,
        reference=reference_int8 if int8 else reference,
        yardstick=reference_int8 if int8 else None,
        bound="copy",
        work=2 * B * T * H * (D * options.dtype.itemsize + written),  # k and v, read and written
        tensors_read=7,
    )


def run(session: report.Session) -> None:
    shapes = [(1, 1, 255), (16, 1, 255), (4, 256, 0)]
    if not session.options.quick:
        shapes += [(1, 1024, 0), (16, 256, 0)]
    cases = [
        make_case(session.options, B, T, 12, 64, before, int8) for int8 in (False, True) for B, T, before in shapes
    ]
    session.compare("kv_append", cases, note=f"cache blocks of {CACHE_BLOCK} tokens; torch is told the rows to write")


if __name__ == "__main__":
    report.main("kv_append")
