"""residual_layer_norm and residual_rms_norm: accuracy, types, views, which gradients come, what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from residual_norm import FUNCTIONS, TYPES, case, check, run, types_name
from tensors import normal, spread, turned, unaligned

import minigpt_ext as mg

pytestmark = pytest.mark.parametrize("norm", FUNCTIONS)
SHAPES = [(1,), (1, 1), (5, 2), (17, 17), (2, 3, 4, 33), (67, 65), (3, 768), (2, 5000), (0, 8), (3, 0, 8)]


@pytest.mark.parametrize("types", TYPES, ids=types_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accuracy(norm, shape, types, device):
    check(norm, *case(norm, *shape, types=types, device=device))


@pytest.mark.parametrize("types", TYPES, ids=types_name)
def test_the_sum_is_used_nowhere_else(norm, types, device):
    """As the last norm of a model: no gradient of s comes."""
    inputs, gradients = case(norm, 19, 33, types=types, device=device, bias=False)
    check(norm, inputs, {"y": gradients["y"]})


@pytest.mark.parametrize("types", TYPES, ids=types_name)
def test_the_sum_alone_is_used(norm, types, device):
    inputs, gradients = case(norm, 19, 33, types=types, device=device)
    results = run(norm, inputs, {"s": gradients["s"]})
    assert torch.equal(results["dresidual"], gradients["s"])
    assert torch.equal(results["dx"], gradients["s"].to(types[0]))
    assert results["dweight"] is None


def test_both_gradients_can_be_changed_apart(norm, device):
    """dx and dresidual come as one tensor where they are equal; a leaf's gradient is its own all the same."""
    inputs, gradients = case(norm, 6, 33, device=device)
    results = run(norm, inputs, gradients)
    assert torch.equal(results["dx"], results["dresidual"])
    before = results["dresidual"].clone()
    results["dx"].zero_()
    assert torch.equal(results["dresidual"], before)


def test_the_gradient_of_x_is_not_changed_by_what_follows_on_the_residual(norm, device):
    """Two blocks: the residual stream's gradient is added to on its way back, what went to x stays."""

    def two_blocks(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y, s = FUNCTIONS[norm](x * 2, residual, weight)
        y, s = FUNCTIONS[norm](y * 3, s, weight)
        return y * s

    given = [normal(4, 7, device=device).double().requires_grad_() for _ in range(2)]
    weight = normal(7, device=device).double().requires_grad_()
    assert torch.autograd.gradcheck(two_blocks, [*given, weight])


def test_a_mean_far_from_zero(norm, device):
    inputs, gradients = case(norm, 20, 33, device=device)
    inputs["residual"] += 1e4
    check(norm, inputs, gradients)


@pytest.mark.parametrize("layout", [unaligned, spread, turned])
@pytest.mark.parametrize("types", TYPES[-4:], ids=types_name)
def test_unaligned_and_strided(norm, layout, types, device):
    inputs, gradients = case(norm, 6, 33, types=types, device=device)
    plain = run(norm, inputs, gradients)
    views = inputs | {name: layout(inputs[name]) for name in ("x", "residual")}
    strided = run(norm, views, {name: layout(t) for name, t in gradients.items()})
    assert all(torch.equal(plain[name], strided[name]) for name in plain)


def test_runs_and_threads_do_not_change_the_result(norm, threads):
    inputs, gradients = case(norm, 2000, 65, types=TYPES[-3])
    first = run(norm, inputs, gradients)
    for n in (1, 2, 3) * 3:
        threads(n)
        again = run(norm, inputs, gradients)
        assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (17, 2)], ids=str)
def test_gradcheck(norm, shape):
    inputs, _ = case(norm, *shape, types=TYPES[3])
    assert torch.autograd.gradcheck(FUNCTIONS[norm], [t.requires_grad_() for t in inputs.values()])


