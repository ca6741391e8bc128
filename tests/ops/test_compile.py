"""torch.compile: every op goes through it whole, forward and backward. The tracing is what can break here, so most
tests compile with "aot_eager", which traces like the real thing and makes no code; the slow ones make code too."""

import pytest
import torch
from accuracy import forward_backward
from paged import int32
from tensors import normal

import minigpt_ext as mg


def projected(n: int) -> dict:
    return {"q": normal(2, n, 4, 8), "k": normal(2, n + 3, 2, 8), "v": normal(2, n + 3, 2, 8)}


ANGLES = [f(torch.arange(80)[:, None] / torch.tensor([1.0, 5.0, 70.0])) for f in (torch.cos, torch.sin)]
OPS = {
    "attention": (mg.ops.attention, projected),
    "attention window": (lambda q, k, v: mg.ops.attention(q, k, v, window=3, scale=0.2), projected),
    "attention dropout": (lambda q, k, v: mg.ops.attention(q, k, v, dropout_p=0.5, seed=7), projected),
    "attention alibi and softcap": (
        lambda q, k, v: mg.ops.attention(q, k, v, alibi_slopes=2.0 ** -torch.arange(1.0, 5.0), softcap=1.5),
        projected,
    ),
    "attention packed": (
        lambda qkv: mg.ops.attention(*qkv.view(2, -1, 3, 4, 8).unbind(2)).flatten(2),
        lambda n: {"qkv": normal(2, n, 96)},
    ),
    "layer_norm": (mg.ops.layer_norm, lambda n: {"x": normal(2, n, 8), "weight": normal(8), "bias": normal(8)}),
    "layer_norm without bias": (mg.ops.layer_norm, lambda n: {"x": normal(n, 8), "weight": normal(8)}),
    "rms_norm": (mg.ops.rms_norm, lambda n: {"x": normal(n, 8), "weight": normal(8)}),
    "rms_norm packed": (
        lambda qkv, weight: mg.ops.rms_norm(qkv.view(2, -1, 3, 4, 8)[:, :, 1], weight),
        lambda n: {"qkv": normal(2, n, 96), "weight": normal(8)},
    ),
    "rope": (
        lambda qkv: mg.ops.rope(qkv.view(2, -1, 3, 4, 8)[:, :, 1], *ANGLES),
        lambda n: {"qkv": normal(2, n, 96)},
    ),
    "rope positions": (
        lambda x: mg.ops.rope(x, *ANGLES, positions=torch.arange(x.shape[1], dtype=torch.int32).expand(2, -1) + 3),
        lambda n: {"x": normal(2, n, 4, 8)},
    ),
    "swiglu": (mg.ops.swiglu, lambda n: {"x": normal(3, n, 8)}),
    "relu_squared": (mg.ops.relu_squared, lambda n: {"x": normal(3, n)}),
    "cross_entropy": (
        lambda logits: mg.ops.cross_entropy(logits, torch.arange(logits.shape[0]) % 7 - 1),
        lambda n: {"logits": normal(n, 8)},
    ),
    "residual_layer_norm": (
        lambda **t: torch.cat(mg.ops.residual_layer_norm(**t), -1),
        lambda n: {"x": normal(n, 8), "residual": normal(n, 8), "weight": normal(8), "bias": normal(8)},
    ),
    "residual_layer_norm of half": (
        lambda x, residual, weight: mg.ops.residual_layer_norm(x, residual, weight)[0],
        lambda n: {"x": normal(n, 8).bfloat16(), "residual": normal(n, 8), "weight": normal(8)},
    ),
    "residual_rms_norm": (
        lambda x, residual, weight: torch.cat(mg.ops.residual_rms_norm(x, residual, weight), -1),
        lambda n: {"x": normal(n, 8), "residual": normal(n, 8), "weight": normal(8)},
    ),
    "bias_gelu": (mg.ops.bias_gelu, lambda n: {"x": normal(2, n, 8), "bias": normal(8)}),
    "dropout": (
        lambda x, residual: mg.ops.dropout(x, 0.4, 7, residual),
        lambda n: {"x": normal(n, 8).bfloat16(), "residual": normal(n, 8)},
    ),
    "gelu": (mg.ops.gelu, lambda n: {"x": normal(3, n)}),
    "gelu tanh": (lambda x: mg.ops.gelu(x.transpose(0, 1), "tanh"), lambda n: {"x": normal(3, n)}),
}


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def check(name: str, backend: str, dynamic: bool | None, sizes=(5, 7, 70)) -> None:
    """Compiled and eager agree, forward and backward, also when the sizes change."""
    function, inputs_for = OPS[name]
    compiled = torch.compile(function, fullgraph=True, backend=backend, dynamic=dynamic)
    for n in sizes:
        inputs = inputs_for(n)
        g = torch.randn_like(function(**inputs))
        eager, ours = (forward_backward(f, inputs, g) for f in (function, compiled))
        for quantity in eager:
            torch.testing.assert_close(ours[quantity], eager[quantity], msg=lambda m, q=quantity: f"{name} {q}: {m}")


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_one_graph(name, dynamic):
    check(name, "aot_eager", dynamic, sizes=(5, 70) if dynamic else (5,))


