"""bias_gelu: accuracy, types, hard numbers, views, determinism, derivatives, what it refuses."""

import pytest
import torch
from accuracy import DTYPES, assert_all_accurate, forward_backward, largest, name_of
from hypothesis import given
from hypothesis import strategies as st
from tensors import normal, spread, turned, unaligned

import minigpt_ext as mg
from minigpt_ext.ops.gelu import bias_gelu_reference

FORMS = ("none", "tanh")
HALVES = (torch.bfloat16, torch.float16)
PAIRS = [(dtype, dtype) for dtype in DTYPES] + [(half, torch.float32) for half in HALVES]


def pair_name(pair) -> str:
    return f"{name_of(pair[0])}-{name_of(pair[1])}"


def case(*shape, pair=PAIRS[0], device="cpu", factor=2.0) -> tuple[dict, torch.Tensor]:
    dtype, bias_dtype = pair
    inputs = {
        "x": normal(*shape, dtype=dtype, device=device, factor=factor),
        "bias": normal(shape[-1], dtype=bias_dtype, device=device),
    }
    return inputs, normal(*shape, dtype=dtype, device=device)


def check(inputs: dict, dy: torch.Tensor, approximate: str) -> dict:
    """The accuracy rule for forward and backward, against torch's addition and GELU in the same dtypes. The slope is
    below 1.2, and dbias adds up as many of them as there are rows. Returns ours."""
    ours = forward_backward(lambda **t: mg.ops.bias_gelu(**t, approximate=approximate), inputs, dy)
    with mg.backend("torch"):
        torchs = forward_backward(lambda **t: mg.ops.bias_gelu(**t, approximate=approximate), inputs, dy)
    double = {name: t.double() for name, t in inputs.items()}
    reference = forward_backward(lambda **t: bias_gelu_reference(**t, approximate=approximate), double, dy.double())
    added_up = {
        "out": largest(inputs["x"]) + largest(inputs["bias"]),
        "dx": 2 * largest(dy),
        "dbias": 2 * largest(dy.double().abs().reshape(-1, dy.shape[-1]).sum(0)),
    }
    sizes = {name: (largest(reference[name]), size) for name, size in added_up.items()}
    assert_all_accurate(f"bias_gelu {approximate}", ours, torchs, reference, sizes)
    return ours


SHAPES = [(1,), (1, 1), (5, 2), (2, 8), (17, 17), (2, 3, 4, 33), (1030, 5), (66, 65), (3, 1536), (0, 8), (3, 0, 8)]


@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accuracy(shape, approximate, pair, device):
    check(*case(*shape, pair=pair, device=device), approximate)


@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("factor", [1e-3, 0.1, 10, 1e4])
def test_every_range(factor, approximate, device):
    check(*case(20, 33, device=device, factor=factor), approximate)


@pytest.mark.parametrize("approximate", FORMS)
def test_infinity_and_nan_spoil_their_column_alone(approximate, device):
    inf, nan = float("inf"), float("nan")
    x = torch.zeros(5, 4, device=device)
    x[2] = torch.tensor([-inf, inf, nan, 0.0])
    inputs = {"x": x, "bias": torch.zeros(4, device=device)}
    results = forward_backward(lambda **t: mg.ops.bias_gelu(**t, approximate=approximate), inputs, torch.ones_like(x))
    torch.testing.assert_close(results["out"][2].cpu(), torch.tensor([0.0, inf, nan, 0.0]), equal_nan=True)
    torch.testing.assert_close(results["dbias"].cpu(), torch.tensor([2.0, 3.0, nan, 2.5]), equal_nan=True)


@pytest.mark.parametrize("layout", [unaligned, spread, turned])
@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
def test_unaligned_and_strided(layout, pair, device):
    inputs, dy = case(5, 33, pair=pair, device=device)
    plain = forward_backward(mg.ops.bias_gelu, inputs, dy)
    views = {"x": layout(inputs["x"]), "bias": unaligned(inputs["bias"])}
    strided = forward_backward(mg.ops.bias_gelu, views, layout(dy))
    assert all(torch.equal(plain[name], strided[name]) for name in plain)
    row = {"x": inputs["x"], "bias": inputs["bias"][:1].expand(33)}
    assert torch.equal(mg.ops.bias_gelu(**row), mg.ops.bias_gelu(row["x"], row["bias"].contiguous()))


