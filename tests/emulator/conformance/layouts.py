"""Where matrix elements lie in registers and in shared memory: the PTX ISA's tables, element by element.

Written from the ISA's text and not from the C++ sources, which are judged by it. Elements, not registers, are counted:
`a[i]` of a 16-bit fragment is half of register i // 2.
"""

import numpy as np

# ---- mma.m16n8k16 (bf16, f16), mma.m16n8k8 (tf32): "Matrix Fragments for ..."; groupID = lane >> 2 -------------------


def mma_a16(lane: int, i: int) -> tuple[int, int]:
    """Row and column in A [16, 16] of a[i], i = 0 ... 7."""
    group, thread = lane >> 2, lane % 4
    row = group if i in (0, 1, 4, 5) else group + 8
    return row, thread * 2 + (i & 1) + (0 if i < 4 else 8)


def mma_b16(lane: int, i: int) -> tuple[int, int]:
    """Row and column in B [16, 8] of b[i], i = 0 ... 3."""
    return lane % 4 * 2 + (i & 1) + (0 if i < 2 else 8), lane >> 2


def mma_a_tf32(lane: int, i: int) -> tuple[int, int]:
    """Row and column in A [16, 8] of a[i], i = 0 ... 3."""
    return (lane >> 2) + (0 if i in (0, 2) else 8), lane % 4 + (0 if i in (0, 1) else 4)


def mma_b_tf32(lane: int, i: int) -> tuple[int, int]:
    """Row and column in B [8, 8] of b[i], i = 0, 1."""
    return lane % 4 + (0 if i == 0 else 4), lane >> 2


def mma_d(lane: int, i: int) -> tuple[int, int]:
    """Row and column in C and D [16, 8] of c[i], i = 0 ... 3, for both."""
    return (lane >> 2) + (0 if i < 2 else 8), lane % 4 * 2 + (i & 1)


def wgmma_a(thread: int, i: int) -> tuple[int, int]:
    """Row and column in A [64, 16] of a[i], i = 0 ... 7, of a warpgroup's thread."""
    row, column = mma_a16(thread % 32, i)
    return 16 * (thread // 32) + row, column


def wgmma_d(thread: int, i: int) -> tuple[int, int]:
    """Row and column in D [64, N] of d[i], i = 0 ... N / 2 - 1: eight columns of D after the other."""
    row, column = mma_d(thread % 32, i % 4)
    return 16 * (thread // 32) + row, 8 * (i // 4) + column


def gather(matrix: np.ndarray, place, threads: int, count: int) -> np.ndarray:
    """Fragments [threads, count] of a matrix, by one of the functions above."""
    return np.array([[matrix[place(t, i)] for i in range(count)] for t in range(threads)], matrix.dtype)


# ---- shared memory ---------------------------------------------------------------------------------------------------

SWIZZLES = {"none": 0, "32B": 1, "64B": 2, "128B": 3}


def swizzled(address: int, swizzle: str) -> int:
    """Where TMA and wgmma put the byte of a plain layout's address.

    Memory is seen as lines of 128 bytes, of eight 16-byte units each. In line l unit u goes to u XOR l, of which only
    as many low bits take part as count the units of 32, 64 or 128 bytes: 1, 2 or 3.
    """
    line, unit, byte = address // 128, address // 16 % 8, address % 16
    units = {"none": 1, "32B": 2, "64B": 4, "128B": 8}[swizzle]
    unit = unit // units * units + (unit % units ^ line % units)
    return line * 128 + unit * 16 + byte


def wgmma_offset(mn: int, k: int, major: str, swizzle: str, leading: int, stride: int) -> int:
    """The byte, before swizzling, of element (mn, k) of 2 bytes: the ISA's canonical layouts of matrix descriptors.

    With T = 8 elements, the 16 bytes of a unit, W units in a row of the swizzle, and the layouts as (shape):(stride):
      K-major   none  ((8, m), (T, 2)) : ((T, SBO), (1, LBO))     else ((8, m), (T, 2)) : ((W T, SBO), (1, T))
      MN-major  none  ((T, m), (8, k)) : ((1, SBO), (T, LBO))     else ((T, W, m), (8, k)) : ((1, T, LBO), (W T, SBO))
    """
    leading, stride = leading // 2, stride // 2  # in elements
    T, W = 8, {"none": 1, "32B": 2, "64B": 4, "128B": 8}[swizzle]
    if major == "k":
        between = leading if swizzle == "none" else T
        return 2 * (mn % 8 * W * T + mn // 8 * stride + k % T + k // T * between)
    if swizzle == "none":
        return 2 * (mn % T + mn // T * stride + k % 8 * T + k // 8 * leading)
    return 2 * (mn % T + mn // T % W * T + mn // (T * W) * leading + k % 8 * W * T + k // 8 * stride)


def wgmma_tile(
    bits: np.ndarray, major: str, swizzle: str, leading: int, stride: int, size: int, advance: int
) -> np.ndarray:
    """`size` bytes of shared memory that hold bits [mn, 16] of uint16, `advance` bytes behind their start."""
    image = np.full(size, 0xFF, np.uint8)  # NaN where nothing should be read
    halves = image.view(np.uint16)
    for mn, k in np.ndindex(*bits.shape):
        halves[swizzled(advance + wgmma_offset(mn, k, major, swizzle, leading, stride), swizzle) // 2] = bits[mn, k]
    return image


def tma_box(tensor: np.ndarray, column: int, row: int, rows: int, columns: int, swizzle: str) -> np.ndarray:
    """The bytes in shared memory of a box of a tensor [rows, cols]: dense rows, swizzled; zeros outside the tensor."""
    element = tensor.dtype.itemsize
    image = np.zeros(rows * columns * element, np.uint8)
    for r, c in np.ndindex(rows, columns):
        y, x = row + r, column + c
        if 0 <= y < tensor.shape[0] and 0 <= x < tensor.shape[1]:
            at = swizzled((r * columns + c) * element, swizzle)
            image[at : at + element] = tensor[y, x : x + 1].view(np.uint8)
    return image