def test_dynamic_shapes_are_compiled_once():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mg.ops.gelu, fullgraph=True, dynamic=True, backend=counter)
    for n in (5, 7, 100):
        compiled(normal(3, n))
    assert counter.frame_count == 1


def block(q, k, v, weight):
    """What a model does between two projections."""
    return mg.ops.gelu(mg.ops.layer_norm(mg.ops.attention(q, k, v, dropout_p=0.3).flatten(2), weight))


def check_dropout_without_a_seed(backend: str) -> None:
    """The seed is drawn in the graph: from torch's generator, anew each time, and the backward uses the forward's."""
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    inputs = {"q": normal(2, 9, 2, 8), "k": normal(2, 9, 2, 8), "v": normal(2, 9, 2, 8), "weight": normal(16)}
    g = normal(2, 9, 16)
    torch.manual_seed(3)
    first, second = (forward_backward(compiled, inputs, g) for _ in range(2))
    torch.manual_seed(3)
    again = forward_backward(compiled, inputs, g)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["out"], second["out"])
    # A gradient of another mask than the forward's would not be the derivative along this direction.
    small = {name: t.double() for name, t in inputs.items()}
    torch.manual_seed(3)
    results = forward_backward(compiled, small, g.double())
    step, values = 1e-6, []
    for sign in (1, -1):
        torch.manual_seed(3)
        values.append((compiled(small["q"] + sign * step * small["k"], *list(small.values())[1:]) * g).sum())
    torch.testing.assert_close(
        (values[0] - values[1]) / (2 * step), (results["dq"] * small["k"]).sum(), rtol=1e-5, atol=1e-6
    )


def test_dropout_without_a_seed():
    check_dropout_without_a_seed("aot_eager")


def test_the_backend_is_chosen_when_compiling():
    compiled = torch.compile(mg.ops.gelu, fullgraph=True, backend="aot_eager")
    x = normal(5).requires_grad_()
    names = []
    for name in ("kernels", "torch", "kernels"):
        with mg.backend(gelu=name), torch.profiler.profile() as profile:
            compiled(x)
        names.append(any(event.key == "minigpt::gelu_forward" for event in profile.key_averages()))
    assert names == [True, False, True]


def decode(q, k, v, k_cache, v_cache, table, lens):
    mg.ops.kv_append(k_cache, v_cache, k, v, table, lens)
    slopes = 2.0 ** -torch.arange(1.0, 5.0)
    plain = mg.ops.decode_attention(q, k_cache, v_cache, table, lens + q.shape[1])
    return plain + mg.ops.decode_attention(
        q, k_cache, v_cache, table, lens + q.shape[1], alibi_slopes=slopes, softcap=1.5
    )


def check_cache(backend: str) -> None:
    """An op that writes its arguments: the write happens, and before the read."""
    results = []
    for function in (decode, torch.compile(decode, fullgraph=True, backend=backend)):
        torch.manual_seed(1)
        caches = [normal(4, 4, 2, 8) for _ in range(2)]
        new = [normal(2, 3, heads, 8) for heads in (4, 2, 2)]
        out = function(*new, *caches, int32([[3, 1], [0, 2]]), int32([2, 5]))
        results.append((out, *caches))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)


def test_cache_ops():
    check_cache("aot_eager")


def test_code_is_made():
    check("gelu", "inductor", None, sizes=(5,))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dynamic", [False, True, None], ids=str)
def test_code_is_made_for_every_op(name, dynamic):
    check(name, "inductor", dynamic)


@pytest.mark.slow
def test_code_is_made_for_dropout_and_cache():
    check_dropout_without_a_seed("inductor")
    check_cache("inductor")
