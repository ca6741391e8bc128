"""attention: what it refuses, and that each error names the argument; the schemas by torch's own opcheck."""

import pytest
import torch
from attention_cases import Case, rule_options
from tensors import normal, turned

import minigpt_ext as mg

REFUSED = (RuntimeError, ValueError, TypeError)


def arguments(**changed) -> dict:
    return {"q": normal(2, 5, 4, 8), "k": normal(2, 6, 2, 8), "v": normal(2, 6, 2, 8), **changed}


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"q": normal(2, 5, 32)}, "attention: q must be"),
        ({"q": normal(2, 5, 4, 8, 1)}, "attention: q must be"),
        ({"q": torch.tensor(1.0)}, "attention: q must be"),
        ({"k": normal(6, 2, 8)}, "attention: k must be"),
        ({"v": normal(2, 6, 16)}, "attention: v must be"),
        ({"k": normal(3, 6, 2, 8)}, "attention: k must be"),
        ({"k": normal(2, 6, 2, 9)}, "attention: k must be"),
        ({"v": normal(2, 7, 2, 8)}, "attention: v must be"),
        ({"v": normal(2, 6, 1, 8)}, "attention: v must be"),
        ({"k": normal(2, 6, 3, 8), "v": normal(2, 6, 3, 8)}, "attention: k's heads must divide"),
        ({"k": normal(2, 6, 8, 8), "v": normal(2, 6, 8, 8)}, "attention: k's heads must divide"),
        ({"k": normal(2, 6, 0, 8), "v": normal(2, 6, 0, 8)}, "attention: k's heads must divide"),
        ({"q": normal(2, 5, 0, 8)}, "attention: k's heads must divide"),
        ({name: normal(1, 2, 2, 257) for name in "qkv"}, "attention: q's head dim .*257"),
        ({name: normal(1, 2, 2, 0) for name in "qkv"}, "attention: q's head dim .* 0"),
        ({name: torch.ones(1, 2, 2, 4, dtype=torch.int64) for name in "qkv"}, "attention: q must be float32.*int64"),
        ({"k": normal(2, 6, 2, 8).double()}, "attention: k must be float32, got float64"),
        ({"v": normal(2, 6, 2, 8).bfloat16()}, "attention: v must be float32, got bfloat16"),
        ({"q": turned(normal(2, 5, 4, 8))}, "attention: q must be contiguous in its last dimension"),
        ({"k": turned(normal(2, 6, 2, 8))}, "attention: k must be contiguous in its last dimension"),
        ({"v": normal(2, 6, 2, 1).expand(2, 6, 2, 8)}, "attention: v must be contiguous in its last dimension"),
        ({"q": normal(2, 5, 4, 8).to("meta")}, "device"),
        ({"k": normal(2, 6, 2, 8).to("meta")}, "attention: k is on"),
        ({"v": normal(2, 6, 2, 8).to("meta")}, "attention: v is on"),
        ({"scale": float("nan")}, "attention: scale must be finite"),
        ({"scale": float("inf")}, "attention: scale must be finite"),
        ({"scale": "1"}, "scale"),
        ({"window": 0}, "attention: window must be at least 1"),
        ({"window": -3}, "attention: window must be at least 1"),
        ({"window": 2, "causal": False}, "attention: window .* causal"),
        ({"window": 1.5}, "window"),
        ({"alibi_slopes": normal(2)}, r"attention: alibi_slopes must be \(H,\) = \(4,\) in torch.float32, got \(2,\)"),
        ({"alibi_slopes": normal(4, 1)}, "attention: alibi_slopes must be"),
        ({"alibi_slopes": normal(4).bfloat16()}, "attention: alibi_slopes must be .*bfloat16"),
        ({"alibi_slopes": normal(4).double()}, "attention: alibi_slopes must be .*float64"),
        ({"alibi_slopes": normal(8)[::2]}, "attention: alibi_slopes must be contiguous"),
        ({"alibi_slopes": normal(4).to("meta")}, "attention: alibi_slopes is on"),
        ({"alibi_slopes": normal(4), "causal": False}, "attention: alibi_slopes needs causal=True"),
        ({"alibi_slopes": normal(4).requires_grad_()}, "attention: alibi_slopes requires a gradient"),
        ({"alibi_slopes": [1.0, 2.0, 3.0, 4.0]}, "alibi_slopes"),
        ({"softcap": 0.0}, "attention: softcap must be positive and finite"),
        ({"softcap": -1.0}, "attention: softcap must be positive and finite .* got -1.0"),
        ({"softcap": float("nan")}, "attention: softcap must be positive and finite"),
        ({"softcap": float("inf")}, "attention: softcap must be positive and finite"),
        ({"softcap": 1e-40}, "attention: softcap must be positive and finite .* got 1e-40"),
        ({"softcap": "1"}, "softcap"),
        ({"dropout_p": 1.0}, r"attention: dropout_p must be in \[0, 1\), got 1.0"),
        ({"dropout_p": -0.1}, "attention: dropout_p must be"),
        ({"dropout_p": float("nan")}, "attention: dropout_p must be"),
        ({"dropout_p": 0.5, "seed": torch.tensor([1], dtype=torch.int32)}, "attention: seed must be int64"),
        ({"dropout_p": 0.5, "seed": torch.tensor([1.0])}, "attention: seed must be int64"),
        ({"dropout_p": 0.5, "seed": torch.tensor([1, 2])}, "attention: seed must have one element"),
        ({"dropout_p": 0.5, "seed": torch.tensor([1]).to("meta")}, "attention: seed is on"),
        ({"dropout_p": 0.5, "seed": "1"}, "seed"),
        ({"dropout_p": 0.5, "seed": 1.5}, "seed"),
    ],
)
def test_wrong_input_is_refused_by_name(changed, message):
    with pytest.raises(REFUSED, match=message):
        mg.ops.attention(**arguments(**changed))


