"""Packed weights: what they stand for, what they cost, and their products at every instruction set."""

import numpy as np
import pytest
import torch
from decoder.matmul_check import FORMATS, GROUP, PackedMatrix, check, grouped
from test_simd import LEVELS, TESTS, cpu_levels, run

BITS = {"fp32": 32, "bf16": 16, "int8": 8.5, "int4": 4.5}  # a weight, its part of the scale included


def weights(N: int, K: int) -> np.ndarray:
    return np.random.default_rng().standard_normal((N, K), dtype=np.float32)


@pytest.mark.parametrize("level", LEVELS)
def test_products_at_every_level(level):
    if level not in cpu_levels():
        pytest.skip(f"this CPU does not have {level}")
    result = run(level, str(TESTS / "decoder" / "matmul_check.py"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == level


@pytest.mark.parametrize("format", FORMATS)
def test_the_shapes_of_gpt2(format):
    generator = np.random.default_rng()
    check(format, 1, 50257, 64, generator, threads=2)
    check(format, 3, 2304, 768, generator)
    check(format, 1, 768, 3072, generator)


@pytest.mark.parametrize("format", FORMATS)
def test_a_rows_result_depends_neither_on_threads_nor_on_the_other_rows(format):
    matrix = PackedMatrix(format, weights(131, 3100))
    x = weights(41, 3100)
    y = matrix.multiply(x)
    for threads in (2, 3, 7):
        assert np.array_equal(matrix.multiply(x, threads=threads), y)
    for begin, end in ((0, 1), (3, 5), (7, 10), (8, 16), (11, 24), (40, 41)):
        assert np.array_equal(matrix.multiply(x[begin:end]), y[begin:end])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("N", "K"), [(1, 1), (33, 65), (64, 96)])
def test_packed_size(format, N, K):
    columns = {"fp32": K, "bf16": K + K % 2}.get(format, -(-K // GROUP) * GROUP)
    assert PackedMatrix(format, weights(N, K)).nbytes == -(-N // 32) * 32 * columns * BITS[format] / 8


def test_floats_are_rounded_to_nearest():
    w = weights(45, 71)
    assert np.array_equal(PackedMatrix("fp32", w).unpack(), w)
    assert np.array_equal(PackedMatrix("bf16", w).unpack(), torch.from_numpy(w).bfloat16().float().numpy())


def steps(w: np.ndarray, integers: int) -> np.ndarray:
    """(N, K): max |w| of each weight's group, over the number of positive integers."""
    N, K = w.shape
    return np.repeat(np.abs(grouped(w)).max(-1) / integers, GROUP, axis=1)[:, :K]


@pytest.mark.parametrize(("N", "K"), [(1, 5), (70, 100), (64, 768)])
def test_int8_weights_are_within_half_a_step(N, K):
    w = weights(N, K) * np.exp(weights(N, K))
    error = np.abs(PackedMatrix("int8", w).unpack() - w)
    assert (error <= 0.5 * (1 + 2**-7) * steps(w, 127) * 1.00001).all()  # the scale is rounded up to 8 bits


@pytest.mark.parametrize(("N", "K"), [(1, 5), (70, 100), (64, 768)])
def test_int4_weights_are_nearer_than_by_plain_rounding(N, K):
    w = weights(N, K) * np.exp(weights(N, K) / 2)
    got = PackedMatrix("int4", w).unpack()
    step = steps(w, 8)
    assert (np.abs(got - w) <= 1.6 * step).all()
    extreme = np.take_along_axis(grouped(w), np.abs(grouped(w)).argmax(-1)[..., None], -1)
    plain = np.clip(np.rint(grouped(w) / (extreme / -8)), -8, 7) * (extreme / -8)
    error = np.square(grouped(got) - grouped(w)).sum(-1)
    rounded_scale = 2e-4 * np.square(extreme[..., 0])  # bf16 has 8 bits
    assert (error <= np.square(plain - grouped(w)).sum(-1) + rounded_scale).all()
    if w.size > 1000:
        assert error.sum() < 0.96 * np.square(plain - grouped(w)).sum()
    for row in grouped(got)[:5, 0]:
        assert len(np.unique(row)) <= 16


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_groups_of_zeros_and_of_the_smallest_and_largest_numbers(format):
    w = np.zeros((4, 96), dtype=np.float32)
    w[1, 32:64] = 1e-41
    w[2, 32:64] = 3e38
    w[3, 5] = -7e-30
    got = PackedMatrix(format, w).unpack()
    assert np.array_equal(got[0], w[0]) and np.array_equal(got[1], w[0])
    assert np.allclose(got[2:], w[2:], rtol=0.01, atol=0)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_what_rounding_the_input_costs(format):
    """|y - W x| <= sum over groups of |w|_1 * max |x| / 254: half a step of each group's input."""
    w, x = weights(90, 500), weights(6, 500) * np.exp(weights(6, 500))
    matrix = PackedMatrix(format, w)
    meant = matrix.unpack().astype(np.float64)
    half_step = np.abs(grouped(x)).max(-1) / 254
    bound = half_step @ np.abs(grouped(meant)).sum(-1).T
    error = np.abs(matrix.multiply(x) - x.astype(np.float64) @ meant.T)
    assert (error <= bound * 1.0001).all()
    assert error.mean() < 0.1 * bound.mean()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PackedMatrix("int5", weights(2, 2)), "format must be fp32, bf16, int8 or int4, got int5"),
        (lambda: PackedMatrix("int8", np.zeros(3)), "w must be a matrix"),
        (lambda: PackedMatrix("int8", np.zeros((3, 0))), "neither side 0"),
        (lambda: PackedMatrix("int8", weights(2, 3)).multiply(weights(1, 2)), "x must be a matrix of 3 columns"),
        (lambda: PackedMatrix("int8", weights(2, 3)).multiply(weights(1, 3), np.zeros(3)), "bias must have 2 elements"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
