"""Sectors, bytes and atomics of global memory, on kernels whose counts are worked out by hand: (requests, bytes asked
for, 32-byte sectors touched, sectors if the bytes lay side by side, most sectors of a request)."""

import pytest
import torch
from emulator.counts import KERNELS, launches_of, totals

import minigpt_ext as mg


@pytest.fixture(scope="module")
def library():
    return mg.emulator.compile(KERNELS / "counters_global.cu", check="race")


def aligned(count, dtype=torch.float32):
    """Zeros that begin at a multiple of 64 bytes, so that it is known which sectors they lie in."""
    room = torch.zeros(count + 64, dtype=dtype)
    return room[(-room.data_ptr() % 64) // room.element_size() :][:count]


def loads(library, launcher, dtype, *arguments, stored=64):
    launch = launches_of(library, launcher, aligned(8192, dtype), aligned(stored, dtype), *arguments)
    return totals(launch, "global load"), totals(launch, "global store")


@pytest.mark.parametrize(
    "stride, offset, sectors, ideal",
    [
        (1, 0, 4, 4),  # 32 x 4 bytes = 128 = 4 x 32
        (2, 0, 8, 4),  # over 256 bytes
        (8, 0, 32, 4),  # a sector a lane
        (32, 0, 32, 4),
        (1, 1, 5, 4),  # 128 bytes from byte 4 on: a fifth sector
        (1, 8, 4, 4),  # from byte 32 on
        (0, 0, 1, 1),  # all lanes at one element: 4 different bytes
    ],
)
def test_stride_and_offset(library, stride, offset, sectors, ideal):
    load, store = loads(library, "strided_float", torch.float32, stride, offset, 64, 1)  # a block of 2 warps
    assert load == (2, 256, 2 * sectors, 2 * ideal, sectors)
    assert store == (2, 256, 8, 8, 4)


@pytest.mark.parametrize(
    "launcher, dtype, stride, sectors, ideal",
    [
        ("strided_half", torch.float16, 1, 2, 2),  # 64 bytes
        ("strided_half", torch.float16, 2, 4, 2),
        ("strided_half", torch.float16, 16, 32, 2),
        ("strided_double", torch.float64, 1, 8, 8),  # 256 bytes
        ("strided_double", torch.float64, 2, 16, 8),
    ],
)
def test_element_sizes(library, launcher, dtype, stride, sectors, ideal):
    load, _ = loads(library, launcher, dtype, stride, 0, 64, 1)
    assert load == (2, 64 * dtype.itemsize, 2 * sectors, 2 * ideal, sectors)


def test_misaligned_tensor(library):
    """The tensor's own place counts: one that begins 4 bytes into a sector, as a view may."""
    launch = launches_of(library, "strided_float", aligned(65)[1:], aligned(64), 1, 0, 64, 1)
    assert totals(launch, "global load") == (2, 256, 10, 8, 5)


def test_lanes_that_take_no_part(library):
    """40 of 64 threads: a whole warp, and 8 lanes of the second, 32 bytes in one sector."""
    load, store = loads(library, "strided_float", torch.float32, 1, 0, 40, 1)
    assert load == store == (2, 160, 5, 5, 4)


def test_vectors(library):
    """16 bytes a lane: 512 bytes, 16 sectors, in one request. 32 bytes a lane are two instructions of 16 bytes, each of
    which touches half of each of 32 sectors."""
    launch = launches_of(library, "vectors_of_4", aligned(128), aligned(128))
    assert totals(launch, "global load") == totals(launch, "global store") == (1, 512, 16, 16, 16)
    launch = launches_of(library, "vectors_of_8", aligned(256), aligned(256))
    assert totals(launch, "global load") == totals(launch, "global store") == (2, 1024, 64, 32, 32)


@pytest.mark.parametrize("seed", range(4))
def test_loop_that_lanes_leave_at_different_rounds(library, seed):
    """Round i: the 32 - i lanes from i on read one element: 32 requests, 4 x (32 + 31 + ... + 1) bytes."""
    launch = launches_of(library, "triangle", aligned(32), aligned(32), seed=seed)
    assert totals(launch, "global load") == (32, 4 * 32 * 33 // 2, 32, 32, 1)
    assert (launch.bytes_read, launch.bytes_written) == (128, 128)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("whole_block", [0, 1])
def test_lanes_in_turns(library, whole_block, seed):
    """Half of the lanes at a time, who meet in between: 2 requests for 64 of 128 bytes, each in all 4 sectors."""
    launch = launches_of(library, "in_turns", aligned(32), aligned(32), whole_block, seed=seed)
    assert totals(launch, "global load") == (2, 128, 8, 4, 4)


@pytest.mark.parametrize("addresses, most", [(1, 32), (4, 8), (32, 1)])
def test_atomics(library, addresses, most):
    launch = launches_of(library, "atomic", aligned(32, torch.int32), addresses, 64)
    assert totals(launch, "global atomic") == (2, 256, 2 * most, 2, most)


def test_cp_async(library):
    """16 of 32 lanes copy 16 bytes each, the others zeros: 256 bytes are read, 512 written, and counted once though
    they land later. A quarter-warp fills each of the 32 banks once: 4 wavefronts."""
    launch = launches_of(library, "asynchronous", aligned(128), aligned(32), 16)
    assert totals(launch, "global load") == (1, 256, 8, 8, 8)
    assert totals(launch, "shared store") == (1, 512, 4, 4, 1)
    assert launch.static_bytes == 512


def test_tma(library):
    """Each of the 8 rows is 128 bytes; no lane asks for them, and no bank of shared memory is counted."""
    launch = launches_of(library, "tma", aligned(8 * 64), aligned(32), 64)
    assert totals(launch, "global load") == (8, 1024, 32, 32, 4)
    source = (KERNELS / "counters_global.cu").read_text().splitlines()
    line = next(i for i, text in enumerate(source, 1) if "tma_load_2d(box.values" in text)
    assert totals(launch, "shared store", line=line) == (0, 0, 0, 0, 0)
    assert launch.bytes_read == 1024


def test_launches_and_bytes_touched(library):
    """Three launches of one grid are told together; a second grid apart. Every block reads the 16 elements it needs."""
    x, y = aligned(4096), aligned(128)
    with mg.emulator.counted(library) as found:
        for _ in range(3):
            library.call("strided_float", x, y, 0, 5, 128, 2)
        library.call("strided_float", x, y, 1, 0, 64, 1)
    many, single = found
    assert (many.launches, many.grid, many.block) == (3, (2, 1, 1), (64, 1, 1))
    assert (many.bytes_read, many.bytes_written) == (3 * 4, 3 * 512)
    assert many.bytes_asked_for == 3 * (512 + 512)
    assert (single.launches, single.grid, single.bytes_read) == (1, (1, 1, 1), 256)
    assert "strided_kernel<float>" in many.function


def test_lines(library):
    """Each access is told at its own line of the kernel."""
    launch = launches_of(library, "strided_float", aligned(64), aligned(64), 1, 0, 64, 1)
    source = (KERNELS / "counters_global.cu").read_text().splitlines()
    told = {line.kind: source[line.line - 1].strip() for line in launch.lines}
    assert told == {"global load": "const T value = in[i * stride + offset];", "global store": "out[i] = value;"}
    assert {line.file for line in launch.lines} == {str(KERNELS / "counters_global.cu")}


def test_line_of_a_conversion(library):
    launch = launches_of(library, "widening", aligned(32, torch.bfloat16), aligned(32))
    assert {line.file for line in launch.lines} == {str(KERNELS / "counters_global.cu")}
    assert totals(launch, "global load") == (1, 64, 2, 2, 2)


def test_nothing_is_counted_outside(library):
    x, y = aligned(64), aligned(64)
    library.call("strided_float", x, y, 1, 0, 64, 1)
    with mg.emulator.counted(library) as found:
        pass
    library.call("strided_float", x, y, 1, 0, 64, 1)
    assert found == []


def test_library_without_the_checker():
    library = mg.emulator.compile(KERNELS / "counters_global.cu")
    with pytest.raises(ValueError, match='check="race"'), mg.emulator.counted(library):
        pass
