"""rope: accuracy, positions, partial rotation, views, derivatives, what it refuses; and Hugging Face's Llama."""

import pytest
import torch
from accuracy import DTYPES, accumulation_type, assert_all_accurate, forward_backward, largest, name_of
from hypothesis import given, settings
from hypothesis import strategies as st
from paged import int32
from tensors import normal, spread, turned, unaligned

import minigpt_ext as mg
from minigpt_ext.ops.rope import rope_reference


def tables(n_positions: int, R: int, dtype=torch.float32, device="cpu") -> dict:
    """cos and sin of Llama's angles, in the type that rope computes with."""
    frequencies = 10000.0 ** -(torch.arange(0, R, 2, dtype=torch.float64) / max(R, 1))
    angles = torch.arange(n_positions, dtype=torch.float64)[:, None] * frequencies
    return {
        name: f(angles).to(device, accumulation_type(dtype)) for name, f in (("cos", torch.cos), ("sin", torch.sin))
    }


def check(x: torch.Tensor, dy: torch.Tensor, *, cos, sin, positions=None) -> dict:
    """The accuracy rule for forward and backward. Two products are added up, each as large as its value at most."""
    options = {"cos": cos, "sin": sin, "positions": positions}
    ours = forward_backward(lambda x: mg.ops.rope(x, **options), {"x": x}, dy)
    with mg.backend("torch"):
        torchs = forward_backward(lambda x: mg.ops.rope(x, **options), {"x": x}, dy)
    options |= {"cos": cos.double(), "sin": sin.double()}
    reference = forward_backward(lambda x: rope_reference(x, **options), {"x": x.double()}, dy.double())
    sizes = {name: (largest(reference[name]), 2 * largest(given)) for name, given in (("out", x), ("dx", dy))}
    assert_all_accurate("rope", ours, torchs, reference, sizes)
    assert ours["out"].is_contiguous()
    half = cos.shape[-1]
    assert torch.equal(ours["out"][..., 2 * half :], x[..., 2 * half :])
    assert torch.equal(ours["dx"][..., 2 * half :], dy[..., 2 * half :])
    return ours


# (B, T, H, D), R. Vectors are 2 ... 16 lanes; a task takes 16384 values.
SHAPES = [((1, 1, 1, 2), 2), ((2, 3, 1, 1), 0), ((2, 5, 3, 8), 8), ((1, 7, 2, 9), 8), ((1, 3, 2, 33), 14)]
SHAPES += [((2, 9, 4, 64), 64), ((1, 4, 2, 80), 20), ((3, 2, 1, 66), 66), ((1, 70, 5, 128), 128), ((1, 3, 2, 256), 64)]
SHAPES += [((0, 3, 2, 8), 8), ((2, 0, 2, 8), 4), ((2, 3, 0, 8), 8)]


def case(shape, R, dtype=torch.float32, device="cpu", positions=False) -> dict:
    inputs = {name: normal(*shape, dtype=dtype, device=device) for name in ("x", "dy")}
    inputs |= tables(shape[1] + 3, R, dtype, device)
    if positions:
        inputs["positions"] = torch.randint(0, shape[1] + 3, shape[:2], dtype=torch.int32).to(device)
    return inputs


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("positions", [False, True], ids=["in-order", "positions"])
@pytest.mark.parametrize("shape, R", SHAPES, ids=str)
def test_accuracy(shape, R, positions, dtype, device):
    check(**case(shape, R, dtype, device, positions))


