"""What the emulator says of wrong kernels: kernels/faults.cu has one fault each, in a line that a comment names."""

import re
from pathlib import Path

import pytest
import torch

import minigpt_ext as mg

SOURCE = (Path(__file__).parent / "kernels" / "faults.cu").read_text().splitlines()


def line_of(comment: str) -> int:
    (line,) = (number for number, text in enumerate(SOURCE, 1) if text.endswith(f"// {comment}"))
    return line


def fault(library, launcher: str, *arguments, seed: int = 0) -> mg.emulator.EmulatorError:
    """The error of a launch; after it the library goes on as if nothing had been."""
    with pytest.raises(mg.emulator.EmulatorError) as caught:
        library.call(launcher, *arguments, seed=seed)
    error = caught.value
    assert str(error).startswith("CUDA emulator: ") and error.seed == seed
    assert (f", seed {seed}" in str(error)) == (seed > 0 and "\n  in " in str(error))
    out = torch.zeros(32, dtype=torch.int32)
    library.call("templates", out)
    assert out.tolist() == [131 - i for i in range(32)]
    return error


def x() -> torch.Tensor:
    return torch.zeros(64)


@pytest.mark.parametrize("seed", [0, 5, 6])
@pytest.mark.parametrize(
    "launcher, message, comment",
    [
        ("deadlock", r"deadlock:\n.*63 threads wait at __syncthreads \(faults.cu:\d+\)", "deadlock"),
        ("absent_lane", r"31 threads wait at __shfl_sync.*\n.* 1 threads wait at __syncthreads", "absent lane"),
        ("not_in_mask", "the calling lane 0 is not in its own mask", "not in its own mask"),
        ("trap", r"__trap\(\)", "trap"),
    ],
)
def test_threads_that_do_not_meet(library, launcher, message, comment, seed):
    error = fault(library, launcher, x(), seed=seed)
    assert re.search(message, str(error))
    assert error.kernel == launcher and error.file.endswith("faults.cu") and error.line == line_of(comment)


@pytest.mark.parametrize("seed", [0, 5, 6])
@pytest.mark.parametrize(
    "launcher, message, comment",
    [
        ("divergence", r"warp divergence: lane \d+ is at .*lane \d+ at ", "divergence"),
        ("two_barriers", "__syncthreads reached at two places", "two places"),
    ],
)
def test_threads_that_meet_in_two_places(library, launcher, message, comment, seed):
    """Whoever comes second is told, with the line of the other."""
    error = fault(library, launcher, x(), seed=seed)
    places = {line_of(comment), line_of(comment) - 2}
    assert re.search(message, str(error)) and error.line in places
    assert {int(n) for n in re.findall(r"faults.cu:(\d+)", str(error))} == places


def test_an_error_says_where(library):
    error = fault(library, "trap", x())
    assert (error.kernel, error.block, error.thread) == ("trap", (0, 0, 0), (7, 0, 0))
    assert str(error).endswith("in trap, block (0, 0, 0), thread (7, 0, 0)")


# ---- device memory ------------------------------------------------------------------------------------------------


def ending(numbers: int, at: int) -> torch.Tensor:
    """So many floats, the last one ending `at` bytes behind a multiple of 256."""
    storage = torch.zeros(numbers + 128)
    skip = (at - 4 * numbers - storage.data_ptr()) % 256 // 4
    return storage[skip : skip + numbers]


@pytest.mark.parametrize("launcher, what", [("read_at", "global read"), ("write_at", "global write")])
@pytest.mark.parametrize(
    "i, where", [(64, "0 bytes behind the end of"), (70, "24 bytes behind the end of"), (-1, "4 bytes before")]
)
def test_out_of_bounds_to_the_byte(checked, launcher, what, i, where):
    error = fault(checked, launcher, x(), i)
    assert f"out of bounds: {what.split()[1]} of 4 bytes, {where} a tensor of 256 bytes" in str(error)
    assert error.line == line_of(what)


@pytest.mark.parametrize("i, where", [(256, "0 bytes behind the end of"), (-1, "1 bytes before")])
def test_a_byte_out_of_bounds(checked, i, where):
    assert where in str(fault(checked, "write_byte", x(), i))


@pytest.mark.parametrize("launcher", ["read_at", "write_at"])
@pytest.mark.parametrize("i", [64, 2**20, -(2**13)])
def test_a_page_fault(library, launcher, i):
    """The plain build finds what lies beyond a tensor's own pages, which end with it where its alignment allows."""
    error = fault(library, launcher, ending(64, 0), i)
    assert re.search(f"{'behind the end of' if i > 0 else 'before'} a tensor of 256 bytes", str(error))
    assert error.line == line_of("global read" if launcher == "read_at" else "global write")


@pytest.mark.parametrize("launcher, i", [("write_at", -1), ("write_at", 64), ("write_byte", 256), ("write_byte", -1)])
def test_writes_beside_a_tensor(plain, launcher, i):
    error = fault(plain, launcher, ending(64, 4), i)
    assert "a kernel wrote beside a tensor of 256 bytes" in str(error)


