"""The cases of sm90.cu: TMA, mbarriers, named barriers, register budgets."""

from collections.abc import Iterator

import numpy as np

from .layouts import SWIZZLES, swizzled, tma_box
from .run import Run, seeded

ROWS, COLS, STRIDE, BOX_ROWS = 20, 88, 96, 16  # of the tensors that TMA moves boxes of
CORNERS = {
    "inside": (8, 2),
    "start": (0, 0),
    "past_the_end": (72, 9),
    "before_the_start": (-8, -3),
    "outside": (96, 40),
}


def tma_runs() -> Iterator[Run]:
    dtypes = {"bf16": np.uint16, "f16": np.uint16, "f32": np.uint32}
    for dtype, word in dtypes.items():
        tensor = seeded(f"tma{dtype}").integers(1, 0x3C00, (ROWS, STRIDE)).astype(word)  # as floats: no NaN
        element = tensor.dtype.itemsize
        for swizzle, number in SWIZZLES.items():
            columns = {"none": 80, "32B": 32, "64B": 64, "128B": 128}[swizzle] // element
            for corner, (column, row) in CORNERS.items():
                p = (column, row, number, columns)
                box = tma_box(tensor[:, :COLS], column, row, BOX_ROWS, columns, swizzle).view(np.uint32)
                label = f"{swizzle}_{corner}"
                yield Run("sm90", f"tma_load_{dtype}", label, np.zeros_like(box), box, tensor, p=p)
                case = {"bf16": "tma_store_bf16", "f32": "tma_store_read_f32"}.get(dtype)
                if not case:
                    continue
                image = seeded(case + label).integers(1, 0x3C00, BOX_ROWS * columns).astype(word)
                stored = np.zeros_like(tensor)
                for r, c in np.ndindex(BOX_ROWS, columns):
                    if 0 <= row + r < ROWS and 0 <= column + c < COLS:
                        at = swizzled((r * columns + c) * element, swizzle)
                        stored[row + r, column + c] = image[at // element]
                yield Run("sm90", case, label, np.zeros_like(stored), stored, image, p=p)


def sm90_runs() -> Iterator[Run]:
    yield from tma_runs()
    a = seeded("mbarrier").integers(0, 1000, 64).astype(np.int32)
    v = a
    for phase in range(4):
        v = np.roll(v + phase, -1)
    yield Run("sm90", "mbarrier", "", np.zeros_like(a), np.concatenate([v[:32], v[:32]]), a)
    expected = a[::-1][(np.arange(64) + 32) % 64]
    yield Run("sm90", "named_barrier", "", np.zeros_like(a), expected, a)
    a = np.arange(384, dtype=np.int32)
    yield Run("sm90", "setmaxnreg", "", np.zeros_like(a), a + (a >= 128), a)
