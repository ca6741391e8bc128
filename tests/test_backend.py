"""Which implementation an op uses: the choice, its scope, and that both implementations agree."""

import os
import subprocess
import sys

import pytest
import torch
from accuracy import forward_backward
from paged import int32, poisoned_caches
from tensors import normal

import minigpt_ext as mg
from minigpt_ext.backend import OPS, _from_environment, implementation, why_no_kernels

ALL_KERNELS = dict.fromkeys(OPS, "kernels")


def chosen() -> dict[str, str]:
    """What each op would use for a CPU tensor."""
    return {op: implementation(op, torch.device("cpu")) for op in OPS}


@pytest.fixture(autouse=True)
def _kernels_outside():
    with mg.backend("kernels"):
        yield


def test_one_backend_for_all_or_single_ops():
    assert chosen() == ALL_KERNELS
    with mg.backend("torch"):
        assert set(chosen().values()) == {"torch"}
    with mg.backend(gelu="torch"):
        assert chosen() == ALL_KERNELS | {"gelu": "torch"}
    with mg.backend("torch", gelu="kernels", attention="torch"):
        assert [op for op, name in chosen().items() if name == "kernels"] == ["gelu"]
    assert chosen() == ALL_KERNELS


def test_blocks_nest():
    with mg.backend(attention="torch"):
        with mg.backend(gelu="torch"):
            assert chosen() == ALL_KERNELS | {"attention": "torch", "gelu": "torch"}
            with mg.backend("kernels"):
                assert chosen() == ALL_KERNELS
            assert chosen() == ALL_KERNELS | {"attention": "torch", "gelu": "torch"}
        assert chosen() == ALL_KERNELS | {"attention": "torch"}
    assert chosen() == ALL_KERNELS


def test_restored_after_an_exception():
    with pytest.raises(KeyError), mg.backend("torch"):
        raise KeyError
    assert chosen() == ALL_KERNELS
    with pytest.raises(ValueError), mg.backend("torch"), mg.backend(gelu="nonsense"):
        pass
    assert chosen() == ALL_KERNELS


@pytest.mark.parametrize(
    "enter, message",
    [
        (lambda: mg.backend("cuda"), "no backend is called 'cuda'; there are kernels, torch"),
        (lambda: mg.backend(gelu="cuda"), "no backend is called 'cuda'; there are kernels, torch"),
        (lambda: mg.backend(relu="torch"), "no op is called 'relu'; there are attention, layer_norm, gelu, kv_append"),
        (lambda: mg.backend(), "say which, one of kernels, torch"),
        (lambda: mg.backend(""), "no backend is called ''"),
    ],
)
def test_unknown_names_are_refused_with_the_choices(enter, message):
    with pytest.raises(ValueError, match=message), enter():
        pass
    assert chosen() == ALL_KERNELS


@pytest.mark.parametrize(
    "text, changed",
    [
        ("", {}),
        ("kernels", {}),
        ("torch", dict.fromkeys(OPS, "torch")),
        ("attention=torch", {"attention": "torch"}),
        (" attention = torch , gelu=kernels, layer_norm=torch,", {"attention": "torch", "layer_norm": "torch"}),
        ("torch,gelu=kernels", dict.fromkeys(OPS, "torch") | {"gelu": "kernels"}),
        ("gelu=kernels,torch", dict.fromkeys(OPS, "torch")),
    ],
)
def test_environment(text, changed):
    assert _from_environment(text) == ALL_KERNELS | changed


@pytest.mark.parametrize("text", ["cuda", "gelu=", "gelu=x", "relu=torch", "=torch", "gelu=torch=torch", "gelu:torch"])
def test_a_wrong_environment_is_refused(text):
    with pytest.raises(ValueError, match="MINIGPT_BACKEND: no (backend|op) is called .*; there are"):
        _from_environment(text)