@pytest.mark.parametrize("changed", [{"alibi_slopes": normal(1)}, {"softcap": -1.0}])
def test_torchs_backend_refuses_them_too(changed):
    with mg.backend("torch"), pytest.raises(ValueError, match=f"attention: {next(iter(changed))} must be"):
        mg.ops.attention(**arguments(**changed))


def forward_arguments(case: Case, dtype=torch.float32, device="cpu", dropout_p=0.0, rule=None) -> tuple:
    inputs, _ = case.inputs(dtype, device)
    seed = torch.tensor([7], device=device) if dropout_p else None
    asked = rule_options(rule, case.H, dtype, device) if rule else {}
    rule = asked.get("alibi_slopes"), asked.get("softcap", 0.0)
    return *inputs.values(), 0.25, case.causal, case.window or 0, *rule, dropout_p, seed


def backward_arguments(*arguments) -> tuple:
    q, k, v, *rest = arguments
    out, lse = torch.ops.minigpt.attention_forward(*arguments)
    return torch.randn_like(q), q, k, v, out, lse, *rest


@pytest.mark.parametrize(
    "at, wrong, message",
    [
        (0, normal(2, 5, 4, 7), "attention: dout must be"),
        (0, normal(2, 5, 4, 8).double(), "attention: dout must be float32"),
        (0, normal(2, 5, 4, 8).to("meta"), "attention: dout is on"),
        (4, normal(2, 5, 8, 4), "attention: out must be"),
        (4, normal(2, 4, 5, 8).transpose(1, 2), "attention: out must be contiguous"),
        (5, normal(2, 5, 4), "attention: lse must be"),
        (5, normal(2, 4, 5).double(), "attention: lse must be float32"),
        (5, normal(2, 5, 4).transpose(1, 2), "attention: lse must be contiguous"),
        (8, -1, "attention: window must be"),
        (9, normal(3), r"attention: alibi_slopes must be \(H,\) = \(4\), got \(3\)"),
        (9, normal(4).double(), "attention: alibi_slopes must be float32, got float64"),
        (10, -1.0, "attention: softcap must be 1e-30 ... 1e\\+?30, or 0 for none, got -1"),
        (10, float("nan"), "attention: softcap must be"),
        (11, 1.0, "attention: dropout_p must be"),
        (11, 0.5, "attention: dropout needs a seed"),
    ],
)
def test_the_backward_op_refuses_by_name(at, wrong, message):
    given = list(backward_arguments(*forward_arguments(Case(2, 5, 5, 4, 2, 8))))
    given[at] = wrong
    with pytest.raises(REFUSED, match=message):
        torch.ops.minigpt.attention_backward(*given)


SAMPLES = [
    (Case(2, 3, 5, 4, 2, 8), torch.float32, 0.0, None),
    (Case(1, 4, 4, 2, 2, 3, window=2), torch.bfloat16, 0.5, "both"),
    (Case(1, 3, 2, 1, 1, 4, causal=False), torch.float64, 0.1, "softcap"),
    (Case(0, 3, 2, 1, 1, 4), torch.float16, 0.0, None),
    (Case(1, 80, 130, 2, 1, 4), torch.float16, 0.0, "alibi"),
]


@pytest.mark.parametrize("case, dtype, dropout_p, rule", SAMPLES, ids=str)
def test_opcheck(case, dtype, dropout_p, rule, device):
    given = forward_arguments(case, dtype, device, dropout_p, rule)
    torch.library.opcheck(torch.ops.minigpt.attention_forward.default, given)
    torch.library.opcheck(torch.ops.minigpt.attention_backward.default, backward_arguments(*given))


def test_opcheck_of_views():
    q, k, v = normal(2, 5, 3, 2, 8).unbind(2)
    given = q, k, v, 0.25, True, 0, None, 0.0, 0.0, None
    torch.library.opcheck(torch.ops.minigpt.attention_forward.default, given)
    torch.library.opcheck(torch.ops.minigpt.attention_backward.default, backward_arguments(*given))