def test_runs_and_threads_do_not_change_the_result(threads):
    inputs, dy = case(3000, 65)
    first = forward_backward(mg.ops.bias_gelu, inputs, dy)
    for n in (1, 2, 3) * 3:
        threads(n)
        again = forward_backward(mg.ops.bias_gelu, inputs, dy)
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("approximate", FORMS)
def test_gradcheck(approximate):
    inputs, _ = case(3, 5, pair=PAIRS[3])
    given = [t.requires_grad_() for t in inputs.values()]
    assert torch.autograd.gradcheck(lambda *t: mg.ops.bias_gelu(*t, approximate), given)


def test_a_second_derivative_is_refused():
    x = normal(3, 5).requires_grad_()
    out = mg.ops.bias_gelu(x, normal(5))
    (dx,) = torch.autograd.grad(out, x, torch.ones(3, 5, requires_grad=True), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"approximate": "erf"}, "approximate must be 'none' or 'tanh', got 'erf'"),
        ({"x": torch.tensor(1.0)}, "x must be"),
        ({"x": normal(3, 0), "bias": normal(0)}, "x must have at least one element"),
        ({"x": torch.ones(3, 8, dtype=torch.int64)}, "x must be float32.*int64"),
        ({"bias": normal(7)}, r"bias must be \(C,\) = \(8\), got \(7\)"),
        ({"bias": normal(8).double()}, "bias must have x's dtype.*got x float32, bias float64"),
        ({"bias": normal(8).half()}, "bias must have x's dtype"),
        ({"bias": normal(8).to("meta")}, "bias is on"),
    ],
)
def test_wrong_input_is_refused_by_name(changed, message):
    with pytest.raises((RuntimeError, ValueError), match=f"bias_gelu: {message}"):
        mg.ops.bias_gelu(**{"x": normal(3, 8), "bias": normal(8)} | changed)


@pytest.mark.parametrize(
    "dy, message",
    [
        (normal(3, 7), "dy must be x's shape"),
        (normal(3, 8).double(), "dy must be float32"),
        (normal(3, 8, device="meta"), "is on"),
    ],
)
def test_the_backward_op_refuses_by_name(dy, message):
    with pytest.raises(RuntimeError, match=f"bias_gelu: .*{message}"):
        torch.ops.minigpt.bias_gelu_backward(dy, normal(3, 8), normal(8), False)


@pytest.mark.parametrize(
    "shape, pair", [((2, 3, 8), PAIRS[0]), ((3, 5), PAIRS[4]), ((0, 8), PAIRS[3]), ((7,), PAIRS[2])]
)
@pytest.mark.parametrize("tanh", [False, True])
def test_opcheck(shape, pair, tanh, device):
    inputs, dy = case(*shape, pair=pair, device=device)
    torch.library.opcheck(torch.ops.minigpt.bias_gelu_forward.default, (*inputs.values(), tanh))
    torch.library.opcheck(torch.ops.minigpt.bias_gelu_backward.default, (dy, *inputs.values(), tanh))


def test_opcheck_of_a_view(device):
    x, bias = turned(normal(4, 8, device=device)), normal(8, device=device)
    torch.library.opcheck(torch.ops.minigpt.bias_gelu_forward.default, (x, bias, False))
    torch.library.opcheck(torch.ops.minigpt.bias_gelu_backward.default, (x, x, bias, False))


@given(rows=st.integers(1, 70), C=st.integers(1, 150), pair=st.sampled_from(PAIRS), approximate=st.sampled_from(FORMS))
def test_any_shape(rows, C, pair, approximate):
    torch.manual_seed(0)
    check(*case(rows, C, pair=pair), approximate)
