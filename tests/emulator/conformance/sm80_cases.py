"""The cases of sm80.cu: cp.async, ldmatrix, mma."""

from collections.abc import Iterator

import numpy as np

from .layouts import gather, mma_a16, mma_a_tf32, mma_b16, mma_b_tf32, mma_d
from .run import Run, matrices, product, seeded, to_bits, to_values


def mma_runs() -> Iterator[Run]:
    for dtype in ("bf16", "f16", "tf32"):
        for exact in (True, False):
            case = "mma_m16n8k8_tf32" if dtype == "tf32" else f"mma_m16n8k16_{dtype}"
            label = "exact" if exact else "rounded"
            K = 8 if dtype == "tf32" else 16
            a, b, c = matrices(case, exact, (16, K), (K, 8), (16, 8))
            c = c.astype(np.float32)
            if dtype == "tf32":  # the low 13 bits, that are set here, are not looked at
                a, b = a.astype(np.float32).view(np.uint32) | 0x1FFF, b.astype(np.float32).view(np.uint32) | 0x1FFF
                registers = gather(a, mma_a_tf32, 32, 4), gather(b, mma_b_tf32, 32, 2)
                a, b = ((m & 0xFFFFE000).astype(np.uint32).view(np.float32).astype(np.float64) for m in (a, b))
            else:
                a, b = to_bits(a, dtype), to_bits(b, dtype)
                registers = gather(a, mma_a16, 32, 8).view(np.uint32), gather(b, mma_b16, 32, 4).view(np.uint32)
                a, b = to_values(a, dtype), to_values(b, dtype)
            d, limit = product(a, b, c.astype(np.float64), exact)
            expected, limits = gather(d, mma_d, 32, 4), gather(limit, mma_d, 32, 4)
            out = np.zeros((32, 4), np.float32)
            yield Run(
                "sm80", case, label, out, expected.astype(np.float32), *registers, gather(c, mma_d, 32, 4), limit=limits
            )


def sm80_runs() -> Iterator[Run]:
    for size in (16, 8, 4):
        for valid in (0xFFFFFFFF, 0x0F0F3A5C, 0):
            a = seeded(f"cp_async{size}").integers(1, 256, (64, size)).astype(np.uint8)
            there = [valid >> i & 1 for i in range(32)] + [1] * 32
            landed = a * np.array(there, np.uint8)[:, None]
            expected = np.concatenate([landed[:32][::-1], landed[32:][::-1]])
            yield Run("sm80", f"cp_async_{size}", f"{valid:x}", np.zeros_like(a), expected, a, p=(valid,))

    random = seeded("ldmatrix")
    elements = random.permutation(32 * 8).astype(np.uint16).reshape(32, 8)  # [row][element], all different
    given = random.permutation(32).astype(np.int32)  # the row whose address each lane gives
    for count in (2, 4):
        for trans in ("", "_trans"):
            expected = np.zeros((32, count, 2), np.uint16)
            for lane, m, i in np.ndindex(32, count, 2):
                matrix = elements[given[8 * m : 8 * m + 8]]  # the rows of lanes 8 m ... 8 m + 7
                row, column = lane // 4, lane % 4 * 2 + i
                expected[lane, m, i] = matrix[column, row] if trans else matrix[row, column]
            words = expected.view(np.uint32).reshape(32, count)
            yield Run("sm80", f"ldmatrix_x{count}{trans}", "", np.zeros_like(words), words, elements, given)
    yield from mma_runs()

    a = seeded("tf32").normal(size=64).astype(np.float32)
    ties = (np.arange(8, dtype=np.uint32) << 12) | 0x3F800000  # every other one lies halfway: away from zero
    a[:8], a[8:16], a[16:19] = ties.view(np.float32), -ties.view(np.float32), (0, np.inf, -np.inf)
    finite = np.where(np.isfinite(a), a, 0).astype(np.float64)
    unit = 2.0 ** (np.floor(np.log2(np.abs(np.where(finite == 0, 1, finite)))) - 10)
    nearest = np.sign(finite) * np.floor(np.abs(finite) / unit + 0.5) * unit
    expected = np.where(np.isfinite(a), nearest, a).astype(np.float32).view(np.uint32)
    yield Run("sm80", "round_to_tf32", "", np.zeros(64, np.uint32), expected, a)
