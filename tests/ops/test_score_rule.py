"""ALiBi and the soft cap in attention and decode_attention: what each does to a score, forward and backward."""

import math

import pytest
import torch
from accuracy import DTYPES, forward_backward, name_of
from attention_cases import RULES, Case, check, rule_options, slopes
from hypothesis import given
from hypothesis import strategies as st
from ops.test_attention import cases
from ops.test_decode_attention import Batch, batches
from paged import write
from tensors import normal, spread, unaligned

import minigpt_ext as mg
from minigpt_ext.ops.attention import attention_reference
from minigpt_ext.ops.score import final_scores

CASES = [
    Case(1, 1, 1, 1, 1, 1),
    Case(1, 1, 130, 6, 2, 16),  # decoding
    Case(2, 65, 65, 3, 1, 17),
    Case(1, 40, 9, 6, 3, 16),  # S < T: the first 31 queries see nothing
    Case(1, 33, 97, 5, 5, 5),
    Case(1, 129, 129, 6, 2, 8, window=5),
    Case(1, 131, 195, 3, 3, 33, window=65),
    Case(3, 70, 70, 12, 12, 64),
    Case(0, 3, 3, 2, 1, 4),
    Case(2, 3, 0, 2, 1, 4),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case, rule, dtype, device):
    inputs, g = case.inputs(dtype, device)
    check(inputs, g, **case.options, **rule_options(rule, case.H, dtype, device))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_softcap_without_a_mask(dtype, device):
    case = Case(1, 33, 65, 4, 2, 17, causal=False)
    inputs, g = case.inputs(dtype, device)
    check(inputs, g, causal=False, softcap=1.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("rule", RULES)
def test_dropout(rule, dtype, device):
    case = Case(1, 70, 100, 6, 2, 17, window=40)
    inputs, g = case.inputs(dtype, device)
    check(inputs, g, **case.options, **rule_options(rule, 6, dtype, device), dropout_p=0.3, seed=11)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(
    "softcap, factor", [(0.1, 1), (1e-4, 1), (50.0, 1), (1e6, 1), (30.0, 32), (1e-30, 1), (1e30, 1)]
)
def test_soft_caps_from_step_to_straight_line(softcap, factor, dtype, device):
    inputs, g = Case(1, 70, 100, 2, 1, 16).inputs(dtype, device)
    inputs["q"] *= factor
    inputs["k"] *= factor
    check(inputs, g, softcap=softcap, alibi_slopes=slopes(2, dtype, device))


# ---- the formula, and other people's ---------------------------------------------------------------------------------


def test_the_reference_is_the_formula():
    """The reference that everything is judged by, itself judged against one that is written out key by key."""
    B, T, S, H, H_kv, D, window, softcap = 2, 4, 6, 6, 2, 3, 3, 0.8
    q, k, v = normal(B, T, H, D).double(), normal(B, S, H_kv, D).double(), normal(B, S, H_kv, D).double()
    alibi = slopes(H, torch.float64)
    expected = torch.empty_like(q)
    for b, i, h in torch.cartesian_prod(torch.arange(B), torch.arange(T), torch.arange(H)).tolist():
        position = i + S - T
        seen = range(max(0, position - window + 1), position + 1)
        raw = [float(q[b, i, h] @ k[b, j, h // 3]) / math.sqrt(D) for j in seen]
        weights = [
            math.exp(softcap * math.tanh(s / softcap) - float(alibi[h]) * (position - j))
            for s, j in zip(raw, seen, strict=True)
        ]
        expected[b, i, h] = sum(w * v[b, j, h // 3] for w, j in zip(weights, seen, strict=True)) / sum(weights)
    options = {"window": window, "alibi_slopes": alibi, "softcap": softcap}
    torch.testing.assert_close(attention_reference(q, k, v, **options), expected)
    torch.testing.assert_close(mg.ops.attention(q, k, v, **options), expected)


def test_softcap_is_gemma_2s(device):
    gemma2 = pytest.importorskip("transformers.models.gemma2.modeling_gemma2")
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    inputs, g = Case(2, 40, 40, 6, 2, 16).inputs(device=device)
    mask = torch.full((40, 40), -math.inf, device=device).triu(1)

    def theirs(q, k, v):
        heads_first = (t.transpose(1, 2) for t in (q, k, v))
        return gemma2.eager_attention_forward(module, *heads_first, mask, scaling=0.3, softcap=1.2)[0]

    expected = forward_backward(theirs, inputs, g)
    ours = forward_backward(lambda **t: mg.ops.attention(**t, scale=0.3, softcap=1.2), inputs, g)
    for name in expected:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-4, atol=1e-5)


def test_alibi_is_a_bias_that_torchs_attention_takes(device):
    inputs, g = Case(2, 40, 70, 6, 6, 16).inputs(device=device)
    alibi = slopes(6, device=device)
    distance = torch.arange(30, 70, device=device)[:, None] - torch.arange(70, device=device)
    bias = (-alibi[:, None, None] * distance).masked_fill(distance < 0, -math.inf)

    def theirs(q, k, v):
        heads_first = (t.transpose(1, 2) for t in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=bias).transpose(1, 2)

    expected = forward_backward(theirs, inputs, g)
    ours = forward_backward(lambda **t: mg.ops.attention(**t, alibi_slopes=alibi), inputs, g)
    for name in expected:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-4, atol=1e-5)


# ---- each part by itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
def test_the_soft_cap_keeps_its_relative_precision(dtype, device):
    """One query and one key of D = 1: the logsumexp is the score. From where tanh is x to where it is 1."""
    softcap = 2.5
    scores = torch.cat([torch.logspace(-20, 3, 5000, dtype=torch.float64), torch.linspace(0.5, 2, 5000).double()])
    q = torch.cat([scores, -scores]).to(dtype).to(device)[:, None, None, None]
    one = torch.ones_like(q)
    _, lse = torch.ops.minigpt.attention_forward(q, one, one, 1.0, True, 0, None, softcap, 0.0, None)
    expected = softcap * torch.tanh(q.double() / softcap)
    error = (lse.double().flatten() - expected.flatten()).abs() / expected.flatten().abs()
    assert error.max() < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("rule", RULES)
def test_the_logsumexp_is_that_of_the_final_scores(rule, device):
    """Absolute distances count here, where softmax would hide a constant."""
    inputs, _ = Case(2, 40, 100, 6, 2, 16).inputs(device=device)
    asked = {"alibi_slopes": None, "softcap": None} | rule_options(rule, 6, device=device)
    _, lse = torch.ops.minigpt.attention_forward(
        *inputs.values(), 0.25, True, 0, asked["alibi_slopes"], asked["softcap"] or 0.0, 0.0, None
    )
    k = inputs["k"].double().repeat_interleave(3, 2)
    scores = torch.einsum("bthd,bshd->bhts", inputs["q"].double(), k) * 0.25
    distance = torch.arange(60, 100, device=device)[:, None] - torch.arange(100, device=device)
    scores = final_scores(scores, distance, **asked).masked_fill(distance < 0, -math.inf)
    torch.testing.assert_close(lse.double(), torch.logsumexp(scores, -1), rtol=1e-5, atol=1e-5)


def test_a_distant_key_has_its_whole_distance(device):
    """Two keys far from the query that are ten apart, the rest far below them in score."""
    batch = Batch([5000], [1], H=1, D=4, device=device)
    batch.q = [torch.full_like(batch.q[0], 10.0)]
    batch.k[0][:] = -10.0
    batch.k[0][[100, 110]] = 10.0
    write(batch.caches[0], batch.table, 0, batch.k[0])
    batch.check(alibi_slopes=torch.tensor([0.01], device=device))


def test_zero_slopes_change_nothing(device):
    inputs, g = Case(1, 70, 100, 3, 1, 16, window=50).inputs(device=device)
    plain = forward_backward(lambda **t: mg.ops.attention(**t, window=50), inputs, g)
    zero = torch.zeros(3, device=device)
    ours = forward_backward(lambda **t: mg.ops.attention(**t, window=50, alibi_slopes=zero), inputs, g)
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-5, atol=1e-6)


def test_each_head_has_its_own_slope(device):
    inputs, _ = Case(1, 40, 40, 4, 2, 16).inputs(device=device)
    alibi = slopes(4, device=device)
    together = mg.ops.attention(**inputs, alibi_slopes=alibi)
    for h in range(4):
        alone = {"q": inputs["q"][:, :, h : h + 1], "k": inputs["k"][:, :, [h // 2]], "v": inputs["v"][:, :, [h // 2]]}
        torch.testing.assert_close(
            mg.ops.attention(**alone, alibi_slopes=alibi[h : h + 1]), together[:, :, h : h + 1], rtol=1e-5, atol=1e-6
        )


def test_views_unaligned_slopes_and_equal_runs(device):
    case = Case(2, 33, 66, 6, 2, 33)
    inputs, g = case.inputs(torch.bfloat16, device)
    rule = rule_options("both", 6, device=device)
    plain = forward_backward(lambda **t: mg.ops.attention(**t, **rule), inputs, g)
    rule["alibi_slopes"] = unaligned(rule["alibi_slopes"])
    views = {name: spread(t) for name, t in inputs.items()}
    for _ in range(10):
        strided = forward_backward(lambda **t: mg.ops.attention(**t, **rule), views, spread(g))
        assert all(torch.equal(plain[name], strided[name]) for name in plain)


@pytest.mark.parametrize("rule", RULES)
def test_nan_is_passed_on(rule, device):
    """To every query that sees it, and to no query before it."""
    inputs, g = Case(1, 70, 70, 2, 1, 16).inputs(device=device)
    inputs["k"][0, 66] = float("nan")
    out = mg.ops.attention(**inputs, **rule_options(rule, 2, device=device))
    assert out[0, 66:].isnan().all() and out[0, :66].isfinite().all()


def test_an_infinite_score_is_capped(device):
    """Its probability and gradient are those of the cap, where they were NaN without one."""
    q = torch.full((1, 1, 1, 1), 1e30, device=device, requires_grad=True)
    k = torch.tensor([1e30, -1e30, 0.0], device=device).view(1, 3, 1, 1)
    v = torch.eye(3, device=device)[:, :1].reshape(1, 3, 1, 1)
    out = mg.ops.attention(q, k, v, scale=1.0, softcap=2.0)
    out.backward(torch.ones_like(out))
    assert out.item() == pytest.approx(math.exp(2) / (math.exp(2) + math.exp(-2) + 1), rel=1e-5)
    assert q.grad.isfinite().all()


@pytest.mark.parametrize(
    "case, options",
    [
        (Case(1, 3, 5, 2, 1, 2), {"window": 2}),
        (Case(1, 4, 2, 2, 2, 2), {"scale": -0.3}),
        (Case(1, 4, 4, 2, 1, 2), {"dropout_p": 0.4, "seed": 5}),
    ],
    ids=str,
)
@pytest.mark.parametrize("rule", RULES)
def test_gradcheck(case, rule, options):
    inputs, _ = case.inputs(torch.float64)
    leaves = [t.requires_grad_() for t in inputs.values()]
    asked = rule_options(rule, case.H, torch.float64)
    assert torch.autograd.gradcheck(lambda q, k, v: mg.ops.attention(q, k, v, **options, **asked), leaves)


# ---- over a paged cache ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("lens, T", [([1], 1), ([5, 64, 0, 129], 1), ([65, 3, 16], 3), ([2, 0, 70], 5), ([1025], 1)])
def test_decode_attention(lens, T, rule, dtype, device):
    batch = Batch(lens, [T] * len(lens), H=6, H_kv=2, D=17, dtype=dtype, device=device)
    batch.check(**rule_options(rule, 6, dtype, device))
    batch.check(**rule_options(rule, 6, dtype, device), window=9)


@pytest.mark.parametrize("rule", RULES)
def test_decode_attention_of_packed_rows(rule, device):
    batch = Batch([70, 2, 600, 1], [70, 1, 2, 0], H=3, H_kv=3, device=device)
    batch.check(ragged=True, **rule_options(rule, 3, device=device))


@pytest.mark.parametrize("rule", RULES)
def test_decode_attention_equals_attention(rule, device):
    batch = Batch([130, 130], [3, 3], H=6, H_kv=2, device=device)
    q, k, v = torch.stack(batch.q), torch.stack(batch.k), torch.stack(batch.v)
    asked = rule_options(rule, 6, device=device)
    for window in (None, 5):
        ours = batch.run(window=window, **asked)
        torch.testing.assert_close(ours, mg.ops.attention(q, k, v, window=window, **asked).flatten(0, 1))


# ---- any shape ------------------------------------------------------------------------------------------------------


@given(case=cases(), dtype=st.sampled_from(DTYPES), rule=st.sampled_from(list(RULES)))
def test_any_shape(case, dtype, rule):
    torch.manual_seed(0)
    inputs, g = case.inputs(dtype)
    check(inputs, g, **case.options, **rule_options(rule if case.causal else "softcap", case.H, dtype))


@given(drawn=batches(), rule=st.sampled_from(list(RULES)))
def test_any_cache(drawn, rule):
    torch.manual_seed(0)
    lens, fresh, shape, window = drawn
    Batch(lens, fresh, **shape).check(ragged=True, window=window, **rule_options(rule, shape["H"], shape["dtype"]))
