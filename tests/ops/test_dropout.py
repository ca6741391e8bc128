"""dropout: the mask, exact values, types, views, the residual, derivatives, statistics, what it refuses."""

import pytest
import torch
from accuracy import DTYPES, forward_backward, name_of
from hypothesis import given
from hypothesis import strategies as st
from tensors import normal, spread, turned, unaligned

import minigpt_ext as mg
from minigpt_ext.ops.dropout import dropout_reference
from minigpt_ext.ops.philox import dropout_keep_mask, dropout_threshold, philox

HALVES = (torch.bfloat16, torch.float16)
# The dtypes of x and residual.
PAIRS = [(dtype, dtype) for dtype in DTYPES] + [(half, torch.float32) for half in HALVES]


def pair_name(pair) -> str:
    return f"{name_of(pair[0])}-{name_of(pair[1])}"


def check(shape, pair, p: float, seed: int, residual: bool, device="cpu", layout=lambda t: t) -> dict:
    """out and the gradients are the formula in float64 rounded once: one multiplication in float is off by half a unit
    of float, one addition likewise, and one rounding by half a unit of the result's dtype. Returns ours."""
    dtype, out_dtype = pair if residual else (pair[0], pair[0])
    inputs = {"x": layout(normal(*shape, dtype=dtype, device=device))}
    if residual:
        inputs["residual"] = layout(normal(*shape, dtype=out_dtype, device=device))
    dout = layout(normal(*shape, dtype=out_dtype, device=device))
    ours = forward_backward(lambda **t: mg.ops.dropout(p=p, seed=seed, **t), inputs, dout)
    double = {name: t.double() for name, t in inputs.items()}
    truth = forward_backward(lambda **t: dropout_reference(p=p, seed=seed, **t), double, dout.double())
    assert ours["out"].dtype == out_dtype and ours["dx"].dtype == dtype and ours["out"].is_contiguous()
    sizes = {"out": 0.0, "dx": 0.0, "dresidual": 0.0}
    sizes["out"] = truth["out"].abs() + (inputs["residual"].double().abs() * 2 if residual else 0)
    for name, result in ours.items():
        info, float_eps = torch.finfo(result.dtype), torch.finfo(torch.float32 if dtype != torch.float64 else dtype).eps
        allowed = 0.5001 * info.eps * truth[name].abs() + info.smallest_normal * info.eps
        allowed = allowed + 2 * float_eps * (truth[name].abs() + sizes[name])
        assert ((result.double() - truth[name]).abs() <= allowed).all(), name
        if name == "dx":
            assert torch.equal(result == 0, truth[name] == 0)
    return ours


# Philox serves 4 elements a call, the widest vectors 32; a task takes 16384.
SHAPES = [(), (0,), (1,), (3,), (7, 1), (8,), (31,), (33,), (3, 0, 2), (2, 65), (2, 16387)]


@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape, residual, pair, device):
    check(shape, pair, 0.3, 7, residual, device)


@pytest.mark.parametrize("p, seed", [(0.0, 1), (0.001, 2**63 - 1), (0.5, -1), (0.999, -(2**63)), (1 - 2**-40, 3)])
def test_any_p_and_seed(p, seed, device):
    check((3, 100), PAIRS[0], p, seed, True, device)


