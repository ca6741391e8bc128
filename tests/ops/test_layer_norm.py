"""layer_norm: accuracy, allowed types, hard numbers, views, determinism, derivatives, what it refuses."""

import pytest
import torch
from accuracy import DTYPES, assert_all_accurate, forward_backward, largest, name_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import normal, spread, turned, unaligned

import minigpt_ext as mg
from minigpt_ext.ops.layer_norm import layer_norm_reference

HALVES = (torch.bfloat16, torch.float16)
PAIRS = [(dtype, dtype) for dtype in DTYPES] + [(half, torch.float32) for half in HALVES]
REFUSED_PAIRS = [(x, w) for x in DTYPES for w in DTYPES if (x, w) not in PAIRS]


def pair_name(pair) -> str:
    return f"{name_of(pair[0])}-{name_of(pair[1])}"


def case(*shape, pair=(torch.float32, torch.float32), device="cpu", bias=True) -> tuple[dict, torch.Tensor]:
    """x, weight, bias (around 1 and 0, as in a model) and an upstream gradient."""
    dtype, weight_dtype = pair
    inputs = {
        "x": normal(*shape, dtype=dtype, device=device),
        "weight": normal(shape[-1], dtype=weight_dtype, device=device) * 0.5 + 1,
    }
    if bias:
        inputs["bias"] = normal(shape[-1], dtype=weight_dtype, device=device)
    return inputs, normal(*shape, dtype=dtype, device=device)


def sizes(x, weight, dy, reference, bias=None, eps=1e-5) -> dict:
    """Each quantity's (stored, added_up) of accuracy.py: csrc/layer_norm/layer_norm.h's formulas with absolute values.
    `known` is what xhat = (x - mean) * rstd is made of before it cancels."""
    C = x.shape[-1]
    x, weight, dy = (t.double().reshape(-1, C) for t in (x, weight, dy))
    mean = x.mean(-1, keepdim=True)
    rstd = 1 / ((x - mean).square().mean(-1, keepdim=True) + eps).sqrt()
    xhat, known = ((x - mean) * rstd).abs(), (x.abs() + mean.abs()) * rstd
    g = (dy * weight).abs()

    def average(t: torch.Tensor) -> torch.Tensor:
        return t.mean(-1, keepdim=True)

    added_up = {
        "out": known * weight.abs() + (0 if bias is None else bias.double().abs()),
        "dx": rstd * (g + average(g) + xhat * average(g * known) + known * average(g * xhat)),
        "dweight": (dy.abs() * known).sum(0),
        "dbias": dy.abs().sum(0),
    }
    return {name: (largest(reference[name]), largest(added_up[name])) for name in reference}


def check(inputs: dict, dy: torch.Tensor, eps: float = 1e-5) -> dict:
    """The accuracy rule for forward and backward, against torch's own LayerNorm in the same dtypes. Returns ours."""
    ours = forward_backward(lambda **t: mg.ops.layer_norm(**t, eps=eps), inputs, dy)
    with mg.backend("torch"):
        torchs = forward_backward(lambda **t: mg.ops.layer_norm(**t, eps=eps), inputs, dy)
    double = {name: t.double() for name, t in inputs.items()}
    reference = forward_backward(lambda **t: layer_norm_reference(**t, eps=eps), double, dy.double())
    assert_all_accurate("layer_norm", ours, torchs, reference, sizes(**inputs, dy=dy, reference=reference, eps=eps))
    return ours


# Vectors are 2 ... 16 lanes; the backward adds up runs of 16 rows, at most 64 of them.
SHAPES = [(1,), (1, 1), (5, 2), (3, 7), (2, 8), (15, 9), (16, 16), (17, 17), (33, 31), (2, 3, 4, 33), (1030, 5)]
SHAPES += [(65, 64), (2, 65), (1, 129), (3, 768), (2, 20000), (0, 8), (3, 0, 8)]


@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accuracy(shape, pair, device):
    check(*case(*shape, pair=pair, device=device))


@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
def test_without_bias(pair, device):
    inputs, dy = case(19, 33, pair=pair, device=device, bias=False)
    check(inputs, dy)
    inputs["bias"] = torch.zeros_like(inputs["weight"])
    assert torch.equal(mg.ops.layer_norm(inputs["x"], inputs["weight"]), mg.ops.layer_norm(**inputs))