def test_pointers_to_nowhere(library):
    assert "a null pointer" in str(fault(library, "read_at", 0, 0))
    assert "not an address of a tensor" in str(fault(library, "write_to", 4096))


@pytest.mark.parametrize("i", [1, 2, 3])
def test_misaligned_vectors(library, i):
    error = fault(library, "wide", ending(64, 0), i)
    assert f"misaligned store of 16 bytes: the address is {4 * i} bytes past a multiple of 16" in str(error)
    assert error.line == line_of("wide access")
    library.call("wide", ending(64, 0), 4)


def test_misaligned_words(checked):
    error = fault(checked, "misaligned_word", x())
    assert "misaligned store of 4 bytes" in str(error) and error.line == line_of("misaligned word")


def test_a_stack_that_is_too_small(library):
    error = fault(library, "stack_overflow", x(), 5000)
    assert "stack overflow: a CUDA thread has 256 KiB for its arrays" in str(error) and error.kernel == "stack"
    library.call("stack_overflow", x(), 100)


# ---- shared memory ------------------------------------------------------------------------------------------------


def test_uninitialised_shared_memory(plain, checked):
    error = fault(checked, "uninitialised", x())
    assert "read of uninitialised shared memory, byte 124 of a shared variable of 128 bytes" in str(error)
    assert error.line == line_of("uninitialised") and error.thread == (31, 0, 0)
    out = x()
    plain.call("uninitialised", out)
    assert out[:31].tolist() == [1.0] * 31 and out[31].isnan()


@pytest.mark.parametrize(
    "launcher, i, plainly, exactly",
    [
        ("shared_write", 8, "a shared variable of 32 bytes", "byte 32 of a shared variable of 32 bytes"),
        ("dynamic_write", 100, "100 bytes of dynamic shared memory", "byte 100 of the 100 bytes of dynamic"),
    ],
)
def test_writes_behind_shared_memory(plain, checked, launcher, i, plainly, exactly):
    assert f"something was written behind the end of {plainly}" in str(fault(plain, launcher, x(), i))
    error = fault(checked, launcher, x(), i)
    assert "out of bounds: write of" in str(error) and exactly in str(error)
    assert error.line == line_of(launcher.replace("_", " "))
    for library in (plain, checked):
        library.call(launcher, x(), i - 1)


# ---- races ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 5, 6])
@pytest.mark.parametrize(
    "launcher, message, comments",
    [
        ("write_after_read", r"race on shared memory \(.* after .*\)", ["written without a barrier"]),
        ("write_after_write", r"race on shared memory \(write after write\)", ["all write"]),
        ("shuffle_is_no_barrier", r"race on shared memory|uninitialised", ["after a shuffle"]),
        ("read_after_write", r"race on shared memory|uninitialised", ["read without a barrier"]),
        ("global_in_block", r"race on global memory \(write after write\), byte 12 of", ["another thread's element"]),
        ("global_between_blocks", r"race on global memory \(write after write\)", ["every block's element"]),
        ("global_read", r"race on global memory \(\w+ after \w+\), byte 0 of", ["another block's result"]),
    ],
)
def test_races(checked, launcher, message, comments, seed):
    error = fault(checked, launcher, x(), seed=seed)
    assert re.search(message, str(error))
    lines = {int(n) for n in re.findall(r"faults.cu:(\d+)", str(error))}
    assert {line_of(comment) for comment in comments} <= lines


def test_a_plain_access_beside_atomics_is_a_race(checked):
    error = fault(checked, "atomic_and_plain", torch.zeros(2, dtype=torch.int32))
    assert "race on global memory" in str(error)
    assert f"faults.cu:{line_of('beside atomics')}" in str(error)


# ---- launches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grid_x, grid_y, threads, smem, cooperative, message",
    [
        (1, 1, 1025, 0, 0, "any_size: 1025 threads a block; allowed are 1 ... 1024"),
        (1, 1, 0, 0, 0, "any_size: 0 threads a block"),
        (0, 1, 32, 0, 0, "any_size: a grid without blocks"),
        (1, 65536, 32, 0, 0, "any_size: grid y and z end at 65535"),
        (1, 1, 32, 227 * 1024 + 1, 0, "any_size: 232449 bytes of dynamic shared memory; an H100 has 232448"),
        (65, 1, 32, 0, 1, "any_size: 65 blocks in a cooperative launch; the emulator holds up to 64 at once"),
    ],
)
def test_launches_that_no_gpu_takes(library, grid_x, grid_y, threads, smem, cooperative, message):
    error = fault(library, "any_size", x(), grid_x, grid_y, threads, smem, cooperative)
    assert message in str(error) and error.kernel == "any_size" and error.line == 0


def test_the_largest_launches(plain):
    plain.call("any_size", x(), 1, 1, 1024, 227 * 1024, 0)
    plain.call("any_size", x(), 64, 1, 1, 0, 1)
