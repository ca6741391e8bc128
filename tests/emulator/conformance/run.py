"""A launch of a conformance case, and the numbers that go in."""

import zlib
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Run:
    """One launch of a case. a, b, c: inputs; out: the output before it; p: four integers.

    limit: how far off each element may be.
    """

    file: str
    case: str
    label: str
    out: np.ndarray
    expected: np.ndarray
    a: np.ndarray | None = None
    b: np.ndarray | None = None
    c: np.ndarray | None = None
    p: tuple[int, ...] = ()
    limit: np.ndarray | float = 0.0
    name: str = field(init=False)

    def __post_init__(self):
        self.name = f"{self.case}-{self.label}" if self.label else self.case
        self.p = tuple(self.p) + (0,) * (4 - len(self.p))
        assert self.expected.shape == self.out.shape and self.expected.dtype == self.out.dtype, self.name

    def differs(self, got: np.ndarray, wanted: np.ndarray, limit: np.ndarray | float) -> str | None:
        """What is wrong with an output, or None. Where limit is 0 everywhere, bits count."""
        if not np.any(limit):
            bad = got.view(np.uint8) != wanted.view(np.uint8)
            wrong = np.flatnonzero(bad.reshape(got.size, -1).any(axis=1))
        else:
            # 64-bit floats: the difference of two close numbers is exact; inf - inf is NaN, so equals are let through.
            with np.errstate(invalid="ignore"):
                error = np.abs(got.astype(np.float64) - wanted)
            wrong = np.flatnonzero(~((error <= limit) | (got == wanted)))
        if not wrong.size:
            return None
        i = wrong[0]
        return f"{wrong.size} of {got.size} elements, the first is [{i}]: {got.flat[i]}, not {wanted.flat[i]}"


def seeded(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def bfloat16_bits(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16, halves to even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def to_bits(x: np.ndarray, dtype: str) -> np.ndarray:
    return bfloat16_bits(x) if dtype == "bf16" else x.astype(np.float16).view(np.uint16)


def to_values(bits: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return bits.view(np.float16).astype(np.float64)


def matrices(name: str, exact: bool, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Small integers, whose products and sums are exact in float, or normal numbers."""
    random = seeded(name)
    return [
        random.integers(-8, 9, shape).astype(np.float64) if exact else random.normal(size=shape) for shape in shapes
    ]


def product(a: np.ndarray, b: np.ndarray, c: np.ndarray, exact: bool) -> tuple[np.ndarray, np.ndarray]:
    """c + a b, and how far a tensor core may be from it.

    Products are exact. Their sum is kept with at least 22 bits below the largest part, and cut or rounded at each of up
    to 17 additions; 2^-18 times the sum of the parts' sizes is more than that.
    """
    limit = 0.0 if exact else 2.0**-18
    return c + a @ b, limit * (np.abs(c) + np.abs(a) @ np.abs(b))