@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
@pytest.mark.parametrize("C", [33, 64])
def test_a_mean_far_from_zero(C, pair, device):
    """Mean 1e4 and deviation 1: in one pass, the squares would cancel the variance away."""
    inputs, dy = case(20, C, pair=pair, device=device)
    inputs["x"] += 1e4
    check(inputs, dy)


@pytest.mark.parametrize("C", [5, 33, 64])
def test_large_and_small_values(C, device):
    for factor, eps in ((1e15, 1e-5), (1e-10, 1e-5), (1e-3, 1e-12), (1.0, 1.0)):
        inputs, dy = case(9, C, device=device)
        inputs["x"] *= factor
        check(inputs, dy, eps)


def test_equal_values_in_a_row_give_the_bias(device):
    inputs, _ = case(4, 33, device=device)
    inputs["x"] = torch.full_like(inputs["x"], 0.75)
    assert torch.equal(mg.ops.layer_norm(**inputs), inputs["bias"].expand(4, 33))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("C", [5, 40])
def test_what_is_not_finite_spoils_its_row_alone(value, C, device):
    inputs, dy = case(20, C, device=device)
    inputs["x"][3, C - 1] = value
    results = forward_backward(mg.ops.layer_norm, inputs, dy)
    others = torch.arange(20, device=device) != 3
    for name in ("out", "dx"):
        assert results[name][3].isnan().all() and results[name][others].isfinite().all(), name
    assert results["dweight"].isnan().all() and results["dbias"].isfinite().all()


# ---- tensors that lie in memory in unusual ways ---------------------------------------------------------------------


@pytest.mark.parametrize("layout", [unaligned, spread, turned, lambda t: t.flip(0).flip(0)])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_unaligned_and_strided(layout, dtype, device):
    inputs, dy = case(6, 33, pair=(dtype, dtype), device=device)
    plain = forward_backward(mg.ops.layer_norm, inputs, dy)
    strided = dict(
        inputs, x=layout(inputs["x"]), weight=unaligned(inputs["weight"]), bias=inputs["bias"].repeat(2)[33:]
    )
    strided = forward_backward(mg.ops.layer_norm, strided, layout(dy))
    assert all(torch.equal(plain[name], strided[name]) for name in plain)
    assert strided["out"].is_contiguous()


def test_strided_weight_and_expanded_gradient(device):
    inputs, dy = case(6, 33, device=device)
    inputs["bias"] = torch.full((33,), 0.5, device=device)
    plain = forward_backward(mg.ops.layer_norm, inputs, dy[:1].expand(6, 33).contiguous())
    strided = dict(inputs, weight=spread(inputs["weight"][:, None])[:, 0], bias=inputs["bias"][:1].expand(33))
    strided = forward_backward(mg.ops.layer_norm, strided, dy[:1].expand(6, 33))
    assert all(torch.equal(plain[name], strided[name]) for name in plain)


# ---- equal runs, threads, derivatives -------------------------------------------------------------------------------


def test_thirty_equal_runs_are_equal_bit_for_bit(device):
    inputs, dy = case(300, 65, pair=(torch.bfloat16, torch.float32), device=device)
    runs = [forward_backward(mg.ops.layer_norm, inputs, dy) for _ in range(30)]
    for run in runs[1:]:
        assert all(torch.equal(run[name], runs[0][name]) for name in run)


def test_results_do_not_depend_on_the_number_of_threads(threads):
    inputs, dy = case(2000, 300)
    results = []
    for n in (1, 2, 3):
        threads(n)
        results.append(forward_backward(mg.ops.layer_norm, inputs, dy))
    for other in results[1:]:
        assert all(torch.equal(other[name], results[0][name]) for name in other)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (17, 2)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck(shape, bias):
    inputs, _ = case(*shape, pair=(torch.float64, torch.float64), bias=bias)
    assert torch.autograd.gradcheck(mg.ops.layer_norm, [t.requires_grad_() for t in inputs.values()])


