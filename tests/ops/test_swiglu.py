"""swiglu: accuracy in every range of the gate, hard numbers, views, derivatives, what it refuses."""

import pytest
import torch
from accuracy import DTYPES, assert_all_accurate, forward_backward, largest, name_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import normal, spread, turned, unaligned

import minigpt_ext as mg
from minigpt_ext.ops.swiglu import swiglu_reference


def check(x: torch.Tensor, dy: torch.Tensor) -> dict:
    """The accuracy rule for forward and backward, against torch's silu and product in the same dtype. Returns ours.

    silu(gate) is the gate times a share of 1 at most; its slope is that share and the gate times a bell, below 1.2."""
    ours = forward_backward(mg.ops.swiglu, {"x": x}, dy)
    with mg.backend("torch"):
        torchs = forward_backward(mg.ops.swiglu, {"x": x}, dy)
    reference = forward_backward(swiglu_reference, {"x": x.double()}, dy.double())
    gate, up = x.double().chunk(2, -1)
    added_up = {
        "out": largest(gate * up),
        "dx": max(2 * largest(dy.double() * up), largest(dy.double() * gate)),
    }
    # In float64 torch is the reference and has no error of its own; ours rounds after each of four factors.
    roundings = 4 if x.dtype == torch.float64 else 1
    sizes = {name: (largest(reference[name]), roundings * added_up[name]) for name in reference}
    assert_all_accurate("swiglu", ours, torchs, reference, sizes)
    return ours


