"""ALiBi and the soft cap in the CUDA kernels of attention and decode_attention, under the emulator."""

import pytest
import torch
from accuracy import DTYPES, name_of
from attention_cases import RULES, Case, check, rule_options, slopes
from emulator.schedules import run_on_every_schedule
from ops.test_decode_attention import Batch

import minigpt_ext as mg
from minigpt_ext.backend import library

pytestmark = pytest.mark.usefixtures("built")

CASES = [
    Case(1, 1, 1, 1, 1, 1),
    Case(1, 1, 130, 6, 2, 16),  # decoding
    Case(1, 70, 20, 3, 1, 16),  # S < T: the first 50 queries see nothing
    Case(1, 33, 65, 3, 3, 5, window=40),
    Case(2, 66, 66, 2, 1, 8, window=2),
    Case(1, 0, 5, 2, 1, 4),
    Case(1, 3, 0, 2, 1, 4),
]


def run(case: Case, rule: str, dtype=torch.float32, **options) -> None:
    def judged() -> dict:
        inputs, g = case.inputs(dtype)
        return check(inputs, g, **case.options, **rule_options(rule, case.H, dtype), **options)

    run_on_every_schedule(f"attention {rule} {name_of(dtype)} {case} {options}", judged)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case, rule):
    run(case, rule)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_head_dims(dtype):
    """Every kernel that is compiled with a rule; two tiles of keys for the widest."""
    for D in (5, 64, 100, 256):
        run(Case(1, 9, 35 if D > 128 else 12, 3, 1, D), "both", dtype)


@pytest.mark.parametrize("rule", RULES)
def test_dropout(rule):
    run(Case(1, 33, 70, 3, 1, 16, window=40), rule, dropout_p=0.3, seed=11)


def test_softcap_without_a_mask():
    run(Case(1, 33, 65, 1, 1, 16, causal=False), "softcap")


@pytest.mark.parametrize("softcap, factor", [(0.1, 1), (30.0, 32), (1e6, 1), (1e-30, 1)])
def test_soft_caps_from_step_to_straight_line(softcap, factor):
    def judged() -> dict:
        inputs, g = Case(1, 9, 70, 2, 1, 16).inputs()
        inputs["q"] *= factor
        inputs["k"] *= factor
        return check(inputs, g, softcap=softcap, alibi_slopes=slopes(2))

    run_on_every_schedule(f"attention softcap {softcap} of {factor}", judged)


@pytest.mark.parametrize("rule", RULES)
def test_nan_is_passed_on(rule):
    """To every query that sees it, and to no query before it."""

    def nan() -> torch.Tensor:
        inputs, _ = Case(1, 70, 70, 2, 1, 16).inputs()
        inputs["k"][0, 66] = float("nan")
        out = mg.ops.attention(**inputs, **rule_options(rule, 2))
        assert out[0, 66:].isnan().all() and out[0, :66].isfinite().all()
        return out

    run_on_every_schedule(f"attention {rule} NaN", nan)


def test_equals_the_cpu_kernels():
    inputs, _ = Case(2, 35, 70, 6, 2, 16).inputs()
    rule = rule_options("both", 6)
    on_cpu = mg.ops.attention(**inputs, **rule)

    def emulated() -> torch.Tensor:
        out = mg.ops.attention(**inputs, **rule)
        torch.testing.assert_close(out, on_cpu)
        return out

    run_on_every_schedule("attention both equals the CPU's", emulated)


@pytest.mark.parametrize("rule", RULES)
def test_gradcheck(rule):
    inputs, _ = Case(1, 3, 5, 2, 1, 2, window=4).inputs(torch.float64)
    leaves = [t.requires_grad_() for t in inputs.values()]
    asked = rule_options(rule, 2, torch.float64)
    with mg.backend("emulated"):
        assert torch.autograd.gradcheck(lambda q, k, v: mg.ops.attention(q, k, v, **asked), leaves)


# ---- over a paged cache ---------------------------------------------------------------------------------------------


def decode(lens: list[int], fresh: list[int], rule: str, *, ragged=False, window=None, H=2, **shape) -> None:
    dtype = shape.get("dtype", torch.float32)
    run_on_every_schedule(
        f"decode_attention {rule} {lens} {fresh} {window} {shape}",
        lambda: Batch(lens, fresh, H=H, **shape).check(ragged=ragged, window=window, **rule_options(rule, H, dtype)),
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("lens, T", [([1], 1), ([5, 64, 0, 129], 1), ([33, 3, 16], 3)], ids=str)
def test_decode_attention(lens, T, rule):
    decode(lens, [T] * len(lens), rule, H=6, H_kv=2)
    decode(lens, [T] * len(lens), rule, H=3, H_kv=1, window=9)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_decode_attentions_head_dims(dtype):
    for D in (5, 64, 100, 256):
        decode([35, 9], [2, 2], "both", D=D, dtype=dtype)


@pytest.mark.parametrize("rule", RULES)
def test_packed_rows_and_splits(rule):
    decode([33, 2, 600, 1], [7, 1, 2, 0], rule, ragged=True, H=3)


def test_the_soft_cap_keeps_its_relative_precision():
    """One query and one key of D = 1: the logsumexp is the score. From where tanh is x to where it is 1."""
    softcap = 2.5
    q = torch.logspace(-20, 3, 40)[:, None, None, None]
    q = torch.cat([q, -q])

    def precise() -> torch.Tensor:
        one = torch.ones_like(q)
        kernels = library("emulated")
        _, lse = kernels.attention_forward(q, one, one, 1.0, True, 0, None, softcap, 0.0, None)
        expected = softcap * torch.tanh(q.double() / softcap).flatten()
        assert ((lse.double().flatten() - expected) / expected).abs().max() < 8 * torch.finfo(torch.float32).eps
        return lse

    run_on_every_schedule("attention softcap precision", precise)
