"""rms_norm: accuracy, allowed types, hard numbers, views, determinism, derivatives, what it refuses."""

import pytest
import torch
from accuracy import DTYPES, assert_all_accurate, forward_backward, largest, name_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import normal, spread, turned, unaligned

import minigpt_ext as mg
from minigpt_ext.ops.rms_norm import rms_norm_reference

HALVES = (torch.bfloat16, torch.float16)
PAIRS = [(dtype, dtype) for dtype in DTYPES] + [(half, torch.float32) for half in HALVES]
REFUSED_PAIRS = [(x, w) for x in DTYPES for w in DTYPES if (x, w) not in PAIRS]


def pair_name(pair) -> str:
    return f"{name_of(pair[0])}-{name_of(pair[1])}"


def case(*shape, pair=(torch.float32, torch.float32), device="cpu") -> tuple[dict, torch.Tensor]:
    """x, weight (around 1, as in a model) and an upstream gradient."""
    dtype, weight_dtype = pair
    weight = normal(shape[-1], dtype=weight_dtype, device=device) * 0.5 + 1
    x, dy = (normal(*shape, dtype=dtype, device=device) for _ in range(2))
    return {"x": x, "weight": weight}, dy


def sizes(x, weight, dy, reference, eps) -> dict:
    """Each quantity's (stored, added_up) of accuracy.py: csrc/rms_norm/rms_norm.h's formulas with absolute values."""
    x, weight, dy = (t.double().reshape(-1, x.shape[-1]) for t in (x, weight, dy))
    rstd = 1 / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    xhat, g = (x * rstd).abs(), (dy * weight).abs()
    added_up = {
        "out": xhat * weight.abs(),
        "dx": rstd * (g + xhat * (g * xhat).mean(-1, keepdim=True)),
        "dweight": (dy.abs() * xhat).sum(0),
    }
    return {name: (largest(reference[name]), largest(added_up[name])) for name in reference}


def check(inputs: dict, dy: torch.Tensor, eps: float = 1e-6) -> dict:
    """The accuracy rule for forward and backward, against torch's own RMSNorm in the same dtypes. Returns ours."""
    ours = forward_backward(lambda **t: mg.ops.rms_norm(**t, eps=eps), inputs, dy)
    with mg.backend("torch"):
        torchs = forward_backward(lambda **t: mg.ops.rms_norm(**t, eps=eps), inputs, dy)
    double = {name: t.double() for name, t in inputs.items()}
    reference = forward_backward(lambda **t: rms_norm_reference(**t, eps=eps), double, dy.double())
    assert_all_accurate("rms_norm", ours, torchs, reference, sizes(**inputs, dy=dy, reference=reference, eps=eps))
    assert ours["out"].is_contiguous()
    return ours


# Vectors are 2 ... 16 lanes; the backward adds up runs of 16 rows, at most 64 of them.
SHAPES = [(1,), (1, 1), (5, 2), (3, 7), (2, 8), (15, 9), (16, 16), (17, 17), (33, 31), (2, 3, 4, 33), (1030, 5)]
SHAPES += [(65, 64), (2, 65), (1, 129), (3, 768), (2, 20000), (2, 3, 2, 2, 5), (0, 8), (3, 0, 8)]


@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accuracy(shape, pair, device):
    check(*case(*shape, pair=pair, device=device))


@pytest.mark.parametrize("C", [5, 33, 64])
def test_large_and_small_values(C, device):
    for factor, eps in ((1e15, 1e-6), (1e-10, 1e-6), (1e-3, 1e-12), (1.0, 1.0)):
        inputs, dy = case(9, C, device=device)
        inputs["x"] *= factor
        check(inputs, dy, eps)


def test_zeros_stay_zeros(device):
    inputs, dy = case(4, 33, device=device)
    inputs["x"].zero_()
    results = check(inputs, dy)
    assert results["out"].count_nonzero() == 0 and results["dweight"].count_nonzero() == 0
    torch.testing.assert_close(results["dx"], dy * inputs["weight"] * 1e3)


