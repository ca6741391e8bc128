"""gelu: accuracy in every range of x, both forms, hard numbers, views, derivatives, what it refuses."""

import pytest
import torch
from accuracy import DTYPES, assert_all_accurate, forward_backward, largest, name_of
from tensors import normal, spread, turned, unaligned

import minigpt_ext as mg
from minigpt_ext.ops.gelu import gelu_reference

FORMS = ("none", "tanh")


def check(x: torch.Tensor, dy: torch.Tensor, approximate: str) -> dict:
    """The accuracy rule for forward and backward, against torch's own GELU in the same dtype. y is x times a share of 1
    at most; the slope is that share and x times a density, whose product is below 1.2. Returns ours."""
    ours = forward_backward(lambda x: mg.ops.gelu(x, approximate), {"x": x}, dy)
    torchs = forward_backward(lambda x: torch.nn.functional.gelu(x, approximate=approximate), {"x": x}, dy)
    reference = forward_backward(lambda x: gelu_reference(x, approximate), {"x": x.double()}, dy.double())
    sizes = {"out": (largest(reference["out"]), largest(x)), "dx": (largest(reference["dx"]), 2 * largest(dy))}
    assert_all_accurate(f"gelu {approximate}", ours, torchs, reference, sizes)
    return ours


# Vectors are 2 ... 16 lanes; a task takes 16384 elements.
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (3,), (7, 1), (8,), (2, 17), (31,), (33,), (3, 0, 2), (2, 16385)], ids=str
)
def test_accuracy(shape, approximate, dtype, device):
    check(normal(*shape, dtype=dtype, device=device, factor=2), normal(*shape, dtype=dtype, device=device), approximate)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize(
    "low, high",
    [(-1e-3, 1e-3), (-0.5, 0.5), (-3, -1), (1, 3), (-6, -3), (3, 6), (-15, -6), (6, 15), (-100, -15), (-6e4, 6e4)],
)
def test_every_range(low, high, approximate, dtype, device):
    """A range at a time, so that large numbers do not widen the limit for small ones."""
    x = torch.linspace(low, high, 4001, dtype=torch.float64, device=device).to(dtype)
    check(x, normal(4001, dtype=dtype, device=device), approximate)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("approximate", FORMS)
def test_infinity_nan_and_zero(approximate, dtype, device):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([-inf, inf, nan, 0.0, -0.0], dtype=dtype, device=device)
    results = forward_backward(lambda x: mg.ops.gelu(x, approximate), {"x": x}, torch.ones_like(x))
    expected = torch.tensor([0.0, inf, nan, 0.0, 0.0], dtype=dtype, device=device)
    torch.testing.assert_close(results["out"], expected, rtol=0, atol=0, equal_nan=True)
    slope = torch.tensor([0.0, 1.0, nan, 0.5, 0.5], dtype=dtype, device=device)
    torch.testing.assert_close(results["dx"], slope, equal_nan=True)
    upstream = torch.tensor([1.0, inf, nan, inf, 0.0], dtype=dtype, device=device)
    ones = torch.ones_like(x)
    results = forward_backward(lambda x: mg.ops.gelu(x, approximate), {"x": ones}, upstream)
    assert results["dx"].isfinite().tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("approximate", FORMS)
def test_subnormal_numbers_are_halved(approximate, dtype, device):
    tiny, smallest = torch.finfo(dtype).tiny, torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    x = torch.tensor([tiny, tiny / 2, -tiny / 4, smallest * 2, -smallest * 6], dtype=dtype, device=device)
    assert (x != 0).all()
    out = mg.ops.gelu(x, approximate)
    assert ((out.double() - x.double() / 2).abs() <= smallest).all() and (out != 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("approximate", FORMS)
def test_every_16_bit_number(approximate, dtype):
    """All 65,536 of them: casts, rounding, subnormals. Phi is right to 1e-7, and then there is one rounding."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    out, reference = mg.ops.gelu(x, approximate).double(), gelu_reference(x.double(), approximate)
    finite, info = x.isfinite(), torch.finfo(dtype)
    assert torch.equal(out.isnan(), x.isnan())
    allowed = 0.501 * info.eps * reference.abs() + 1e-7 * x.double().abs() + info.smallest_normal * info.eps
    assert ((out - reference).abs() <= allowed)[finite].all()


@pytest.mark.parametrize("layout", [unaligned, spread, turned])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_unaligned_and_strided(layout, dtype, device):
    x, dy = normal(5, 33, dtype=dtype, device=device), normal(5, 33, dtype=dtype, device=device)
    plain = forward_backward(mg.ops.gelu, {"x": x}, dy)
    strided = forward_backward(mg.ops.gelu, {"x": layout(x)}, layout(dy))
    assert all(torch.equal(plain[name], strided[name]) for name in plain)
    expanded = forward_backward(mg.ops.gelu, {"x": x}, dy[:1].expand(5, 33))
    assert torch.equal(expanded["dx"], forward_backward(mg.ops.gelu, {"x": x}, dy[:1].repeat(5, 1))["dx"])


def test_runs_and_threads_do_not_change_the_result(threads):
    x, dy = normal(70000), normal(70000)
    first = forward_backward(mg.ops.gelu, {"x": x}, dy)
    for n in (1, 2, 3) * 10:
        threads(n)
        again = forward_backward(mg.ops.gelu, {"x": x}, dy)
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("approximate", FORMS)
def test_gradcheck(approximate):
    x = torch.linspace(-6, 6, 25, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mg.ops.gelu(x, approximate), x)


def test_a_second_derivative_is_refused():
    x = normal(5).requires_grad_()
    (dx,) = torch.autograd.grad(mg.ops.gelu(x), x, torch.ones(5, requires_grad=True), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mg.ops.gelu(normal(3), "erf"), "gelu: approximate must be 'none' or 'tanh', got 'erf'"),
        (lambda: mg.ops.gelu(normal(3), approximate=None), "gelu: approximate must be"),
        (lambda: mg.ops.gelu(torch.ones(3, dtype=torch.int64)), "gelu: x must be float32.*int64"),
        (lambda: mg.ops.gelu(torch.ones(3, dtype=torch.complex64)), "gelu: x must be float32"),
        (lambda: torch.ops.minigpt.gelu_backward(normal(4), normal(3), False), "gelu backward: dy must be"),
        (
            lambda: torch.ops.minigpt.gelu_backward(normal(3).double(), normal(3), False),
            "gelu backward: dy must be float32",
        ),
        (lambda: torch.ops.minigpt.gelu_backward(normal(3), normal(3).to("meta"), False), "gelu backward: .* is on"),
        (lambda: torch.ops.minigpt.gelu_backward(normal(3).to("meta"), normal(3), False), "gelu backward: .* is on"),
    ],
)
def test_wrong_input_is_refused_by_name(call, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize("shape, dtype", [((2, 3, 8), torch.float32), ((0,), torch.float64), ((), torch.bfloat16)])
@pytest.mark.parametrize("tanh", [False, True])
def test_opcheck(shape, dtype, tanh, device):
    x = normal(*shape, dtype=dtype, device=device)
    torch.library.opcheck(torch.ops.minigpt.gelu_forward.default, (x, tanh))
    torch.library.opcheck(torch.ops.minigpt.gelu_backward.default, (torch.randn_like(x), x, tanh))


def test_opcheck_of_a_view(device):
    x = turned(normal(4, 8, device=device))
    torch.library.opcheck(torch.ops.minigpt.gelu_forward.default, (x, False))
    torch.library.opcheck(torch.ops.minigpt.gelu_backward.default, (x, x, False))