def case(*shape, dtype=torch.float32, device="cpu", factor=2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """x (..., 2 F) and dy (..., F) for a shape (..., F)."""
    x = normal(*shape[:-1], 2 * shape[-1], dtype=dtype, device=device, factor=factor)
    return x, normal(*shape, dtype=dtype, device=device)


# Vectors are 2 ... 16 lanes; a task takes 8192 values, which may begin and end within a row.
SHAPES = [(1,), (7,), (1, 1), (3, 4), (2, 8), (5, 9), (2, 3, 17), (4, 33), (0, 4), (2, 0, 3), (3, 5000), (8193, 1)]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accuracy(shape, dtype, device):
    check(*case(*shape, dtype=dtype, device=device))


RANGES = [
    (-1e-3, 1e-3),
    (-0.5, 0.5),
    (-3, -1),
    (1, 3),
    (-15, -6),
    (6, 15),
    (-84, -80),
    (-90, -84),
    (84, 110),
    (-6e4, 6e4),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("low, high", RANGES)
def test_every_range_of_the_gate(low, high, dtype, device):
    """A range at a time, so that large numbers do not widen the limit for small ones."""
    gate = torch.linspace(low, high, 4001, dtype=torch.float64, device=device).to(dtype)
    up, dy = (normal(4001, dtype=dtype, device=device).clamp(-1, 1) for _ in range(2))  # float16 ends at 65504
    check(torch.cat([gate, up]), dy)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_infinity_nan_and_zero(dtype, device):
    inf, nan = float("inf"), float("nan")
    largest_number = torch.finfo(dtype).max
    gate = torch.tensor([-inf, inf, nan, 0.0, -0.0, -largest_number], dtype=dtype, device=device)
    x = torch.cat([gate, torch.full_like(gate, 2.0)])
    results = forward_backward(mg.ops.swiglu, {"x": x}, torch.ones_like(gate))
    expected = torch.tensor([0.0, inf, nan, 0.0, 0.0, 0.0], dtype=dtype, device=device)
    torch.testing.assert_close(results["out"], expected, rtol=0, atol=0, equal_nan=True)
    dgate, dup = results["dx"].chunk(2)
    slope = torch.tensor([0.0, 2.0, nan, 1.0, 1.0, 0.0], dtype=dtype, device=device)
    torch.testing.assert_close(dgate, slope, rtol=1e-6, atol=0, equal_nan=True)
    torch.testing.assert_close(dup, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_spoils_its_own_column_alone(value, device):
    x, dy = case(3, 20, device=device)
    x[1, 5] = value  # a gate
    x[2, 20 + 7] = value  # an up
    results = forward_backward(mg.ops.swiglu, {"x": x}, dy)
    spoilt = results["out"].isfinite().logical_not().nonzero().tolist()
    assert spoilt == [[1, 5], [2, 7]]
    spoilt = results["dx"].isfinite().logical_not().nonzero().tolist()
    assert spoilt == ([[1, 5], [1, 25], [2, 7]] if value != value else [[1, 25], [2, 7]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_every_16_bit_gate(dtype):
    """All 65,536 of them, with up = 1: casts, rounding, subnormals. The share is right to 2e-7, then one rounding."""
    gate = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    out = mg.ops.swiglu(torch.cat([gate, torch.ones_like(gate)])).double()
    reference = torch.nn.functional.silu(gate.double())
    finite, info = gate.isfinite(), torch.finfo(dtype)
    assert torch.equal(out.isnan(), gate.isnan())
    allowed = 0.501 * info.eps * reference.abs() + 2e-7 * gate.double().abs() + info.smallest_normal * info.eps
    assert ((out - reference).abs() <= allowed)[finite].all()


@pytest.mark.parametrize("layout", [unaligned, spread, turned])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_unaligned_and_strided(layout, dtype, device):
    x, dy = case(5, 33, dtype=dtype, device=device)
    plain = forward_backward(mg.ops.swiglu, {"x": x}, dy)
    strided = forward_backward(mg.ops.swiglu, {"x": layout(x)}, layout(dy))
    assert all(torch.equal(plain[name], strided[name]) for name in plain)
    expanded = forward_backward(mg.ops.swiglu, {"x": x}, dy[:1].expand(5, 33))
    assert torch.equal(expanded["dx"], forward_backward(mg.ops.swiglu, {"x": x}, dy[:1].repeat(5, 1))["dx"])


def test_runs_and_threads_do_not_change_the_result(threads):
    x, dy = case(70, 1001)
    first = forward_backward(mg.ops.swiglu, {"x": x}, dy)
    for n in (1, 2, 3) * 10:
        threads(n)
        again = forward_backward(mg.ops.swiglu, {"x": x}, dy)
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_gradcheck():
    x = torch.stack([torch.linspace(-6, 6, 26, dtype=torch.float64), torch.linspace(3, -2, 26, dtype=torch.float64)])
    assert torch.autograd.gradcheck(mg.ops.swiglu, x.requires_grad_())


def test_a_second_derivative_is_refused():
    x = normal(6).requires_grad_()
    (dx,) = torch.autograd.grad(mg.ops.swiglu(x), x, torch.ones(3, requires_grad=True), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mg.ops.swiglu(torch.tensor(1.0)), r"swiglu: x must be \(..., 2 F\)"),
        (lambda: mg.ops.swiglu(normal(2, 5)), r"swiglu: x's last dimension must be even, .* got \(2, 5\)"),
        (lambda: mg.ops.swiglu(normal(2, 0)), "swiglu: x's last dimension must be even, .* at least 2"),
        (lambda: mg.ops.swiglu(torch.ones(4, dtype=torch.int64)), "swiglu: x must be float32.*int64"),
        (
            lambda: torch.ops.minigpt.swiglu_backward(normal(3, 4), normal(3, 4)),
            r"swiglu: dy must be \(..., F\) = \(3, 2",
        ),
        (lambda: torch.ops.minigpt.swiglu_backward(normal(2).double(), normal(4)), "swiglu: dy must be float32"),
        (lambda: torch.ops.minigpt.swiglu_backward(normal(2), normal(4).to("meta")), "swiglu: .* is on"),
        (lambda: torch.ops.minigpt.swiglu_backward(normal(2).to("meta"), normal(4)), "swiglu: .* is on"),
    ],
)
def test_wrong_input_is_refused_by_name(call, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize("shape, dtype", [((2, 3, 4), torch.float32), ((0, 2), torch.float64), ((5,), torch.bfloat16)])
def test_opcheck(shape, dtype, device):
    x, dy = case(*shape, dtype=dtype, device=device)
    torch.library.opcheck(torch.ops.minigpt.swiglu_forward.default, (x,))
    torch.library.opcheck(torch.ops.minigpt.swiglu_backward.default, (dy, x))


def test_opcheck_of_a_view(device):
    x, dy = case(4, 4, device=device)
    torch.library.opcheck(torch.ops.minigpt.swiglu_forward.default, (turned(x),))
    torch.library.opcheck(torch.ops.minigpt.swiglu_backward.default, (turned(dy), turned(x)))


ANY = {"rows": st.integers(1, 70), "F": st.integers(1, 150), "dtype": st.sampled_from(DTYPES)}


@given(**ANY)
def test_any_shape(rows, F, dtype):
    torch.manual_seed(0)
    check(*case(rows, F, dtype=dtype))


@pytest.mark.slow
@settings(max_examples=2000)
@given(**ANY)
def test_any_shape_at_length(rows, F, dtype):
    torch.manual_seed(0)
    check(*case(rows, F, dtype=dtype))
