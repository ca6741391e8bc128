"""relu_squared: accuracy, hard numbers, views, derivatives, what it refuses."""

import pytest
import torch
from accuracy import DTYPES, assert_all_accurate, forward_backward, largest, name_of
from tensors import normal, spread, turned, unaligned

import minigpt_ext as mg
from minigpt_ext.ops.relu_squared import relu_squared_reference


def check(x: torch.Tensor, dy: torch.Tensor) -> dict:
    """The accuracy rule for forward and backward, against torch's relu and square in the same dtype. Returns ours."""
    ours = forward_backward(mg.ops.relu_squared, {"x": x}, dy)
    with mg.backend("torch"):
        torchs = forward_backward(mg.ops.relu_squared, {"x": x}, dy)
    reference = forward_backward(relu_squared_reference, {"x": x.double()}, dy.double())
    sizes = {name: (largest(reference[name]),) * 2 for name in reference}
    assert_all_accurate("relu_squared", ours, torchs, reference, sizes)
    return ours


# Vectors are 2 ... 16 lanes; a task takes 16384 elements.
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (3,), (7, 1), (8,), (2, 17), (31,), (33,), (3, 0, 2), (2, 16385)], ids=str
)
def test_accuracy(shape, dtype, device):
    check(normal(*shape, dtype=dtype, device=device, factor=2), normal(*shape, dtype=dtype, device=device))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_infinity_nan_and_zero(dtype, device):
    """As torch's relu and square, whose gradient of what is not positive is 0 whatever arrives from above."""
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([-inf, inf, nan, 0.0, -0.0, -3.0, 3.0], dtype=dtype, device=device)
    for upstream in (1.0, -2.0, 0.0, inf, nan):
        dy = torch.full_like(x, upstream)
        ours = forward_backward(mg.ops.relu_squared, {"x": x}, dy)
        torchs = forward_backward(relu_squared_reference, {"x": x}, dy)
        for name in ours:
            torch.testing.assert_close(ours[name], torchs[name], rtol=0, atol=0, equal_nan=True)
    assert ours["out"].tolist()[:2] == [0, inf] and ours["out"][2].isnan()


def test_a_gradient_near_the_largest_number(device):
    """2 x would overflow; 2 x dy does not."""
    x, dy = torch.tensor([3e38], device=device), torch.tensor([1e-30], device=device)
    dx = forward_backward(mg.ops.relu_squared, {"x": x}, dy)["dx"]
    torch.testing.assert_close(dx, torch.tensor([6e8], device=device))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_every_16_bit_number(dtype):
    """All 65,536 of them: one rounding, by torch's own cast."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    expected = relu_squared_reference(x.float()).to(dtype)
    torch.testing.assert_close(mg.ops.relu_squared(x), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", [unaligned, spread, turned])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_unaligned_and_strided(layout, dtype, device):
    x, dy = normal(5, 33, dtype=dtype, device=device), normal(5, 33, dtype=dtype, device=device)
    plain = forward_backward(mg.ops.relu_squared, {"x": x}, dy)
    strided = forward_backward(mg.ops.relu_squared, {"x": layout(x)}, layout(dy))
    assert all(torch.equal(plain[name], strided[name]) for name in plain)
    expanded = forward_backward(mg.ops.relu_squared, {"x": x}, dy[:1].expand(5, 33))
    assert torch.equal(expanded["dx"], forward_backward(mg.ops.relu_squared, {"x": x}, dy[:1].repeat(5, 1))["dx"])


def test_runs_and_threads_do_not_change_the_result(threads):
    x, dy = normal(70000), normal(70000)
    first = forward_backward(mg.ops.relu_squared, {"x": x}, dy)
    for n in (1, 2, 3) * 10:
        threads(n)
        again = forward_backward(mg.ops.relu_squared, {"x": x}, dy)
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_gradcheck():
    x = torch.linspace(-6, 6, 25, dtype=torch.float64)[torch.arange(25) != 12].requires_grad_()
    assert torch.autograd.gradcheck(mg.ops.relu_squared, x)


def test_a_second_derivative_is_refused():
    x = normal(5).requires_grad_()
    (dx,) = torch.autograd.grad(mg.ops.relu_squared(x), x, torch.ones(5, requires_grad=True), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mg.ops.relu_squared(torch.ones(3, dtype=torch.int64)), "relu_squared: x must be float32.*int64"),
        (lambda: mg.ops.relu_squared(torch.ones(3, dtype=torch.complex64)), "relu_squared: x must be float32"),
        (
            lambda: torch.ops.minigpt.relu_squared_backward(normal(4), normal(3)),
            "relu_squared backward: dy must be x's shape",
        ),
        (
            lambda: torch.ops.minigpt.relu_squared_backward(normal(3).double(), normal(3)),
            "relu_squared backward: dy must be float32",
        ),
        (lambda: torch.ops.minigpt.relu_squared_backward(normal(3), normal(3).to("meta")), "backward: .* is on"),
        (lambda: torch.ops.minigpt.relu_squared_backward(normal(3).to("meta"), normal(3)), "backward: .* is on"),
    ],
)
def test_wrong_input_is_refused_by_name(call, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize("shape, dtype", [((2, 3, 8), torch.float32), ((0,), torch.float64), ((), torch.bfloat16)])
def test_opcheck(shape, dtype, device):
    x = normal(*shape, dtype=dtype, device=device)
    torch.library.opcheck(torch.ops.minigpt.relu_squared_forward.default, (x,))
    torch.library.opcheck(torch.ops.minigpt.relu_squared_backward.default, (torch.randn_like(x), x))


def test_opcheck_of_a_view(device):
    x = turned(normal(4, 8, device=device))
    torch.library.opcheck(torch.ops.minigpt.relu_squared_forward.default, (x,))
    torch.library.opcheck(torch.ops.minigpt.relu_squared_backward.default, (x, x))