def test_a_second_derivative_is_refused(norm):
    inputs, gradients = case(norm, 3, 5)
    x = inputs.pop("x").requires_grad_()
    y, s = FUNCTIONS[norm](x, **inputs)
    (dx,) = torch.autograd.grad(y, x, gradients["y"].requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"x": torch.tensor(1.0)}, "x must be"),
        ({"x": torch.ones(3, 8, dtype=torch.int32)}, "x must be float32.*int32"),
        ({"residual": normal(3, 7)}, "residual must be x's shape"),
        ({"residual": normal(8)}, "residual must be x's shape"),
        ({"residual": normal(3, 8).double()}, "residual must have x's dtype.*got residual float64, x float32"),
        ({"residual": normal(3, 8).half()}, "residual must have x's dtype"),
        ({"residual": torch.ones(3, 8, dtype=torch.int64)}, "residual must be float32.*int64"),
        ({"residual": normal(3, 8).to("meta")}, "residual is on"),
        ({"weight": normal(7)}, r"weight must be \(C,\) = \(8\), got \(7\)"),
        ({"eps": -1e-5}, "eps must not be negative"),
    ],
)
def test_wrong_input_is_refused_by_name(norm, changed, message):
    given = {"x": normal(3, 8), "residual": normal(3, 8), "weight": normal(8)} | changed
    with pytest.raises((RuntimeError, ValueError, TypeError), match=f"residual_{norm}: {message}"):
        FUNCTIONS[norm](**given)


def test_a_float_residual_needs_float_weights(norm):
    half = normal(3, 8).half()
    with pytest.raises(RuntimeError, match=f"residual_{norm}: residual must have x's dtype"):
        FUNCTIONS[norm](half, half.float(), half[0])


def statistics(norm: str, rows: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [normal(rows, dtype=dtype)] * (2 if norm == "layer_norm" else 1)


@pytest.mark.parametrize(
    "at, wrong, message",
    [
        (0, normal(3, 7), "weight must be"),
        (1, normal(3, 7), "ds must be s's shape"),
        (1, normal(3, 8).double(), "ds must be float32"),
        (1, normal(3, 8).to("meta"), "is on"),
        (2, normal(4, 8), "s must be dy's shape"),
        (2, normal(3, 8).half(), "s must have dy's dtype"),
        (4, normal(4), "(mean|rstd) must be"),
    ],
)
def test_the_backward_op_refuses_by_name(norm, at, wrong, message):
    arguments = [normal(3, 8), normal(3, 8), normal(3, 8), normal(8), *statistics(norm, 3)]
    arguments += [True] if norm == "layer_norm" else []
    arguments[at] = wrong
    with pytest.raises((RuntimeError, ValueError, TypeError), match=f"residual_{norm}: .*{message}"):
        getattr(torch.ops.minigpt, f"residual_{norm}_backward")(*arguments)


@pytest.mark.parametrize(
    "shape, types", [((2, 3, 8), TYPES[0]), ((3, 5), TYPES[5]), ((0, 8), TYPES[3]), ((7,), TYPES[2])]
)
@pytest.mark.parametrize("layout", [unaligned, turned])
def test_opcheck(norm, shape, types, layout, device):
    inputs, gradients = case(norm, *shape, types=types, device=device)
    if len(shape) > 1:
        inputs["residual"] = layout(inputs["residual"])
    bias = [inputs.pop("bias")] if norm == "layer_norm" else []
    given = *inputs.values(), *bias, 1e-5
    forward, backward = (
        getattr(torch.ops.minigpt, f"residual_{norm}_{way}").default for way in ("forward", "backward")
    )
    _, s, *found = forward(*given)
    torch.library.opcheck(forward, given)
    flag = [True] if norm == "layer_norm" else []
    for ds in (gradients["s"], None):
        torch.library.opcheck(backward, (gradients["y"], ds, s, inputs["weight"], *found, *flag))


@given(rows=st.integers(1, 40), C=st.integers(1, 150), types=st.sampled_from(TYPES), bias=st.booleans())
def test_any_shape(norm, rows, C, types, bias):
    torch.manual_seed(0)
    check(norm, *case(norm, rows, C, types=types, bias=bias))


def test_the_backend_is_that_of_the_norm(norm):
    inputs, _ = case(norm, 3, 8)
    inputs["x"].requires_grad_()
    for name, ours in (("kernels", True), ("torch", False)):
        with mg.backend(**{norm: name}):
            y, _ = FUNCTIONS[norm](**inputs)
        assert type(y.grad_fn).__name__.startswith("Residual") == ours
