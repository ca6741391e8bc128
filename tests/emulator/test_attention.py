"""attention's CUDA kernels under the emulator."""

import pytest
import torch
from accuracy import DTYPES, forward_backward, name_of
from attention_cases import Case, check
from emulator.schedules import run_on_every_schedule
from ops.test_attention_dropout import SEEDS, mask_of
from tensors import normal, spread, turned, unaligned

import minigpt_ext as mg
from minigpt_ext.ops.philox import attention_keep_mask

pytestmark = pytest.mark.usefixtures("built")

# Tiles are R queries x R keys. Compiled head dims 32, 64, 128, 256 have R = 64, 64, 64, 32 in the forward and 64, 64,
# 32, 16 in the backward; for float64, 64 and 256 have 32, 16 and 32, 8.
HEAD_DIMS = [1, 32, 33, 64, 65, 128, 129, 256]

CASES = [
    Case(1, 1, 1, 1, 1, 1),
    Case(2, 31, 32, 2, 1, 8),
    Case(1, 33, 63, 1, 1, 17),
    Case(1, 64, 64, 1, 1, 4),
    Case(1, 65, 65, 1, 1, 16),
    Case(1, 1, 130, 2, 1, 16),  # decoding
    Case(1, 3, 65, 4, 2, 5),
    Case(1, 70, 20, 1, 1, 16),  # S < T: the first 50 queries see nothing
    Case(1, 33, 65, 1, 1, 16, causal=False),
    Case(1, 65, 31, 1, 1, 17, causal=False),
    Case(1, 33, 33, 1, 1, 16, window=1),
    Case(1, 66, 66, 1, 1, 8, window=2),  # query 64 sees one key of the first tile
    Case(1, 70, 140, 1, 1, 3, window=5),
    Case(1, 70, 135, 1, 1, 3, window=64),
    Case(1, 66, 131, 1, 1, 3, window=65),
    Case(1, 140, 140, 1, 1, 3, window=66),
    Case(1, 70, 20, 1, 1, 16, window=7),
    Case(1, 20, 20, 1, 1, 16, window=1000),
    Case(1, 33, 33, 1, 1, 128),
    Case(1, 33, 40, 1, 1, 256, window=20),
    Case(0, 3, 3, 2, 1, 4),
    Case(2, 0, 5, 2, 1, 4),
    Case(2, 3, 0, 2, 1, 4),
    Case(1, 3, 0, 1, 1, 4, causal=False),
]
HALF_CASES = [CASES[i] for i in (0, 4, 7)]
DOUBLE_CASES = [Case(1, 1, 1, 1, 1, 1), Case(1, 33, 33, 2, 1, 8), Case(1, 34, 40, 1, 1, 8, window=3)]
DOUBLE_CASES += [Case(1, 9, 17, 1, 1, 256), Case(1, 33, 10, 1, 1, 5), Case(1, 3, 34, 1, 1, 8, causal=False)]


def run(case: Case, dtype: torch.dtype, **options) -> dict:
    inputs, g = case.inputs(dtype)
    return check(inputs, g, **case.options, **options)


