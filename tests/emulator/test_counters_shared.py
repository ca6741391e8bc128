"""Wavefronts of shared memory, on kernels whose counts are worked out by hand: (requests, bytes asked for, wavefronts,
wavefronts without conflicts, most words that met in a bank). There are 32 banks of 4 bytes."""

import pytest
import torch
from emulator.counts import KERNELS, launches_of, totals

import minigpt_ext as mg

SOURCE = KERNELS / "counters_shared.cu"


@pytest.fixture(scope="module")
def library():
    return mg.emulator.compile(SOURCE, check="race")


def line_of(text):
    """The line of the kernels' source that has this text."""
    (found,) = [i for i, line in enumerate(SOURCE.read_text().splitlines(), 1) if text in line]
    return found


def pitched(library, bytes_each, pitch, offset=0, active=32):
    out = {
        2: torch.zeros(32, dtype=torch.float16),
        4: torch.zeros(32),
        8: torch.zeros(32, dtype=torch.float64),
        16: torch.zeros(128),
    }[bytes_each]
    launch = launches_of(library, f"pitched_{bytes_each}", out, pitch, offset, active)
    load = totals(launch, "shared load", line=line_of("load_vec"))
    if pitch > 0:
        assert totals(launch, "shared store", line=line_of("store_vec")) == load, "the same addresses"
    return load


@pytest.mark.parametrize(
    "pitch, wavefronts",
    [
        (4, 1),  # neighbouring words: a bank each
        (8, 2),  # every other bank, two words in each
        (12, 1),  # 3 and 32 have no common divisor
        (16, 4),
        (128, 32),  # a column of 32 words a row: all in one bank
        (132, 1),  # the same with rows of 33
        (0, 1),  # one word for all
    ],
)
def test_words(library, pitch, wavefronts):
    assert pitched(library, 4, pitch) == (1, 128, wavefronts, 1, wavefronts)


@pytest.mark.parametrize(
    "pitch, wavefronts",
    [
        (2, 1),  # two lanes a word
        (4, 1),
        (8, 2),
        (128, 32),
    ],
)
def test_halves(library, pitch, wavefronts):
    assert pitched(library, 2, pitch) == (1, 64, wavefronts, 1, wavefronts)


@pytest.mark.parametrize(
    "pitch, ways",
    [
        (8, 1),  # a half-warp, 16 lanes of 2 words, fills 32 banks
        (16, 2),  # word pairs at banks 0, 4, ..., 28 and again
        (128, 16),  # all at banks 0 and 1
        (136, 1),  # 34 words: banks 0, 2, 4, ...
        (0, 1),
    ],
)
def test_8_bytes_a_lane(library, pitch, ways):
    assert pitched(library, 8, pitch) == (1, 256, 2 * ways, 2, ways)


@pytest.mark.parametrize(
    "pitch, ways",
    [
        (16, 1),  # a quarter-warp, 8 lanes of 4 words, fills 32 banks
        (32, 2),  # fours at banks 0, 8, 16, 24 and again
        (64, 4),
        (128, 8),  # 8 rows of 32 words: all at bank 0
        (144, 1),  # 36 words: banks 0, 4, 8, ...
        (0, 1),
    ],
)
def test_16_bytes_a_lane(library, pitch, ways):
    assert pitched(library, 16, pitch) == (1, 512, 4 * ways, 4, ways)


def test_lanes_that_take_no_part(library):
    """12 of 32 lanes. 4 bytes at 128 apart: 12 words of one bank. 16 bytes: a quarter-warp and half of one."""
    assert pitched(library, 4, 128, active=12) == (1, 48, 12, 1, 12)
    assert pitched(library, 16, 16, active=12) == (1, 192, 2, 2, 1)
    assert pitched(library, 16, 128, active=12) == (1, 192, 8 + 4, 2, 8)


def test_bank_of_an_offset(library):
    """8-byte pairs at an odd word of every second pair: banks 1, 2; 5, 6; ... 29, 30; and again."""
    assert pitched(library, 8, 16, offset=8) == (1, 256, 4, 2, 2)


@pytest.mark.parametrize("column", [0, 5, 31])
def test_swizzle(library, column):
    """A column of a swizzled tile: row r at bank column ^ r, each bank once."""
    launch = launches_of(library, "swizzled", torch.zeros(32), column)
    assert totals(launch, "shared load", line=line_of("column ^ threadIdx.x")) == (1, 128, 1, 1, 1)


@pytest.mark.parametrize(
    "launcher, matrices, pitch, ways",
    [
        ("ldmatrix_4", 4, 16, 1),  # 8 rows of 16 bytes side by side fill 32 banks
        ("ldmatrix_4", 4, 64, 4),  # at banks 0 and 16 in turn, four rows each
        ("ldmatrix_4", 4, 128, 8),
        ("ldmatrix_4", 4, 144, 1),  # 36 words: banks 0, 4, ..., 28
        ("ldmatrix_2", 2, 128, 8),
        ("ldmatrix_2", 2, 144, 1),
    ],
)
def test_ldmatrix(library, launcher, matrices, pitch, ways):
    launch = launches_of(library, launcher, torch.zeros(32), pitch)
    line = line_of(f"ldmatrix_x{matrices}(r")
    expected = (1, matrices * 128, matrices * ways, matrices, ways)
    assert totals(launch, "shared load", line=line) == expected


@pytest.mark.parametrize("addresses, most", [(1, 32), (5, 7), (32, 1)])
def test_atomics(library, addresses, most):
    launch = launches_of(library, "shared_atomic", torch.zeros(32, dtype=torch.int32), addresses)
    assert totals(launch, "shared atomic") == (1, 128, most, 1, most)


def test_shared_memory_of_a_launch(library):
    launch = launches_of(library, "pitched_4", torch.zeros(32), 4, 0, 32)
    assert (launch.dynamic_bytes, launch.static_bytes) == (8192, 0)
    assert totals(launch, "shared store", line=line_of("= 0;")) == (64, 8192, 64, 64, 1), "filled with zeros"


def test_tensor_cores(library):
    """One mma m16n8k16 and one m16n8k8: 2 x 16 x 8 x (16 + 8) FLOPs."""
    assert launches_of(library, "multiply", torch.zeros(32)).tensor_flops == 6144