def test_the_mask_is_made_of_the_words():
    """Word i % 4 of counter (i // 4, 0, 0, 1), dropped where below p * 2^32."""
    p, seed = 0.4, 12345
    out = mg.ops.dropout(torch.ones(50), p, seed)
    mask = dropout_keep_mask(seed, (50,), p, torch.device("cpu"))
    assert torch.equal(out != 0, mask)
    for i in range(50):
        words = philox(seed, *(torch.tensor([c]) for c in (i // 4, 0, 0, 1)))
        assert mask[i] == (int(words[i % 4]) >= dropout_threshold(p))


def test_every_element_has_a_chance_of_its_own(device):
    """Over 2^22 elements: the share that is dropped, and that neighbours are dropped independently (4 sigma)."""
    n, p = 2**22, 0.2
    kept = (mg.ops.dropout(torch.ones(n, device=device), p, 99) != 0).double()
    sigma = (p * (1 - p) / n) ** 0.5
    assert abs(kept.mean().item() - (1 - p)) < 4 * sigma
    for distance in (1, 2, 4, 8, 64, 1024):
        both = (kept[:-distance] * kept[distance:]).mean().item()
        assert abs(both - (1 - p) ** 2) < 4 * (1 - p) * (2 * sigma)


def test_another_seed_is_another_mask_and_none_is_drawn(device):
    x = torch.ones(1000, device=device)
    assert torch.equal(mg.ops.dropout(x, 0.5, 3), mg.ops.dropout(x, 0.5, torch.tensor([3], device=device)))
    assert not torch.equal(mg.ops.dropout(x, 0.5, 3), mg.ops.dropout(x, 0.5, 4))
    torch.manual_seed(5)
    first, second = mg.ops.dropout(x, 0.5), mg.ops.dropout(x, 0.5)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(mg.ops.dropout(x, 0.5), first)


def test_an_infinite_element_that_is_dropped_leaves_nothing(device):
    x = torch.full((64,), float("inf"), device=device)
    x[1::2] = float("nan")
    out = mg.ops.dropout(x, 0.5, 11, residual=torch.ones(64, device=device))
    mask = dropout_keep_mask(11, (64,), 0.5, torch.device(device))
    assert (out[~mask] == 1).all() and not out[mask].isfinite().any()


@pytest.mark.parametrize("layout", [unaligned, spread, turned])
@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
def test_unaligned_and_strided(layout, pair, device):
    check((5, 33), pair, 0.3, 7, True, device, layout)


def test_runs_and_threads_do_not_change_the_result(threads):
    x, dout = normal(70000), normal(70000)
    first = forward_backward(lambda x: mg.ops.dropout(x, 0.2, 5), {"x": x}, dout)
    for n in (1, 2, 3) * 3:
        threads(n)
        again = forward_backward(lambda x: mg.ops.dropout(x, 0.2, 5), {"x": x}, dout)
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_gradients_can_be_changed_apart(device):
    given = {"x": normal(50, device=device), "residual": normal(50, device=device)}
    dout = normal(50, device=device)
    results = forward_backward(lambda **t: mg.ops.dropout(p=0.0, seed=1, **t), given, dout)
    results["dresidual"].zero_()
    assert results["dx"].abs().sum() > 0 and dout.abs().sum() > 0


@pytest.mark.parametrize("residual", [True, False])
def test_gradcheck(residual):
    given = [normal(3, 7).double().requires_grad_() for _ in range(1 + residual)]
    assert torch.autograd.gradcheck(lambda x, *r: mg.ops.dropout(x, 0.4, 8, *r), given)


def test_a_second_derivative_is_refused():
    x = normal(5).requires_grad_()
    (dx,) = torch.autograd.grad(mg.ops.dropout(x, 0.5, 1), x, torch.ones(5, requires_grad=True), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_torchs_dropout_stands_in(device):
    """With the backend "torch": torch's own mask, or, where a seed is given, this op's."""
    x, residual = normal(300, dtype=torch.bfloat16, device=device), normal(300, device=device)
    for backend in ("kernels", "torch"):
        with mg.backend(dropout=backend):
            torch.testing.assert_close(
                mg.ops.dropout(x, 0.3, 5, residual),
                dropout_reference(x.float(), 0.3, 5, residual),
                rtol=0.02,
                atol=0.02,
            )
            out = mg.ops.dropout(x, 0.3)
            assert out.dtype == x.dtype and 0 < (out == 0).sum() < 200


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"p": 1.0}, r"p must be in \[0, 1\), got 1.0"),
        ({"p": -0.1}, r"p must be in \[0, 1\)"),
        ({"p": float("nan")}, r"p must be in \[0, 1\)"),
        ({"x": torch.ones(8, dtype=torch.int32)}, "x must be float32.*int32"),
        ({"residual": normal(3, 7)}, "residual must be x's shape"),
        ({"residual": normal(3, 8).double()}, "residual must have x's dtype.*got x float32, residual float64"),
        ({"residual": normal(3, 8).half()}, "residual must have x's dtype"),
        ({"residual": normal(3, 8).to("meta")}, "residual is on"),
        ({"seed": torch.tensor([1, 2])}, "seed must have one element"),
        ({"seed": torch.tensor([1.0])}, "seed must be int64"),
        ({"seed": torch.tensor([1], device="meta")}, "seed is on"),
    ],
)
def test_wrong_input_is_refused_by_name(changed, message):
    with pytest.raises((RuntimeError, ValueError), match=f"dropout: {message}"):
        mg.ops.dropout(**{"x": normal(3, 8), "p": 0.5, "seed": 1} | changed)


@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
def test_opcheck(pair, device):
    x, residual = normal(3, 5, dtype=pair[0], device=device), normal(3, 5, dtype=pair[1], device=device)
    seed = torch.tensor([3], device=device)
    for tensors in ((x, residual), (turned(x), None)):
        out_dtype = pair[0] if tensors[1] is None else pair[1]
        torch.library.opcheck(torch.ops.minigpt.dropout.default, (*tensors, 0.5, seed, out_dtype))
    torch.library.opcheck(torch.ops.minigpt.dropout.default, (residual, None, 0.5, seed, pair[0]))


@given(n=st.integers(1, 300), pair=st.sampled_from(PAIRS), p=st.floats(0, 0.99), seed=st.integers(-(2**63), 2**63 - 1))
def test_any_size(n, pair, p, seed):
    torch.manual_seed(0)
    check((n,), pair, p, seed, True)
