"""The cases of sm90_wgmma.cu."""

from collections.abc import Iterator

import numpy as np

from .layouts import SWIZZLES, gather, wgmma_a, wgmma_d, wgmma_tile
from .run import Run, matrices, product, to_bits, to_values

BYTES_A, BYTES_B = 8 * 1024, 32 * 1024


def offsets(size: int, major: str, swizzle: str) -> tuple[int, int]:
    """A leading and a stride offset that lay the pieces of [size, 16] out without overlap."""
    row = {"none": 16, "32B": 32, "64B": 64, "128B": 128}[swizzle]  # bytes
    piece = 8 * row  # 8 rows
    if swizzle == "none":
        columns_first = size // 8 * piece
        return (columns_first, piece)  # between the two halves of K; between neighbours along mn
    if major == "k":
        return 16, piece
    return 2 * piece, piece  # along mn one block of 16 k after the other; 8 k and the next 8


def wgmma_forms() -> Iterator[tuple[str, str, int, str, str | None, str, bool, int]]:
    """case, dtype, N, major of B, major of A (None: registers), swizzle, accumulate, bytes that K is advanced by"""
    for N in (8, 16, 32, 64, 96, 128, 192, 256):
        yield f"wgmma_ss_bf16_n{N}_kk", "bf16", N, "k", "k", "128B", True, 0
        yield f"wgmma_rs_bf16_n{N}_k", "bf16", N, "k", None, "128B", True, 0
    for swizzle in SWIZZLES:
        yield "wgmma_ss_bf16_n64_kk", "bf16", 64, "k", "k", swizzle, False, 0
        yield "wgmma_ss_bf16_n64_km", "bf16", 64, "mn", "k", swizzle, True, 0
        yield "wgmma_ss_bf16_n64_mk", "bf16", 64, "k", "mn", swizzle, True, 0
        yield "wgmma_ss_bf16_n128_mm", "bf16", 128, "mn", "mn", swizzle, True, 0
        yield "wgmma_ss_f16_n64_kk", "f16", 64, "k", "k", swizzle, True, 0
        yield "wgmma_ss_f16_n64_mm", "f16", 64, "mn", "mn", swizzle, False, 0
        yield "wgmma_rs_bf16_n64_m", "bf16", 64, "mn", None, swizzle, True, 0
        yield "wgmma_rs_f16_n64_k", "f16", 64, "k", None, swizzle, False, 0
        yield "wgmma_rs_f16_n128_m", "f16", 128, "mn", None, swizzle, True, 0
    for advance in (32, 64, 96):  # the next 16 elements of a K-major row of 64
        yield "wgmma_ss_bf16_n64_kk", "bf16", 64, "k", "k", "128B", True, advance
    yield "wgmma_ss_f16_n64_kk", "f16", 64, "k", "k", "64B", True, 32


def wgmma_runs() -> Iterator[Run]:
    for case, dtype, N, major_b, major_a, swizzle, accumulate, advance in wgmma_forms():
        for exact in (True, False) if N <= 32 or swizzle == "64B" else (True,):  # a recording is to stay small
            label = f"{swizzle}_{advance}_{'add' if accumulate else 'set'}_{'exact' if exact else 'rounded'}"
            a, b, c = matrices(case + label, exact, (64, 16), (N, 16), (64, N))
            a, b, c = to_bits(a, dtype), to_bits(b, dtype), c.astype(np.float32)
            leading_a, stride_a = offsets(64, major_a or "k", swizzle)
            leading_b, stride_b = offsets(N, major_b, swizzle)
            if major_a:
                in_a = wgmma_tile(a, major_a, swizzle, leading_a, stride_a, BYTES_A, advance)
            else:
                in_a = gather(a, wgmma_a, 128, 8).view(np.uint32)
            in_b = wgmma_tile(b, major_b, swizzle, leading_b, stride_b, BYTES_B, advance)
            start = c.astype(np.float64) if accumulate else np.zeros((64, N))
            d, limit = product(to_values(a, dtype), to_values(b, dtype).T, start, exact)
            count = N // 2
            yield Run(
                "sm90_wgmma",
                case,
                label,
                np.zeros((128, count), np.float32),
                gather(d, wgmma_d, 128, count).astype(np.float32),
                in_a,
                in_b,
                gather(c, wgmma_d, 128, count),
                (
                    leading_a | stride_a << 32,
                    leading_b | stride_b << 32,
                    SWIZZLES[swizzle],
                    int(accumulate) | advance << 8,
                ),
                gather(limit, wgmma_d, 128, count),
            )