def test_by_hand():
    """A quarter turn takes (1, 2) to (-2, 1), and the third dimension stays."""
    cos, sin = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    x = torch.tensor([[[[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]]]])
    assert mg.ops.rope(x, cos, sin)[0, :, 0].tolist() == [[1, 2, 3], [-2, 1, 3]]
    assert mg.ops.rope(x, cos, sin, positions=int32([[1, 0]]))[0, :, 0].tolist() == [[-2, 1, 3], [1, 2, 3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_llama_of_transformers(dtype, device):
    """Its tables and its rotation (B, H, T, D), with positions of one's own."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(hidden_size=96, num_attention_heads=4, num_key_value_heads=2, rope_theta=5000.0)
    positions = torch.randint(0, 50, (2, 7), dtype=torch.int32)
    q, k = normal(2, 7, 4, 24, dtype=dtype), normal(2, 7, 2, 24, dtype=dtype)
    wide_cos, wide_sin = llama.LlamaRotaryEmbedding(config)(q.float(), positions.long())
    theirs = llama.apply_rotary_pos_emb(q.float().transpose(1, 2), k.float().transpose(1, 2), wide_cos, wide_sin)
    theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta", 5000.0)
    angles = torch.arange(50)[:, None] * theta ** -(torch.arange(0, 24, 2) / 24)
    cos, sin, place = angles.cos().to(device), angles.sin().to(device), positions.to(device)
    for ours, expected in zip((q, k), theirs, strict=True):
        rotated = mg.ops.rope(ours.to(device), cos, sin, positions=place).cpu()
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 8e-3, "atol": 1e-3}
        torch.testing.assert_close(rotated.float(), expected.transpose(1, 2), **tolerance)


def test_the_backward_undoes_the_forward(device):
    inputs = case((2, 5, 3, 16), 12, torch.float64, device, positions=True)
    given = inputs["cos"], inputs["sin"], inputs["positions"]
    there = torch.ops.minigpt.rope(inputs["x"], *given, False)
    torch.testing.assert_close(torch.ops.minigpt.rope(there, *given, True), inputs["x"])


def test_positions_in_order_are_the_default(device):
    inputs = case((2, 5, 3, 8), 8, device=device)
    in_order = torch.arange(5, dtype=torch.int32, device=device).expand(2, 5)
    assert torch.equal(check(**inputs)["out"], check(**inputs, positions=in_order)["out"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_spoils_its_pair_alone(value, device):
    inputs = case((1, 3, 2, 10), 8, device=device)
    inputs["x"][0, 1, 1, 2] = inputs["x"][0, 2, 0, 9] = value
    bad = mg.ops.rope(inputs["x"], inputs["cos"], inputs["sin"]).isfinite().logical_not().nonzero().tolist()
    assert bad == [[0, 1, 1, 2], [0, 1, 1, 6], [0, 2, 0, 9]]


# ---- tensors that lie in memory in unusual ways ---------------------------------------------------------------------


def packed(t: torch.Tensor) -> torch.Tensor:
    """A part of a packed projection (B, T, 3, H, D)."""
    return torch.stack([torch.full_like(t, float("nan")), t, torch.full_like(t, float("nan"))], 2)[:, :, 1]


def heads_first(t: torch.Tensor) -> torch.Tensor:
    return t.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize("layout", [unaligned, spread, turned, packed, heads_first, lambda t: t.flip(0).flip(0)])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("D, R", [(9, 8), (64, 64)])
def test_unaligned_and_strided(D, R, layout, dtype, device):
    inputs = case((2, 5, 3, D), R, dtype, device, positions=True)
    plain = check(**inputs)
    changed = {name: layout(inputs[name]) for name in ("x", "dy")}
    changed |= {name: turned(unaligned(inputs[name])) for name in ("cos", "sin")}
    changed["positions"] = inputs["positions"].t().contiguous().t()
    strided = check(**changed)
    assert all(torch.equal(plain[name], strided[name]) for name in plain)


def test_a_packed_projection_is_read_where_it_lies():
    inputs = case((2, 5, 3, 8), 8)
    for layout, copied in ((packed, False), (heads_first, False), (spread, False), (turned, True)):
        x = layout(inputs["x"])
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            mg.ops.rope(x, inputs["cos"], inputs["sin"])
        assert any(event.key == "aten::copy_" for event in profile.key_averages()) == copied, layout


def test_an_expanded_gradient(device):
    inputs = case((2, 5, 3, 8), 8, device=device)
    inputs["dy"] = inputs["dy"][:1, :1, :1, :1].expand(2, 5, 3, 8)
    wanted = check(**inputs | {"dy": inputs["dy"].contiguous()})
    assert torch.equal(check(**inputs)["dx"], wanted["dx"])


def test_runs_and_threads_do_not_change_the_result(threads):
    inputs = case((2, 300, 4, 64), 64, positions=True)
    first = check(**inputs)
    for n in (1, 2, 3) * 3:
        threads(n)
        again = check(**inputs)
        assert all(torch.equal(first[name], again[name]) for name in first)


# ---- derivatives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [False, True])
def test_gradcheck(positions):
    inputs = case((2, 3, 2, 7), 6, torch.float64, positions=positions)
    options = {name: inputs.get(name) for name in ("cos", "sin", "positions")}
    assert torch.autograd.gradcheck(lambda x: mg.ops.rope(x, **options), inputs["x"].requires_grad_())


def test_a_second_derivative_is_refused():
    inputs = case((1, 2, 1, 4), 4)
    x = inputs["x"].requires_grad_()
    y = mg.ops.rope(x, inputs["cos"], inputs["sin"])
    (dx,) = torch.autograd.grad(y, x, inputs["dy"].requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("name", ["cos", "sin"])
@pytest.mark.parametrize("backend", ["kernels", "torch"])
def test_tables_that_require_a_gradient_are_refused(name, backend):
    inputs = case((1, 2, 1, 4), 4)
    inputs.pop("dy")
    inputs[name].requires_grad_()
    with mg.backend(backend), pytest.raises(RuntimeError, match="rope: cos and sin must not require gradients"):
        mg.ops.rope(**inputs)


# ---- what is refused ------------------------------------------------------------------------------------------------


def arguments(**changed) -> dict:
    inputs = case((2, 3, 2, 8), 6)
    inputs.pop("dy")
    return {**inputs, "positions": int32([[0, 1, 2], [5, 4, 3]]), **changed}


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"x": normal(2, 3, 8)}, r"rope: x must be \(B, T, H, D\), got \(2, 3, 8\)"),
        ({"x": torch.ones(2, 3, 2, 8, dtype=torch.int32)}, "rope: x must be float32.*int32"),
        ({"x": normal(2, 3, 2, 8).to("meta")}, "device"),
        ({"x": normal(2, 3, 2, 5)}, "rope: cos and sin rotate R = 6 dimensions, x has D = 5"),
        ({"x": normal(2, 3, 2, 8).double()}, "rope: cos must be float64, got float32"),
        ({"cos": normal(6, 3, 1)}, r"rope: cos must be \(n_positions, R/2\)"),
        ({"cos": normal(6, 3).half()}, "rope: cos must be float32, got float16"),
        ({"cos": normal(6, 3).to("meta")}, "rope: cos is on"),
        ({"sin": normal(6, 2)}, r"rope: sin must be \(n_positions, R/2\) = \(6, 3\), got \(6, 2\)"),
        ({"sin": normal(5, 3)}, "rope: sin must be"),
        ({"sin": normal(6, 3).double()}, "rope: sin must be float32, got float64"),
        ({"sin": normal(6, 3).to("meta")}, "rope: sin is on"),
        ({"positions": int32([0, 1, 2])}, r"rope: positions must be \(B, T\) = \(2, 3\), got \(3\)"),
        ({"positions": int32([[0, 1, 2]])}, "rope: positions must be"),
        ({"positions": int32([[0, 1, 2], [5, 4, 3]]).long()}, "rope: positions must be int32, got int64"),
        ({"positions": int32([[0, 1, 2], [5, 4, 3]]).to("meta")}, "rope: positions is on"),
        (
            {"positions": int32([[0, 1, 2], [5, 6, 3]])},
            r"positions\[1\]\[1\] is 6, cos and sin have 6 positions \(0 ... 5",
        ),
        ({"positions": int32([[0, 1, -1], [5, 4, 3]])}, r"rope: positions\[0\]\[2\] is -1"),
        ({"positions": None, "x": normal(2, 7, 2, 8)}, "rope: x has T = 7 tokens, cos and sin only 6 positions"),
    ],
)
def test_wrong_input_is_refused_by_name(changed, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        mg.ops.rope(**arguments(**changed))


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize(
    "shape, R, dtype, layout",
    [
        ((2, 3, 2, 9), 8, torch.bfloat16, torch.clone),
        ((2, 3, 2, 8), 8, torch.float32, packed),
        ((1, 0, 2, 8), 4, torch.float64, torch.clone),
    ],
)
def test_opcheck(shape, R, dtype, layout, positions, device):
    inputs = case(shape, R, dtype, device, positions)
    given = layout(inputs["x"]), inputs["cos"], inputs["sin"], inputs.get("positions")
    torch.library.opcheck(torch.ops.minigpt.rope.default, (*given, False))
    torch.library.opcheck(torch.ops.minigpt.rope.default, (*given, True))


# ---- any shape ------------------------------------------------------------------------------------------------------

ANY = {
    "shape": st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 4), st.integers(1, 150)),
    "share": st.floats(0, 1),
    "dtype": st.sampled_from(DTYPES),
    "positions": st.booleans(),
}


def check_any(shape, share, dtype, positions) -> None:
    torch.manual_seed(0)
    check(**case(shape, 2 * int(share * (shape[-1] // 2)), dtype, positions=positions))


@given(**ANY)
def test_any_shape(shape, share, dtype, positions):
    check_any(shape, share, dtype, positions)


@pytest.mark.slow
@settings(max_examples=2000)
@given(**ANY)
def test_any_shape_at_length(shape, share, dtype, positions):
    check_any(shape, share, dtype, positions)
