"""The cases of basic.cu: CUDA's programming guide."""

from collections.abc import Iterator

import numpy as np

from .run import Run, seeded

ALL, ODD, LOW = 0xFFFFFFFF, 0xAAAAAAAA, 0x0000FFFF


def source_lane(kind: str, lane: int, width: int, argument: int) -> int:
    """CUDA's programming guide, "Warp Shuffle Functions"."""
    first = lane // width * width
    if kind == "shfl":
        return first + argument % width
    if kind == "shfl_up":
        return lane if lane - argument < first else lane - argument
    if kind == "shfl_down":
        return lane if lane + argument >= first + width else lane + argument
    return lane if (lane ^ argument) >= first + width else lane ^ argument


def shuffle_runs() -> Iterator[Run]:
    dtypes = {"i32": np.int32, "f32": np.float32, "f64": np.float64}
    forms = [
        ("shfl", "i32"),
        ("shfl_up", "i32"),
        ("shfl_down", "i32"),
        ("shfl_xor", "i32"),
        ("shfl", "f32"),
        ("shfl_xor", "f64"),
    ]
    for kind, dtype in forms:
        for width, argument, mask in (
            (32, 5, ALL),
            (32, 17, ALL),
            (16, 3, ALL),
            (8, 6, ALL),
            (4, 1, ALL),
            (2, 1, ODD),
            (16, 2, LOW),
        ):
            if mask == ODD:  # the lanes taking part must find each other
                argument, width = {"shfl": (3, 16)}.get(kind, (2, 16))
            label = f"w{width}_{argument}_{mask:x}"
            a = seeded(kind + label).integers(-1000, 1000, 32).astype(dtypes[dtype])
            expected = np.full(32, -7, a.dtype)
            for lane in range(32):
                if mask >> lane & 1:
                    expected[lane] = a[source_lane(kind, lane, width, argument)]
            out = np.full(32, -7, a.dtype)
            yield Run("basic", f"{kind}_{dtype}", label, out, expected, a, p=(width, argument, mask))


def basic_runs() -> Iterator[Run]:
    yield from shuffle_runs()
    for mask in (ALL, ODD, LOW):
        for label, a in (("some", seeded("vote").integers(0, 2, 32)), ("none", np.zeros(32)), ("all", np.full(32, 3))):
            a = a.astype(np.int32)
            votes = [bool(a[lane]) for lane in range(32) if mask >> lane & 1]
            ballot = sum(1 << lane for lane in range(32) if mask >> lane & 1 and a[lane])
            expected = np.full((3, 32), 9, np.uint32)
            for lane in range(32):
                if mask >> lane & 1:
                    expected[:, lane] = ballot, any(votes), all(votes)
            out = np.full((3, 32), 9, np.uint32)
            yield Run("basic", "vote", f"{label}_{mask:x}", out, expected, a, p=(0, 0, mask))
    for size in (4, 8, 16):
        a = seeded(f"vector{size}").integers(0, 256, (32, size)).astype(np.uint8)
        expected = a[np.arange(32) ^ 1]
        yield Run("basic", f"vector_{size}", "", np.zeros_like(a), expected, a)
    a = seeded("atomics").integers(-100, 100, 64).astype(np.int32)
    expected = np.array([a.sum(), a.max(), a.min(), 7, 1, 5, 1], np.int32)
    yield Run("basic", "atomics", "", np.array([0, -1000, 1000, 0, 0, 0, 0], np.int32), expected, a)
    a = a.astype(np.float32)
    yield Run("basic", "atomic_float", "", np.array([0.5], np.float32), np.array([a.sum() + 0.5], np.float32), a)

    a = seeded("arithmetic").uniform(-8, 8, 64).astype(np.float32)
    a[:6] = -140, -126, 0, 1, 127, -200
    x = a.astype(np.float64)
    below = x < -126  # what is below the normal numbers is flushed to 0
    exact = np.stack([np.where(below, 0, np.exp2(x)), (x * x + 0.5) ** -0.5, x / 3, np.exp(x), np.log(x * x + 0.5)])
    with np.errstate(over="ignore"):
        expected = exact.astype(np.float32)
    limit = np.abs(exact) * (2.0**-21 + 2.0**-23 * np.abs(x)) + np.array([0, 0, 0, 1e-37, 2.0**-20])[:, None]
    yield Run("basic", "arithmetic", "", np.zeros_like(expected), expected, a, limit=limit)

    a = seeded("barrier").integers(0, 1000, 96).astype(np.int32)
    expected = a[95 - (np.arange(96) ^ 1)]
    yield Run("basic", "block_barrier", "", np.zeros_like(a), expected, a)
    expected = np.concatenate([a[:4], a[:4][::-1]])
    yield Run("basic", "grid_barrier", "", np.zeros_like(expected), expected, a[:4].copy(), np.zeros(1, np.uint32))