def test_a_second_derivative_is_refused():
    inputs, dy = case(3, 5)
    x = inputs.pop("x").requires_grad_()
    (dx,) = torch.autograd.grad(mg.ops.layer_norm(x, **inputs), x, dy.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


# ---- what is refused ------------------------------------------------------------------------------------------------


def arguments(**changed) -> dict:
    return {"x": normal(3, 8), "weight": normal(8), "bias": normal(8), **changed}


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"x": torch.tensor(1.0)}, "layer_norm: x must be"),
        ({"x": normal(3, 0), "weight": normal(0), "bias": normal(0)}, "layer_norm: x must have at least one"),
        ({"x": torch.ones(3, 8, dtype=torch.int32)}, "layer_norm: x must be float32.*int32"),
        ({"x": normal(3, 8).to("meta")}, "device"),
        ({"weight": normal(7)}, r"layer_norm: weight must be \(C,\) = \(8\), got \(7\)"),
        ({"weight": normal(1, 8)}, "layer_norm: weight must be"),
        ({"weight": normal(8).to("meta")}, "layer_norm: weight is on"),
        ({"weight": torch.ones(8, dtype=torch.int64)}, "layer_norm: weight must be float32"),
        ({"bias": normal(9)}, "layer_norm: bias must be"),
        ({"bias": normal(8).double()}, "layer_norm: bias must be float32"),
        ({"bias": normal(8).to("meta")}, "layer_norm: bias is on"),
        ({"eps": -1e-5}, "layer_norm: eps must not be negative"),
        ({"eps": float("nan")}, "layer_norm: eps"),
    ],
)
def test_wrong_input_is_refused_by_name(changed, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        mg.ops.layer_norm(**arguments(**changed))


@pytest.mark.parametrize("pair", REFUSED_PAIRS, ids=pair_name)
def test_other_pairs_of_types_are_refused(pair, device):
    inputs, _ = case(3, 8, pair=pair, device=device)
    with pytest.raises(RuntimeError, match="layer_norm: weight must have x's dtype"):
        mg.ops.layer_norm(**inputs)


@pytest.mark.parametrize(
    "at, wrong, message",
    [
        (0, normal(3, 7), "layer_norm: dy must be"),
        (0, normal(3, 8).double(), "layer_norm: dy must be float32"),
        (0, normal(3, 8).to("meta"), "layer_norm: dy is on|layer_norm: x is on"),
        (3, normal(4), "layer_norm: mean must be"),
        (3, normal(3).double(), "layer_norm: mean must be float32"),
        (4, normal(3, 1), "layer_norm: rstd must be"),
        (4, normal(6)[::2], "layer_norm: rstd must be contiguous"),
    ],
)
def test_the_backward_op_refuses_by_name(at, wrong, message):
    given = [normal(3, 8), normal(3, 8), normal(8), normal(3), normal(3), True]
    given[at] = wrong
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        torch.ops.minigpt.layer_norm_backward(*given)


@pytest.mark.parametrize(
    "shape, pair, bias",
    [((2, 3, 8), PAIRS[0], True), ((3, 5), PAIRS[4], False), ((0, 8), PAIRS[3], True), ((7,), PAIRS[2], True)],
)
def test_opcheck(shape, pair, bias, device):
    inputs, dy = case(*shape, pair=pair, device=device, bias=bias)
    given = inputs["x"], inputs["weight"], inputs.get("bias"), 1e-5
    _, mean, rstd = torch.ops.minigpt.layer_norm_forward(*given)
    torch.library.opcheck(torch.ops.minigpt.layer_norm_forward.default, given)
    torch.library.opcheck(torch.ops.minigpt.layer_norm_backward.default, (dy, *given[:2], mean, rstd, bias))


def test_opcheck_of_a_view(device):
    x, weight, mean = turned(normal(4, 8, device=device)), normal(8, device=device), normal(4, device=device)
    torch.library.opcheck(torch.ops.minigpt.layer_norm_forward.default, (x, weight, None, 1e-5))
    torch.library.opcheck(torch.ops.minigpt.layer_norm_backward.default, (x, x, weight, mean, mean, True))


# ---- any shape ------------------------------------------------------------------------------------------------------

ANY = {"rows": st.integers(1, 70), "C": st.integers(1, 150), "pair": st.sampled_from(PAIRS), "bias": st.booleans()}


@given(**ANY)
def test_any_shape(rows, C, pair, bias):
    torch.manual_seed(0)
    check(*case(rows, C, pair=pair, bias=bias))


@pytest.mark.slow
@settings(max_examples=2000)
@given(**ANY)
def test_any_shape_at_length(rows, C, pair, bias):
    torch.manual_seed(0)
    check(*case(rows, C, pair=pair, bias=bias))
