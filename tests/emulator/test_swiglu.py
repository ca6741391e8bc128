"""swiglu's CUDA kernels under the emulator."""

import pytest
import torch
from accuracy import DTYPES, forward_backward, name_of
from emulator.schedules import run_on_every_schedule
from ops.test_swiglu import RANGES, case, check
from tensors import normal, spread, turned, unaligned

import minigpt_ext as mg

pytestmark = pytest.mark.usefixtures("built")

# A thread takes 2 (float64), 4 or 8 values at once; a block has a row of 32, 64, ... 256 threads, or of up to 128
# threads several rows; a wider row is several blocks'.
SHAPES = [(1,), (9, 3), (0, 4), (2, 8), (2, 3, 33), (3, 128), (5, 257), (2, 511), (3, 1025), (1, 2049), (2, 2600)]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_accuracy(dtype):
    for shape in SHAPES:
        run_on_every_schedule(f"swiglu {name_of(dtype)} {shape}", lambda shape=shape: check(*case(*shape, dtype=dtype)))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("low, high", RANGES)
def test_every_range_of_the_gate(low, high, dtype):
    """A range at a time, so that large numbers do not widen the limit for small ones."""

    def run():
        gate = torch.linspace(low, high, 601, dtype=torch.float64).to(dtype)
        up, dy = (normal(601, dtype=dtype).clamp(-1, 1) for _ in range(2))
        return check(torch.cat([gate, up]), dy)

    run_on_every_schedule(f"swiglu {name_of(dtype)} {low} ... {high}", run)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_infinity_nan_and_zero(dtype):
    inf, nan = float("inf"), float("nan")
    gate = torch.tensor([-inf, inf, nan, 0.0, -0.0, -torch.finfo(dtype).max], dtype=dtype)

    def run():
        x = torch.cat([gate, torch.full_like(gate, 2.0)])
        results = forward_backward(mg.ops.swiglu, {"x": x}, torch.ones_like(gate))
        expected = torch.tensor([0.0, inf, nan, 0.0, 0.0, 0.0], dtype=dtype)
        torch.testing.assert_close(results["out"], expected, rtol=0, atol=0, equal_nan=True)
        dgate, dup = results["dx"].chunk(2)
        slope = torch.tensor([0.0, 2.0, nan, 1.0, 1.0, 0.0], dtype=dtype)
        torch.testing.assert_close(dgate, slope, rtol=1e-6, atol=0, equal_nan=True)
        torch.testing.assert_close(dup, expected, rtol=0, atol=0, equal_nan=True)
        return results

    run_on_every_schedule(f"swiglu {name_of(dtype)} not finite", run)


@pytest.mark.parametrize("layout", [unaligned, spread, turned])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_unaligned_and_strided(layout, dtype):
    """Views give the bits of dense tensors. unaligned: contiguous, and handed to the kernel as it lies."""

    def run():
        x, dy = case(7, 40, dtype=dtype)
        plain = forward_backward(mg.ops.swiglu, {"x": x}, dy)
        strided = forward_backward(mg.ops.swiglu, {"x": layout(x)}, layout(dy))
        assert all(torch.equal(plain[name], strided[name]) for name in plain)
        return check(layout(x), layout(dy))

    run_on_every_schedule(f"swiglu {name_of(dtype)} {layout.__name__}", run)


def test_gradcheck():
    x = torch.stack([torch.linspace(-6, 6, 14, dtype=torch.float64), torch.linspace(3, -2, 14, dtype=torch.float64)])
    with mg.backend("emulated"):
        assert torch.autograd.gradcheck(mg.ops.swiglu, x.requires_grad_())
