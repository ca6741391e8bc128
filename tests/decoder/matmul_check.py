"""Products with packed weights beside float64 ones, at the instruction set in use; run as a script by
test_packed_matrix.py in a process of its own, with MINIGPT_SIMD set. Prints the level."""

import numpy as np
import torch

from minigpt_ext import _C

FORMATS = ("fp32", "bf16", "int8", "int4")
GROUP = 32
PackedMatrix = _C.decoder_kernels.PackedMatrix


def grouped(x: np.ndarray) -> np.ndarray:
    """(M, K) as (M, groups, 32), with zeros behind K."""
    return np.pad(x, ((0, 0), (0, -x.shape[1] % GROUP))).reshape(len(x), -1, GROUP)


def rounded_inputs(format: str, x: np.ndarray) -> list[np.ndarray]:
    """What the engine may multiply instead of x, by the rule in csrc/decoder/matmul.h; float64."""
    if format == "fp32":
        return [x.astype(np.float64)]
    if format == "bf16":
        return [torch.from_numpy(x).bfloat16().double().numpy()]
    g = grouped(x)
    scale = np.abs(g).max(-1, keepdims=True) / np.float32(127)
    inverse = np.where(scale > 0, 1 / np.where(scale > 0, scale, np.float32(1)), np.float32(0))
    # x / scale is rounded to an integer at once where a CPU multiplies and adds in one instruction, or to float first.
    at_once, float_first = np.rint(g.astype(np.float64) * inverse), np.rint(g * inverse)
    return [(q * scale.astype(np.float64)).reshape(len(x), -1)[:, : x.shape[1]] for q in (at_once, float_first)]


def check(format: str, M: int, N: int, K: int, generator: np.random.Generator, threads: int = 1) -> None:
    """y is x W^T + bias to float's precision, with W what unpack() tells and x rounded as the format says."""
    w = generator.standard_normal((N, K), dtype=np.float32)
    x = generator.standard_normal((M, K), dtype=np.float32) * np.float32(10.0 ** generator.integers(-3, 3))
    bias = generator.standard_normal(N, dtype=np.float32) if (N + K) % 2 else np.zeros(N, dtype=np.float32)
    matrix = PackedMatrix(format, w)
    y = matrix.multiply(x, bias if bias.any() else None, threads)
    meant = matrix.unpack().astype(np.float64)
    size = np.abs(x.astype(np.float64)) @ np.abs(meant).T + np.abs(bias)
    bound = 1e-6 * (1 + K**0.5 / 8) * size + 1e-30  # rounding errors of K additions add up like a random walk
    errors = [np.abs(y - (rounded @ meant.T + bias)) / bound for rounded in rounded_inputs(format, x)]
    worst = np.min([error.max(-1) for error in errors], axis=0)
    assert worst.max() < 1, f"{format} M {M} N {N} K {K}: {worst.max():.2f} of the bound, in row {worst.argmax()}"


def check_extremes(format: str) -> None:
    """Sums of the greatest integers there are, all of one sign."""
    w = np.full((40, 64), 7, dtype=np.float32)
    w[::2, ::32] = -8  # the others then are int4's greatest
    x = np.ones((9, 64), dtype=np.float32)
    x[1::2] = -1
    matrix = PackedMatrix(format, w)
    meant = matrix.unpack()
    assert np.allclose(matrix.multiply(x), x @ meant.T, rtol=1e-5), format


def main() -> None:
    generator = np.random.default_rng()
    for format in FORMATS:
        check_extremes(format)
        for N, K in ((1, 1), (3, 2), (65, 33), (32, 64), (96, 100), (200, 771)):
            for M in (1, 2, 3, 4, 5, 7, 8, 9, 13, 30):
                check(format, M, N, K, generator)
        check(format, 250, 70, 1700, generator, threads=2)  # more than one block of rows, and of K
    print(_C.simd_level())


if __name__ == "__main__":
    main()
