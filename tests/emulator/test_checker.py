"""The race checker keeps two accesses of a byte: what that must find, and what it must not refuse."""

from pathlib import Path

import pytest
import torch

import minigpt_ext as mg

SOURCE = Path(__file__).parent / "kernels" / "checker.cu"


@pytest.fixture(scope="module", params=["none", "race"])
def kernels(request):
    return mg.emulator.compile(SOURCE, check=request.param)


@pytest.fixture(scope="module")
def checked():
    return mg.emulator.compile(SOURCE, check="race")


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("launcher", "sizes", "said"),
    [
        ("subtract_last", (32,), "byte 124 of a tensor of 128 bytes"),
        ("read_after_atomics", (1, 1), "race on global memory"),
        ("read_after_shared_atomics", (1,), "race on shared memory"),
    ],
)
def test_races(checked, launcher, sizes, said, seed):
    with pytest.raises(mg.emulator.EmulatorError) as error:
        checked.call(launcher, *(torch.ones(n) for n in sizes), seed=seed)
    assert said in str(error.value) and str(error.value).count("checker.cu:") == 2


def test_lanes_that_have_returned_are_not_waited_for(kernels):
    y = torch.full((32,), -1.0)
    kernels.call("lanes_returned", y)
    assert y.tolist() == [float(i + (i ^ 1)) if i < 20 else -1.0 for i in range(32)]


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_thread_that_waits_by_atomics_lets_others_run(kernels, seed):
    count = torch.zeros(1, dtype=torch.int32)
    kernels.call("wait_for_others", count, seed=seed)
    assert count.item() == 31


@pytest.mark.parametrize("blocks", [1, 2, 6, 7])
def test_blocks_come_in_another_order_under_a_seed(kernels, blocks):
    orders = set()
    for seed in range(6):
        order = torch.full((blocks,), -1, dtype=torch.int32)
        kernels.call("ticket", torch.zeros(1, dtype=torch.int32), order, blocks, seed=seed)
        assert sorted(order.tolist()) == list(range(blocks))
        orders.add(tuple(order.tolist()))
        assert seed or order.tolist() == list(range(blocks))
    assert blocks == 1 or len(orders) > 1


def test_an_assertion_ends_the_kernel_alone(kernels):
    kernels.call("assertion", torch.tensor([7], dtype=torch.int32))
    with pytest.raises(mg.emulator.EmulatorError, match=r"assertion failed: y\[0\] == 7") as error:
        kernels.call("assertion", torch.tensor([8], dtype=torch.int32))
    assert error.value.file.endswith("checker.cu") and error.value.line > 0


def test_a_misaligned_vector_names_its_line(kernels):
    with pytest.raises(mg.emulator.EmulatorError, match=r"misaligned load of 16 bytes.*at checker.cu:\d+"):
        kernels.call("misaligned", torch.zeros(4), torch.zeros(8))