def test_llama_of_transformers(device):
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    inputs, _ = case(5, 40, device=device)
    theirs = llama.LlamaRMSNorm(40, eps=1e-5).to(device)
    theirs.weight.data.copy_(inputs["weight"])
    torch.testing.assert_close(mg.ops.rms_norm(**inputs, eps=1e-5), theirs(inputs["x"]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("C", [5, 40])
def test_what_is_not_finite_spoils_its_row_alone(value, C, device):
    inputs, dy = case(20, C, device=device)
    inputs["x"][3, C - 1] = value
    results = forward_backward(mg.ops.rms_norm, inputs, dy)
    others = torch.arange(20, device=device) != 3
    for name in ("out", "dx"):
        assert results[name][3, C - 1].isnan() and results[name][others].isfinite().all(), name
    assert results["dweight"][C - 1].isnan()


# ---- tensors that lie in memory in unusual ways ---------------------------------------------------------------------


@pytest.mark.parametrize("layout", [unaligned, spread, turned, lambda t: t.flip(0).flip(0)])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_unaligned_and_strided(layout, dtype, device):
    inputs, dy = case(6, 33, pair=(dtype, dtype), device=device)
    plain = forward_backward(mg.ops.rms_norm, inputs, dy)
    strided = dict(inputs, x=layout(inputs["x"]), weight=unaligned(inputs["weight"]))
    strided = forward_backward(mg.ops.rms_norm, strided, layout(dy))
    assert all(torch.equal(plain[name], strided[name]) for name in plain)
    assert strided["out"].is_contiguous()


def packed(t: torch.Tensor) -> torch.Tensor:
    """A part of a packed projection (B, T, 3, H, D), NaN around it."""
    return torch.stack([torch.full_like(t, float("nan")), t, torch.full_like(t, float("nan"))], -3)[..., 1, :, :]


def heads_first(t: torch.Tensor) -> torch.Tensor:
    return t.transpose(1, 2).contiguous().transpose(1, 2)


LAYOUTS = [packed, heads_first, spread, turned, lambda t: packed(heads_first(t))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
@pytest.mark.parametrize("shape", [(2, 5, 3, 8), (3, 4, 2, 33)], ids=str)
def test_heads_of_a_packed_projection(shape, layout, pair, device):
    """QK-norm: over the last dimension of (B, T, H, D) views."""
    inputs, dy = case(*shape, pair=pair, device=device)
    plain = check(inputs, dy)
    strided = check(dict(inputs, x=layout(inputs["x"])), layout(dy))
    assert all(torch.equal(plain[name], strided[name]) for name in plain)


def copies(op, *inputs) -> bool:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        op(*inputs)
    return any(event.key == "aten::copy_" for event in profile.key_averages())


def test_a_packed_projection_is_read_where_it_lies():
    inputs, dy = case(2, 5, 3, 8)
    forward, backward = torch.ops.minigpt.rms_norm_forward, torch.ops.minigpt.rms_norm_backward
    for layout, copied in ((packed, False), (spread, False), (turned, True), (heads_first, True)):
        x, weight = layout(inputs["x"]), inputs["weight"]
        assert copies(forward, x, weight, 1e-6) == copied, layout
        assert copies(backward, dy, x, weight, normal(30)) == copied, layout


@pytest.mark.parametrize("dims", [1, 2, 3, 4, 5])
def test_strides_of_any_number_of_dimensions(dims, device):
    """Every second index of each outer dimension: of more than two, a copy is read."""
    inputs, dy = case(*([3, 2, 4, 2][: dims - 1]), 9, device=device)
    wide = torch.full([2 * n for n in inputs["x"].shape[:-1]] + [9], float("nan"), device=device)
    strided = wide[(slice(None, None, 2),) * (dims - 1)].copy_(inputs["x"])
    plain, other = check(inputs, dy), check(dict(inputs, x=strided), dy)
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_an_expanded_x_and_gradient(device):
    inputs, dy = case(6, 33, device=device)
    plain = forward_backward(
        mg.ops.rms_norm, dict(inputs, x=inputs["x"][:1].repeat(6, 1)), dy[:, :1].repeat(1, 33).contiguous()
    )
    x = inputs["x"][:1].expand(6, 33)
    y, rstd = torch.ops.minigpt.rms_norm_forward(x, inputs["weight"], 1e-6)
    dx, dweight = torch.ops.minigpt.rms_norm_backward(dy[:, :1].expand(6, 33), x, inputs["weight"], rstd)
    for name, ours in (("out", y), ("dx", dx), ("dweight", dweight)):
        assert torch.equal(ours, plain[name]), name


# ---- equal runs, threads, derivatives -------------------------------------------------------------------------------


def test_thirty_equal_runs_are_equal_bit_for_bit(device):
    inputs, dy = case(300, 65, pair=(torch.bfloat16, torch.float32), device=device)
    runs = [forward_backward(mg.ops.rms_norm, inputs, dy) for _ in range(30)]
    for run in runs[1:]:
        assert all(torch.equal(run[name], runs[0][name]) for name in run)


def test_results_do_not_depend_on_the_number_of_threads(threads):
    inputs, dy = case(2000, 300)
    results = []
    for n in (1, 2, 3):
        threads(n)
        results.append(forward_backward(mg.ops.rms_norm, inputs, dy))
    for other in results[1:]:
        assert all(torch.equal(other[name], results[0][name]) for name in other)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (17, 2), (2, 2, 2, 3)], ids=str)
def test_gradcheck(shape):
    inputs, _ = case(*shape, pair=(torch.float64, torch.float64))
    assert torch.autograd.gradcheck(mg.ops.rms_norm, [t.requires_grad_() for t in inputs.values()])


def test_a_second_derivative_is_refused():
    inputs, dy = case(3, 5)
    x = inputs.pop("x").requires_grad_()
    (dx,) = torch.autograd.grad(mg.ops.rms_norm(x, **inputs), x, dy.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"x": torch.tensor(1.0)}, "rms_norm: x must be"),
        ({"x": normal(3, 0), "weight": normal(0)}, "rms_norm: x must have at least one"),
        ({"x": torch.ones(3, 8, dtype=torch.int32)}, "rms_norm: x must be float32.*int32"),
        ({"x": normal(3, 8).to("meta")}, "device"),
        ({"weight": normal(7)}, r"rms_norm: weight must be \(C,\) = \(8\), got \(7\)"),
        ({"weight": normal(1, 8)}, "rms_norm: weight must be"),
        ({"weight": normal(8).to("meta")}, "rms_norm: weight is on"),
        ({"weight": torch.ones(8, dtype=torch.int64)}, "rms_norm: weight must be float32"),
        ({"eps": -1e-6}, "rms_norm: eps must not be negative"),
        ({"eps": float("nan")}, "rms_norm: eps"),
    ],
)
def test_wrong_input_is_refused_by_name(changed, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        mg.ops.rms_norm(**{"x": normal(3, 8), "weight": normal(8), **changed})


@pytest.mark.parametrize("pair", REFUSED_PAIRS, ids=pair_name)
def test_other_pairs_of_types_are_refused(pair, device):
    inputs, _ = case(3, 8, pair=pair, device=device)
    with pytest.raises(RuntimeError, match="rms_norm: weight must have x's dtype"):
        mg.ops.rms_norm(**inputs)


@pytest.mark.parametrize(
    "at, wrong, message",
    [
        (0, normal(3, 7), "rms_norm: dy must be"),
        (0, normal(3, 8).double(), "rms_norm: dy must be float32"),
        (0, normal(3, 8).to("meta"), "rms_norm: dy is on|rms_norm: x is on"),
        (3, normal(4), "rms_norm: rstd must be"),
        (3, normal(3).double(), "rms_norm: rstd must be float32"),
        (3, normal(3, 1), "rms_norm: rstd must be"),
        (3, normal(6)[::2], "rms_norm: rstd must be contiguous"),
    ],
)
def test_the_backward_op_refuses_by_name(at, wrong, message):
    given = [normal(3, 8), normal(3, 8), normal(8), normal(3)]
    given[at] = wrong
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        torch.ops.minigpt.rms_norm_backward(*given)


@pytest.mark.parametrize("layout", [torch.clone, packed], ids=["dense", "packed"])
@pytest.mark.parametrize(
    "shape, pair", [((2, 3, 2, 8), PAIRS[0]), ((3, 5), PAIRS[4]), ((0, 8), PAIRS[3]), ((1, 7), PAIRS[2])]
)
def test_opcheck(shape, pair, layout, device):
    inputs, dy = case(*shape, pair=pair, device=device)
    given = layout(inputs["x"]), inputs["weight"]
    _, rstd = torch.ops.minigpt.rms_norm_forward(*given, 1e-6)
    torch.library.opcheck(torch.ops.minigpt.rms_norm_forward.default, (*given, 1e-6))
    torch.library.opcheck(torch.ops.minigpt.rms_norm_backward.default, (dy, *given, rstd))


# ---- any shape ------------------------------------------------------------------------------------------------------

ANY = {"rows": st.integers(1, 70), "C": st.integers(1, 150), "pair": st.sampled_from(PAIRS)}


@given(**ANY)
def test_any_shape(rows, C, pair):
    torch.manual_seed(0)
    check(*case(rows, C, pair=pair))


@pytest.mark.slow
@settings(max_examples=2000)
@given(**ANY)
def test_any_shape_at_length(rows, C, pair):
    torch.manual_seed(0)
    check(*case(rows, C, pair=pair))
