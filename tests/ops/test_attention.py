"""attention: accuracy, views, determinism, derivatives. Its dropout and what it refuses have files of their own."""

import math

import pytest
import torch
from accuracy import DTYPES, forward_backward, largest, name_of
from attention_cases import Case, check
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import normal, spread, turned, unaligned

import minigpt_ext as mg
from minigpt_ext.ops.attention import attention_reference

# Tiles are 32 queries x 64 keys, vectors 2 ... 16 lanes. With B * H_kv < 16 and S > 64 the backward cuts the keys into
# runs; with B * H >= 64 the forward takes runs of more than one tile of queries.
CASES = [
    Case(1, 1, 1, 1, 1, 1),
    Case(2, 3, 3, 1, 1, 3),
    Case(1, 31, 31, 2, 2, 16),
    Case(1, 33, 33, 2, 1, 33),
    Case(2, 65, 65, 1, 1, 64),
    Case(1, 129, 129, 2, 2, 80),
    Case(1, 70, 70, 1, 1, 128),
    Case(1, 35, 67, 1, 1, 256),
    Case(1, 1, 130, 4, 2, 16),  # decoding
    Case(2, 7, 64, 6, 2, 8),
    Case(1, 33, 97, 3, 1, 5),
    Case(2, 40, 9, 2, 2, 16),  # S < T: the first 31 queries see nothing
    Case(1, 130, 65, 2, 1, 7),
    Case(1, 5, 1, 1, 1, 4),
    Case(1, 33, 65, 2, 2, 16, causal=False),
    Case(1, 65, 31, 2, 1, 17, causal=False),
    Case(1, 40, 40, 1, 1, 16, window=1),
    Case(1, 70, 70, 1, 1, 8, window=2),  # query 64 sees one key of the first tile
    Case(16, 70, 70, 1, 1, 8, window=2),  # the same where the backward's task has both tiles of keys
    Case(2, 200, 200, 8, 8, 5, window=36),
    Case(1, 129, 129, 2, 1, 8, window=5),
    Case(1, 150, 150, 1, 1, 16, window=64),
    Case(1, 131, 195, 1, 1, 3, window=65),
    Case(1, 70, 20, 1, 1, 16, window=7),  # S < T and a window
    Case(1, 20, 20, 1, 1, 16, window=1000),
    Case(4, 150, 150, 16, 16, 3, window=40),
    Case(4, 97, 97, 16, 4, 4),
    Case(1, 530, 600, 2, 1, 5),  # the backward cuts keys and queries
    Case(1, 790, 520, 1, 1, 3, window=100),  # some runs of queries see nothing of some runs of keys
    Case(1, 515, 260, 3, 3, 4, causal=False),
    Case(0, 3, 3, 2, 1, 4),
    Case(2, 0, 5, 2, 1, 4),
    Case(2, 3, 0, 2, 1, 4),
    Case(1, 3, 0, 1, 1, 4, causal=False),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_accuracy(case, dtype, device):
    inputs, g = case.inputs(dtype, device)
    check(inputs, g, **case.options)


def test_the_reference_is_the_formula():
    """The reference that everything is judged by, itself judged against one that is written out key by key."""
    B, T, S, H, H_kv, D, window = 2, 4, 6, 4, 2, 3, 3
    q, k, v = normal(B, T, H, D).double(), normal(B, S, H_kv, D).double(), normal(B, S, H_kv, D).double()
    expected = torch.empty_like(q)
    for b, i, h in torch.cartesian_prod(torch.arange(B), torch.arange(T), torch.arange(H)).tolist():
        seen = range(max(0, i + S - T - window + 1), i + S - T + 1)
        weights = [math.exp(float(q[b, i, h] @ k[b, j, h // 2]) / math.sqrt(D)) for j in seen]
        expected[b, i, h] = sum(w * v[b, j, h // 2] for w, j in zip(weights, seen, strict=True)) / sum(weights)
    torch.testing.assert_close(attention_reference(q, k, v, window=window), expected)
    torch.testing.assert_close(mg.ops.attention(q, k, v, window=window), expected)


def test_queries_that_see_nothing_give_zeros_and_get_no_gradient(device):
    inputs, g = Case(2, 40, 9, 2, 1, 16).inputs(device=device)
    results = forward_backward(mg.ops.attention, inputs, g)
    assert (results["out"][:, :31] == 0).all() and (results["dq"][:, :31] == 0).all()
    assert (results["out"][:, 31:] != 0).any() and all(t.isfinite().all() for t in results.values())


@pytest.mark.parametrize("T, S", [(0, 5), (3, 0)])
def test_no_queries_or_no_keys_give_zero_gradients(T, S, device):
    inputs, g = Case(2, T, S, 2, 1, 4).inputs(device=device)
    results = forward_backward(mg.ops.attention, inputs, g)
    assert all((t == 0).all() for t in results.values())


@pytest.mark.parametrize("scale", [0.0, -0.7, 3.0])
def test_scale(scale, device):
    inputs, g = Case(1, 33, 65, 2, 1, 16).inputs(device=device)
    check(inputs, g, scale=scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_large_scores(dtype, device):
    """Scores up to some +-1e4: e^s itself would be infinite or 0."""
    inputs, g = Case(1, 70, 130, 2, 2, 16).inputs(dtype, device)
    inputs["q"] *= 32
    inputs["k"] *= 32
    highest = largest(torch.einsum("bthd,bshd->bhts", inputs["q"].double(), inputs["k"].double())) / 4
    assert 3e3 < highest < 2e4
    check(inputs, g)


def test_growing_scores_rescale_what_was_summed(device):
    """Each tile of keys holds a new highest score, so that every sum so far is rescaled; and one where none does."""
    for order in (1, -1):
        inputs, g = Case(1, 40, 200, 1, 1, 4).inputs(device=device)
        inputs["k"] = (
            torch.linspace(-3, 3 * order, 200, device=device)[None, :, None, None].expand(1, 200, 1, 4) * order
        )
        inputs["q"] = inputs["q"].abs() + 0.5
        check(inputs, g, causal=False)


# ---- tensors that lie in memory in unusual ways ---------------------------------------------------------------------


def packed(B, T, H, D, dtype, device):
    return normal(B, T, 3, H, D, dtype=dtype, device=device).unbind(2)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_views_of_a_packed_projection(dtype, device):
    q, k, v = packed(2, 70, 3, 17, dtype, device)
    g = spread(normal(2, 70, 3, 17, dtype=dtype, device=device))
    views = forward_backward(mg.ops.attention, {"q": q, "k": k, "v": v}, g)
    copies = forward_backward(
        mg.ops.attention, {"q": q.contiguous(), "k": k.contiguous(), "v": v.contiguous()}, g.contiguous()
    )
    for name in views:
        assert torch.equal(views[name], copies[name]), name


def test_views_are_not_copied():
    q, k, v = (t.requires_grad_() for t in packed(1, 33, 2, 16, torch.float32, "cpu"))
    g = normal(1, 33, 2, 16)
    with torch.profiler.profile() as profile:
        mg.ops.attention(q, k, v).backward(g)
    seen = {event.key for event in profile.key_averages()}
    assert "minigpt::attention_forward" in seen and "minigpt::attention_backward" in seen
    assert not seen & {"aten::contiguous", "aten::clone", "aten::copy_"}, seen


@pytest.mark.parametrize("layout", [unaligned, spread])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_unaligned_and_strided(layout, dtype, device):
    inputs, g = Case(2, 33, 66, 4, 2, 33).inputs(dtype, device)
    plain = forward_backward(mg.ops.attention, inputs, g)
    strided = forward_backward(mg.ops.attention, {name: layout(t) for name, t in inputs.items()}, layout(g))
    for name in plain:
        assert torch.equal(plain[name], strided[name]), name


def test_every_tensor_with_strides_of_its_own(device):
    """(B, H, T, D) in memory; keys that one batch entry lends to all; gaps between rows; a packed view."""
    given = {
        "q": normal(3, 4, 33, 16, device=device).transpose(1, 2),
        "k": normal(1, 70, 2, 16, device=device).expand(3, 70, 2, 16),
        "v": spread(normal(3, 70, 2, 16, device=device)),
    }
    g = normal(3, 33, 2, 4, 16, device=device)[:, :, 1]
    strided = forward_backward(mg.ops.attention, given, g)
    plain = forward_backward(mg.ops.attention, {name: t.contiguous() for name, t in given.items()}, g.contiguous())
    for name in plain:
        assert torch.equal(plain[name], strided[name]), name


def test_expanded_and_transposed_upstream_gradients(device):
    inputs, g = Case(2, 33, 33, 2, 1, 16).inputs(device=device)
    one = normal(1, device=device)
    for upstream in (
        turned(g),
        g.transpose(1, 2).contiguous().transpose(1, 2),
        g[:1, :1].expand_as(g),
        one.expand(g.shape),
    ):
        ours = forward_backward(mg.ops.attention, inputs, upstream)
        plain = forward_backward(mg.ops.attention, inputs, upstream.contiguous())
        assert all(torch.equal(ours[name], plain[name]) for name in plain)


# ---- what comes out for what is not finite --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("argument", ["q", "k", "v"])
def test_nan_is_passed_on(argument, dtype, device):
    """To every query that sees it, as a loss must show it; and to no query before it in q and k."""
    inputs, _ = Case(1, 70, 70, 1, 1, 16).inputs(dtype, device)
    inputs[argument][0, 66] = float("nan")
    out = mg.ops.attention(**inputs)
    assert out[0, 66].isnan().all()
    if argument != "q":
        assert out[0, 67:].isnan().all()
    if argument != "v":  # a weight of zero times NaN is NaN, as in torch
        assert out[0, :66].isfinite().all()


def test_nan_with_a_payload_is_passed_on(device):
    inputs, _ = Case(1, 3, 3, 1, 1, 4).inputs(device=device)
    inputs["k"][0, 1] = torch.tensor(0x7FC00001, dtype=torch.int32).view(torch.float32)
    assert mg.ops.attention(**inputs)[0, 1:].isnan().all()


# ---- equal runs, and threads ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [Case(2, 100, 200, 2, 1, 16), Case(4, 70, 70, 8, 8, 8, window=20)], ids=str)
def test_thirty_equal_runs_are_equal_bit_for_bit(case, device):
    inputs, g = case.inputs(torch.bfloat16, device)
    runs = [
        forward_backward(lambda **t: mg.ops.attention(**t, dropout_p=0.2, seed=3, **case.options), inputs, g)
        for _ in range(30)
    ]
    for run in runs[1:]:
        assert all(torch.equal(run[name], runs[0][name]) for name in run)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize(
    "case",
    [
        Case(1, 200, 300, 2, 1, 16),
        Case(4, 150, 150, 16, 16, 3),
        Case(1, 600, 600, 1, 1, 33),
        Case(1, 289, 289, 2, 1, 16),  # a last block of one query
        Case(1, 333, 470, 1, 1, 64, window=130),
        Case(1, 300, 200, 3, 3, 16),
    ],
    ids=str,
)
def test_results_do_not_depend_on_the_number_of_threads(case, dtype, threads):
    inputs, g = case.inputs(dtype)
    results = []
    for n in (1, 2, 7):
        threads(n)
        results.append(
            forward_backward(lambda **t: mg.ops.attention(**t, dropout_p=0.1, seed=2, **case.options), inputs, g)
        )
    for other in results[1:]:
        assert all(torch.equal(other[name], results[0][name]) for name in other)


def test_a_query_does_not_depend_on_those_behind_it():
    """Bit for bit, whatever tile or run it falls into; only in a block of up to four are scores added up otherwise."""
    inputs, _ = Case(1, 300, 300, 2, 2, 24).inputs()
    whole = mg.ops.attention(**inputs)
    for T in (1, 2, 5, 34, 36, 37, 64, 100, 258, 261):
        part = mg.ops.attention(**{name: t[:, :T].contiguous() for name, t in inputs.items()})
        sure = T - T % 32 if T % 32 <= 4 else T
        assert torch.equal(part[:, :sure], whole[:, :sure]), T
        torch.testing.assert_close(part[:, sure:], whole[:, sure:T], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("D", [1, 2, 15, 31, 33, 47, 63, 65, 127, 129, 255])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_awkward_head_dims(D, dtype, device):
    """Pairs of bf16 and whole vectors end elsewhere than D does; numbers of queries and keys are odd."""
    case = Case(1, 67, 131, 2, 1, D)
    inputs, g = case.inputs(dtype, device)
    check(inputs, g)
    check(inputs, g, dropout_p=0.2, seed=8)


@pytest.mark.parametrize("scale", [0.0, -0.7, 3.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name_of)
def test_scale_in_16_bits(scale, dtype, device):
    inputs, g = Case(1, 70, 131, 2, 1, 17).inputs(dtype, device)
    check(inputs, g, scale=scale)
    check(inputs, g, scale=scale, causal=False, softcap=2.0)


# ---- derivatives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case, options",
    [
        (Case(1, 3, 3, 1, 1, 3), {}),
        (Case(1, 3, 5, 2, 1, 2), {"window": 2}),
        (Case(1, 4, 2, 2, 2, 2), {"scale": 0.3}),
        (Case(1, 3, 4, 2, 1, 3), {"causal": False}),
        (Case(1, 4, 4, 2, 1, 2), {"dropout_p": 0.4, "seed": 5}),
    ],
    ids=str,
)
def test_gradcheck(case, options):
    inputs, _ = case.inputs(torch.float64)
    leaves = [t.requires_grad_() for t in inputs.values()]
    assert torch.autograd.gradcheck(lambda q, k, v: mg.ops.attention(q, k, v, **options), leaves)


def test_a_second_derivative_is_refused():
    inputs, g = Case(1, 3, 3, 1, 1, 2).inputs(torch.float64)
    q = inputs.pop("q").requires_grad_()
    (dq,) = torch.autograd.grad(mg.ops.attention(q, **inputs), q, g.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


def test_only_the_gradients_asked_for():
    inputs, g = Case(1, 5, 5, 1, 1, 4).inputs()
    q = inputs["q"].requires_grad_()
    mg.ops.attention(**inputs).backward(g)
    assert q.grad is not None and inputs["k"].grad is None


# ---- any shape ------------------------------------------------------------------------------------------------------


@st.composite
def cases(draw) -> Case:
    H_kv, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    causal = draw(st.booleans())
    return Case(
        B=draw(st.integers(1, 3)),
        T=draw(st.integers(1, 80)),
        S=draw(st.integers(1, 140)),
        H=H_kv * group,
        H_kv=H_kv,
        D=draw(st.integers(1, 40)),
        causal=causal,
        window=draw(st.none() | st.integers(1, 150)) if causal else None,
    )


@given(case=cases(), dtype=st.sampled_from(DTYPES))
def test_any_shape(case, dtype):
    torch.manual_seed(0)
    inputs, g = case.inputs(dtype)
    check(inputs, g, **case.options)


@pytest.mark.slow
@settings(max_examples=1000)
@given(case=cases(), dtype=st.sampled_from(DTYPES))
def test_any_shape_at_length(case, dtype):
    torch.manual_seed(0)
    inputs, g = case.inputs(dtype)
    check(inputs, g, **case.options)


@pytest.mark.parametrize("window", [2**62, 2**63 - 1])
def test_a_window_beyond_all_keys_bounds_nothing(window, device):
    q, k, v, dout = (torch.randn(1, 70, 2, 8, device=device, requires_grad=True) for _ in range(4))
    free, bounded = (mg.ops.attention(q, k, v, window=w) for w in (None, window))
    assert torch.equal(free, bounded)
    for ours, wanted in zip(*(torch.autograd.grad(out, (q, k, v), dout) for out in (bounded, free)), strict=True):
        assert torch.equal(ours, wanted)