def test_the_environment_is_read_by_a_new_process():
    code = (
        "import torch; from minigpt_ext.backend import implementation; "
        "print(implementation('gelu', torch.device('cpu')))"
    )
    environment = {**os.environ, "MINIGPT_BACKEND": "gelu=torch"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "torch"


# ---- the backward uses what its forward used ------------------------------------------------------------------------


def differentiable_ops() -> dict:
    q, x, weight = normal(1, 5, 2, 8), normal(3, 8), normal(8)
    return {
        "attention": (lambda t: mg.ops.attention(t, t, t), q, "AttentionFunctionBackward"),
        "layer_norm": (lambda t: mg.ops.layer_norm(t, weight, weight), x, "LayerNormFunctionBackward"),
        "gelu": (mg.ops.gelu, x, "GeluFunctionBackward"),
        "rope": (lambda t: mg.ops.rope(t, normal(5, 3), normal(5, 3)), q.clone(), "RopeFunctionBackward"),
        "rms_norm": (lambda t: mg.ops.rms_norm(t, weight), x, "RmsNormFunctionBackward"),
        "swiglu": (mg.ops.swiglu, x, "SwigluFunctionBackward"),
        "relu_squared": (mg.ops.relu_squared, x, "ReluSquaredFunctionBackward"),
        "cross_entropy": (
            lambda t: mg.ops.cross_entropy(t, torch.tensor([1, -1, 7])),
            x.clone(),
            "CrossEntropyFunctionBackward",
        ),
        "dropout": (lambda t: mg.ops.dropout(t, 0.5), x, "DropoutFunctionBackward"),
    }


def kernels_called(function) -> set[str]:
    """The names of this package's ops that run while function() does."""
    with torch.profiler.profile() as profile:
        function()
    return {
        event.key.removeprefix("minigpt::") for event in profile.key_averages() if event.key.startswith("minigpt::")
    }


@pytest.mark.parametrize(
    "op", ["attention", "layer_norm", "gelu", "rope", "rms_norm", "swiglu", "relu_squared", "cross_entropy", "dropout"]
)
@pytest.mark.parametrize("forward, backward", [("kernels", "torch"), ("torch", "kernels")])
def test_the_backward_uses_what_its_forward_used(op, forward, backward):
    function, given, node = differentiable_ops()[op]
    given.requires_grad_()
    with mg.backend(**{op: forward}):
        out = function(given)
    assert (type(out.grad_fn).__name__ == node) == (forward == "kernels")
    with mg.backend(**{op: backward}):
        called = kernels_called(lambda: out.backward(torch.randn_like(out)))
    backward_op = op if op in ("rope", "dropout") else f"{op}_backward"  # they go back by the same op
    assert called == ({backward_op} if forward == "kernels" else set())


# ---- both implementations agree -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op, options",
    [
        ("attention", {}),
        ("attention", {"causal": False, "scale": 0.3}),
        ("attention", {"window": 3}),
        ("attention", {"dropout_p": 0.4, "seed": 9}),
        ("gelu", {}),
        ("gelu", {"approximate": "tanh"}),
        ("layer_norm", {}),
        ("layer_norm", {"eps": 0.1}),
        ("rope", {"cos": normal(5, 3), "sin": normal(5, 3)}),
        ("rope", {"cos": normal(9, 4), "sin": normal(9, 4), "positions": int32([[7, 1, 8, 0, 2]] * 2)}),
        ("rms_norm", {}),
        ("rms_norm", {"eps": 0.1}),
        ("swiglu", {}),
        ("relu_squared", {}),
        ("cross_entropy", {"targets": torch.tensor([[1, -1, 7, 0, 2]] * 3)}),
        ("cross_entropy", {"targets": torch.tensor([[1, 5, 7, 0, 2]] * 3), "ignore_index": 7}),
        ("dropout", {"p": 0.4, "seed": 9}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backends_agree(op, options, dtype, device):
    """Shapes, types and values, forward and backward. (How exact each is, the ops' own tests say.)"""
    if op == "attention":
        inputs = {"q": normal(2, 9, 4, 8), "k": normal(2, 7, 2, 8), "v": normal(2, 7, 2, 8)}
        g = normal(2, 9, 4, 8)
    elif op == "rope":
        inputs, g = {"x": normal(2, 5, 3, 8)}, normal(2, 5, 3, 8)
        options = {name: t.to(device) for name, t in options.items()}
    elif op == "cross_entropy":
        inputs, g = {"logits": normal(3, 5, 8)}, torch.tensor(2.5)
        options = options | {"targets": options["targets"].to(device)}
    else:
        inputs, g = {"x": normal(3, 5, 8)}, normal(3, 5, 4 if op == "swiglu" else 8)
        inputs |= {"weight": normal(8)} if op.endswith("norm") else {}
        inputs |= {"bias": normal(8)} if op == "layer_norm" else {}
    inputs = {name: t.to(device, dtype) for name, t in inputs.items()}
    g = g.to(device, g.dtype if op == "cross_entropy" else dtype)  # the loss is float32 at least
    results = {}
    for name in ("kernels", "torch"):
        with mg.backend(name):
            results[name] = forward_backward(lambda **t: getattr(mg.ops, op)(**t, **options), inputs, g)
    tolerance = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    assert all(result["out"].is_contiguous() for result in results.values())
    for name, ours in results["kernels"].items():
        torch.testing.assert_close(ours, results["torch"][name], **tolerance)


@pytest.mark.parametrize("pair", [(torch.bfloat16, torch.float32), (torch.float16, torch.float32)])
def test_backends_agree_on_layer_norms_mixed_types(pair, device):
    x, weight = normal(4, 8, dtype=pair[0], device=device), normal(8, dtype=pair[1], device=device)
    with mg.backend("torch"):
        expected = mg.ops.layer_norm(x, weight, weight)
    torch.testing.assert_close(mg.ops.layer_norm(x, weight, weight), expected)


@pytest.mark.parametrize("ragged", [False, True])
def test_backends_agree_on_the_cache(ragged, device):
    """kv_append and decode_attention, with a sequence that has nothing and one that brings nothing."""
    fresh, before = ([2, 2, 2], [3, 0, 5]) if not ragged else ([1, 0, 5], [3, 0, 2])
    table, lens = int32([[3, 1, 9], [2, 9, 9], [0, 4, 9]], device), int32(before, device)
    start = int32([0, *torch.tensor(fresh).cumsum(0).tolist()], device) if ragged else None
    rows = (sum(fresh),) if ragged else (3, 2)
    q, k, v = (normal(*rows, heads, 8, device=device) for heads in (4, 2, 2))
    results = []
    for name in ("kernels", "torch"):
        caches = [c.nan_to_num(7.0) for c in poisoned_caches(5, 4, 2, 8, torch.float32, device)]
        with mg.backend(name):
            mg.ops.kv_append(*caches, k, v, table, lens, query_start=start)
            after = lens + int32(fresh, device)
            out = [mg.ops.decode_attention(q, *caches, table, after, query_start=start, window=w) for w in (None, 2)]
        results.append((*caches, *out))
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs)


def test_an_mps_device_is_told_to_use_torch():
    assert why_no_kernels(torch.device("cpu")) is None
    assert "mps" in why_no_kernels(torch.device("mps"))
