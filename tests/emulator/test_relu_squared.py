"""relu_squared's CUDA kernels under the emulator."""

import pytest
import torch
from accuracy import DTYPES, forward_backward, name_of
from emulator.schedules import run_on_every_schedule
from ops.test_relu_squared import check
from tensors import normal, spread, turned, unaligned

import minigpt_ext as mg
from minigpt_ext.ops.relu_squared import relu_squared_reference

pytestmark = pytest.mark.usefixtures("built")

# A thread takes 2 (float64), 4 or 8 elements at once; a block 512, 1024 or 2048.
SHAPES = [(), (0,), (1,), (3,), (2, 3, 5), (31,), (32,), (33,), (3, 0, 2), (511,), (513,), (1025,), (2049,)]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_accuracy(dtype):
    for shape in SHAPES:
        run_on_every_schedule(
            f"relu_squared {name_of(dtype)} {shape}",
            lambda shape=shape: check(normal(*shape, dtype=dtype, factor=2), normal(*shape, dtype=dtype)),
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_infinity_nan_and_zero(dtype):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([-inf, inf, nan, 0.0, -0.0, -3.0, 3.0], dtype=dtype)

    def run():
        for upstream in (1.0, 0.0, inf, nan):
            dy = torch.full_like(x, upstream)
            results = forward_backward(mg.ops.relu_squared, {"x": x}, dy)
            torchs = forward_backward(relu_squared_reference, {"x": x}, dy)
            for name in results:
                torch.testing.assert_close(results[name], torchs[name], rtol=0, atol=0, equal_nan=True)
        return results

    run_on_every_schedule(f"relu_squared {name_of(dtype)} not finite", run)


@pytest.mark.parametrize("layout", [unaligned, spread, turned])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_unaligned_and_strided(layout, dtype):
    """Views give the bits of dense tensors. unaligned: contiguous, and handed to the kernel as it lies."""

    def run():
        x, dy = normal(7, 33, dtype=dtype), normal(7, 33, dtype=dtype)
        plain = forward_backward(mg.ops.relu_squared, {"x": x}, dy)
        strided = forward_backward(mg.ops.relu_squared, {"x": layout(x)}, layout(dy))
        assert all(torch.equal(plain[name], strided[name]) for name in plain)
        return check(layout(x), layout(dy))

    run_on_every_schedule(f"relu_squared {name_of(dtype)} {layout.__name__}", run)


@pytest.mark.slow
def test_more_elements_than_a_grid_has_threads():
    """65,536 blocks at most: what lies behind them is taken in a second round."""
    n = 65536 * 512 + 3
    x = torch.zeros(n, dtype=torch.float64)
    ends = torch.cat([torch.arange(5), torch.arange(n - 70, n)])
    x[ends] = torch.linspace(0.5, 3, len(ends), dtype=torch.float64)
    with mg.backend("emulated"):
        out = mg.ops.relu_squared(x)
    torch.testing.assert_close(out[ends], x[ends].square())
    assert out.count_nonzero() == x.count_nonzero()


def test_gradcheck():
    x = torch.linspace(-6, 6, 12, dtype=torch.float64).requires_grad_()
    with mg.backend("emulated"):
        assert torch.autograd.gradcheck(mg.ops.relu_squared, x)
