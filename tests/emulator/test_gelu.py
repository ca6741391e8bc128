"""gelu's CUDA kernels under the emulator."""

import pytest
import torch
from accuracy import DTYPES, forward_backward, name_of
from emulator.schedules import run_on_every_schedule
from ops.test_gelu import FORMS, check
from tensors import normal, spread, turned, unaligned

import minigpt_ext as mg

pytestmark = pytest.mark.usefixtures("built")

# A thread takes 2 (float64), 4 or 8 elements at once; a block 512, 1024 or 2048.
SHAPES = [(), (0,), (1,), (3,), (2, 3, 5), (31,), (32,), (33,), (3, 0, 2), (511,), (513,), (1025,), (2049,)]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("approximate", FORMS)
def test_accuracy(approximate, dtype):
    for shape in SHAPES:
        run_on_every_schedule(
            f"gelu {approximate} {name_of(dtype)} {shape}",
            lambda shape=shape: check(normal(*shape, dtype=dtype, factor=2), normal(*shape, dtype=dtype), approximate),
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("low, high", [(-1e-3, 1e-3), (-3, 3), (-15, -3), (3, 15), (-6e4, 6e4)])
def test_every_range(low, high, approximate, dtype):
    """A range at a time, so that large numbers do not widen the limit for small ones."""

    def run():
        x = torch.linspace(low, high, 601, dtype=torch.float64).to(dtype)
        return check(x, normal(601, dtype=dtype), approximate)

    run_on_every_schedule(f"gelu {approximate} {name_of(dtype)} {low} ... {high}", run)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("approximate", FORMS)
def test_infinity_nan_and_zero(approximate, dtype):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([-inf, inf, nan, 0.0, -0.0], dtype=dtype)

    def run():
        results = forward_backward(lambda x: mg.ops.gelu(x, approximate), {"x": x}, torch.ones_like(x))
        expected = torch.tensor([0.0, inf, nan, 0.0, 0.0], dtype=dtype)
        torch.testing.assert_close(results["out"], expected, rtol=0, atol=0, equal_nan=True)
        slope = torch.tensor([0.0, 1.0, nan, 0.5, 0.5], dtype=dtype)
        torch.testing.assert_close(results["dx"], slope, equal_nan=True)
        return results

    run_on_every_schedule(f"gelu {approximate} {name_of(dtype)} not finite", run)


@pytest.mark.parametrize("layout", [unaligned, spread, turned])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_unaligned_and_strided(layout, dtype):
    """Views give the bits of dense tensors. unaligned: contiguous, and handed to the kernel as it lies."""

    def run():
        x, dy = normal(7, 33, dtype=dtype), normal(7, 33, dtype=dtype)
        plain = forward_backward(mg.ops.gelu, {"x": x}, dy)
        strided = forward_backward(mg.ops.gelu, {"x": layout(x)}, layout(dy))
        assert all(torch.equal(plain[name], strided[name]) for name in plain)
        return check(layout(x), layout(dy), "none")

    run_on_every_schedule(f"gelu {name_of(dtype)} {layout.__name__}", run)


@pytest.mark.slow
def test_more_elements_than_a_grid_has_threads():
    """65,536 blocks at most: what lies behind them is taken in a second round."""
    n = 65536 * 512 + 3
    x = torch.zeros(n, dtype=torch.float64)
    ends = torch.cat([torch.arange(5), torch.arange(n - 70, n)])
    x[ends] = torch.linspace(-3, 3, len(ends), dtype=torch.float64)
    with mg.backend("emulated"):
        out = mg.ops.gelu(x)
    torch.testing.assert_close(out[ends], torch.nn.functional.gelu(x[ends]))
    assert out.count_nonzero() == x.count_nonzero()


@pytest.mark.parametrize("approximate", FORMS)
def test_gradcheck(approximate):
    x = torch.linspace(-6, 6, 13, dtype=torch.float64).requires_grad_()
    with mg.backend("emulated"):
        assert torch.autograd.gradcheck(lambda x: mg.ops.gelu(x, approximate), x)