@pytest.mark.parametrize(
    "dtype, case",
    [(torch.float32, case) for case in CASES]
    + [(half, case) for half in (torch.bfloat16, torch.float16) for case in HALF_CASES]
    + [(torch.float64, case) for case in DOUBLE_CASES],
    ids=lambda v: name_of(v) if isinstance(v, torch.dtype) else str(v),
)
def test_accuracy(case, dtype):
    run_on_every_schedule(f"attention {name_of(dtype)} {case}", lambda: run(case, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_head_dims(dtype):
    """Every compiled kernel, full and with a rest; two tiles of keys for the widest."""
    for D in HEAD_DIMS:
        case = Case(1, 9, 35 if D > 128 else 12, 1, 1, D)
        run_on_every_schedule(f"attention {name_of(dtype)} {case}", lambda case=case: run(case, dtype))


@pytest.mark.parametrize("scale", [0.0, -0.7, 3.0])
def test_scale(scale):
    run_on_every_schedule(f"attention scale {scale}", lambda: run(Case(1, 5, 9, 2, 1, 16), torch.float32, scale=scale))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_large_scores(dtype):
    """Scores up to some +-1e4: e^s itself would be infinite or 0."""

    def large():
        inputs, g = Case(1, 7, 70, 1, 1, 16).inputs(dtype)
        inputs["q"] *= 32
        inputs["k"] *= 32
        return check(inputs, g)

    run_on_every_schedule(f"attention {name_of(dtype)} large scores", large)


def test_scores_far_below_zero():
    """The highest of them is the one that counts."""

    def low():
        inputs, g = Case(1, 5, 70, 1, 1, 16).inputs()
        inputs["q"] = torch.full_like(inputs["q"], 20.0)
        inputs["k"] = inputs["k"] / 100 - 2
        return check(inputs, g)

    run_on_every_schedule("attention scores far below zero", low)


def test_growing_scores_rescale_what_was_summed():
    """Each tile of keys holds a new highest score, so that every sum so far is rescaled; and one where none does."""
    for order in (1, -1):

        def growing(order=order):
            inputs, g = Case(1, 5, 130, 1, 1, 4).inputs()
            inputs["k"] = (torch.linspace(-3, 3, 130) * order)[None, :, None, None].repeat(1, 1, 1, 4)
            inputs["q"] = inputs["q"].abs() + 0.5
            return check(inputs, g, causal=False)

        run_on_every_schedule(f"attention growing scores {order}", growing)


# ---- dropout --------------------------------------------------------------------------------------------------------

DROPOUT_CASES = [Case(2, 33, 33, 2, 1, 16), Case(1, 3, 66, 2, 1, 5, causal=False), Case(1, 66, 70, 1, 1, 8, window=9)]


@pytest.mark.parametrize("case", DROPOUT_CASES, ids=str)
def test_dropout(case):
    run_on_every_schedule(
        f"attention float32 dropout {case}", lambda: run(case, torch.float32, dropout_p=0.3, seed=2**40 + 11)
    )


@pytest.mark.parametrize("dtype, D", [(torch.float32, D) for D in (5, 40, 100, 200)] + [(torch.float64, 5)], ids=str)
def test_dropout_of_every_tiling(dtype, D):
    case = Case(1, 9, 18, 1, 1, D)
    run_on_every_schedule(f"attention {name_of(dtype)} dropout {case}", lambda: run(case, dtype, dropout_p=0.5, seed=3))


def test_the_mask_is_the_cpu_kernels_and_philox():
    for seed in SEEDS:
        on_cpu = mask_of(seed, 1, 2, 5, 37, 0.3)

        def mask(seed=seed, on_cpu=on_cpu):
            emulated = mask_of(seed, 1, 2, 5, 37, 0.3)
            assert torch.equal(emulated, on_cpu) and 0.5 < emulated.float().mean() < 0.9
            assert torch.equal(emulated, attention_keep_mask(seed, 1, 2, 5, 37, 0.3, torch.device("cpu")))
            return emulated

        run_on_every_schedule(f"attention mask {seed}", mask)


# ---- tensors that lie in memory in unusual ways ---------------------------------------------------------------------


def equal_to_copies(inputs: dict, g: torch.Tensor) -> dict:
    views = forward_backward(mg.ops.attention, inputs, g)
    dense = {name: t.contiguous() for name, t in inputs.items()}
    with mg.backend("emulated", check="none", seed=0):
        copies = forward_backward(mg.ops.attention, dense, g.contiguous())
    for name in views:
        assert torch.equal(views[name], copies[name]), f"{name} differs from that of contiguous tensors"
    return views


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("D", [16, 17])
def test_views_of_a_packed_projection(D, dtype):
    def views():
        q, k, v = normal(2, 9, 3, 1, D, dtype=dtype).unbind(2)
        return equal_to_copies({"q": q, "k": k, "v": v}, spread(normal(2, 9, 1, D, dtype=dtype)))

    run_on_every_schedule(f"attention {name_of(dtype)} packed {D}", views)


@pytest.mark.parametrize("layout", [unaligned, spread])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_unaligned_and_strided(layout, dtype):
    def views():
        inputs, g = Case(2, 9, 13, 1, 1, 16).inputs(dtype)
        return equal_to_copies({name: layout(t) for name, t in inputs.items()}, layout(g))

    run_on_every_schedule(f"attention {name_of(dtype)} {layout.__name__}", views)


def test_every_tensor_with_strides_of_its_own():
    """(B, H, T, D) in memory; keys that one batch entry lends to all; gaps between rows; and four kinds of gradient."""
    gradients = {
        "packed": lambda: normal(2, 5, 2, 2, 16)[:, :, 1],
        "turned": lambda: turned(normal(2, 5, 2, 16)),
        "heads first": lambda: normal(2, 2, 5, 16).transpose(1, 2),
        "expanded": lambda: normal(1).expand(2, 5, 2, 16),
    }
    for name, gradient in gradients.items():

        def views(gradient=gradient):
            given = {
                "q": normal(2, 2, 5, 16).transpose(1, 2),
                "k": normal(1, 9, 1, 16).expand(2, 9, 1, 16),
                "v": spread(normal(2, 9, 1, 16)),
            }
            return equal_to_copies(given, gradient())

        run_on_every_schedule(f"attention strides {name}", views)


# ---- the rest -------------------------------------------------------------------------------------------------------


def test_queries_that_see_nothing_give_zeros_and_get_no_gradient():
    def nothing():
        inputs, g = Case(1, 40, 9, 1, 1, 16).inputs()
        results = forward_backward(mg.ops.attention, inputs, g)
        assert (results["out"][:, :31] == 0).all() and (results["dq"][:, :31] == 0).all()
        assert (results["out"][:, 31:] != 0).any() and all(t.isfinite().all() for t in results.values())
        return results

    run_on_every_schedule("attention nothing seen", nothing)


@pytest.mark.parametrize("argument", ["q", "k", "v"])
def test_nan_is_passed_on(argument):
    """To every query that sees it; and to no query before it in q and k."""

    def nan():
        inputs, _ = Case(1, 70, 70, 1, 1, 16).inputs()
        inputs[argument][0, 66] = float("nan")
        out = mg.ops.attention(**inputs)
        assert out[0, 66].isnan().all()
        if argument != "q":
            assert out[0, 67:].isnan().all()
        if argument != "v":  # a weight of zero times NaN is NaN, as in torch
            assert out[0, :66].isfinite().all()
        return out

    run_on_every_schedule(f"attention NaN in {argument}", nan)


@pytest.mark.parametrize(
    "case, options",
    [
        (Case(1, 3, 3, 1, 1, 3), {}),
        (Case(1, 3, 5, 2, 1, 2), {"window": 2}),
        (Case(1, 3, 2, 2, 2, 2), {"scale": 0.3}),
        (Case(1, 3, 4, 2, 1, 2), {"causal": False, "dropout_p": 0.4, "seed": 5}),
    ],
    ids=str,
)
def test_gradcheck(case, options):
    inputs, _ = case.inputs(torch.float64)
    leaves = [t.requires_grad_() for t in inputs.values()]
    with mg.backend("emulated"):
        assert torch.autograd.gradcheck(lambda q, k, v: mg.ops.attention(q, k, v, **options), leaves)
