"""The model's linear layers: oneDNN's products and F.linear's say the same, and F.linear stands where it should."""

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_all_accurate, forward_backward, largest
from tensors import normal, spread, turned

from minigpt_ext import _C
from minigpt_ext.model import linear as module
from minigpt_ext.model.linear import Linear, linear

BOTH = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def _by_onednn(monkeypatch):
    """On every CPU, also where F.linear would be chosen."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    dtypes = BOTH if _C.simd_level() == "avx512_bf16" else (torch.float32,)
    monkeypatch.setattr(module, "_onednn_dtypes", lambda: dtypes)


def needs(dtype: torch.dtype) -> None:
    if dtype not in module._onednn_dtypes():
        pytest.skip(f"no {dtype} products by oneDNN on this CPU")


def case(M: int, K: int, N: int, dtype: torch.dtype, bias: bool) -> tuple[dict, torch.Tensor]:
    inputs = {"x": normal(2, M, K, dtype=dtype), "weight": normal(N, K, dtype=dtype)}
    return inputs | ({"bias": normal(N, dtype=dtype)} if bias else {}), normal(2, M, N, dtype=dtype)


def by_onednn(*, x, weight, bias=None):
    y = linear(x, weight, bias)
    assert type(y.grad_fn).__name__ == "LinearFunctionBackward" or not y.requires_grad
    return y


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("M, K, N", [(32, 1, 1), (33, 7, 65), (50, 128, 130), (100, 256, 128), (40, 129, 300)])
def test_accuracy(M, K, N, bias, dtype):
    needs(dtype)
    inputs, dy = case(M, K, N, dtype, bias)
    ours = forward_backward(by_onednn, inputs, dy)
    torchs = forward_backward(lambda x, weight, bias=None: F.linear(x, weight, bias), inputs, dy)
    wide = {name: t.double() for name, t in inputs.items()}
    reference = forward_backward(lambda x, weight, bias=None: F.linear(x, weight, bias), wide, dy.double())
    sizes = {"out": wide["x"].abs() @ wide["weight"].abs().t(), "dx": dy.double().abs() @ wide["weight"].abs()}
    sizes |= {"dweight": dy.double().abs().flatten(0, 1).t() @ wide["x"].abs().flatten(0, 1)}
    sizes |= {"dbias": dy.double().abs().sum((0, 1))} if bias else {}
    sizes = {name: (largest(reference[name]), largest(t)) for name, t in sizes.items()}
    assert_all_accurate("linear", ours, torchs, reference, sizes)


@pytest.mark.parametrize("layout", [spread, turned])
@pytest.mark.parametrize("dtype", BOTH)
def test_strided(layout, dtype):
    needs(dtype)
    inputs, dy = case(40, 130, 140, dtype, True)
    plain = forward_backward(by_onednn, inputs, dy)
    strided = forward_backward(by_onednn, inputs | {"x": layout(inputs["x"])}, layout(dy))
    assert all(torch.equal(plain[name], strided[name]) for name in plain)


def test_under_autocast_it_computes_in_bfloat16_and_gives_each_gradient_its_own_dtype():
    needs(torch.bfloat16)
    inputs, dy = case(40, 130, 140, torch.float32, True)
    for x in (inputs["x"], inputs["x"].bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            results = forward_backward(by_onednn, inputs | {"x": x}, dy.bfloat16())
            expected = forward_backward(
                lambda x, weight, bias: F.linear(x, weight, bias), inputs | {"x": x}, dy.bfloat16()
            )
        assert [t.dtype for t in results.values()] == [torch.bfloat16, x.dtype, torch.float32, torch.float32]
        for name, t in results.items():
            torch.testing.assert_close(t, expected[name], rtol=0.02, atol=0.02 * largest(expected[name]))


@pytest.mark.parametrize("dtype", BOTH)
def test_one_thread_says_what_two_say_by_the_same_library(dtype, threads):
    needs(dtype)
    inputs, dy = case(200, 130, 140, dtype, True)
    with torch.profiler.profile() as profile:
        threads(1)
        one = forward_backward(by_onednn, inputs, dy)
    assert "aten::_slow_conv2d_forward" not in {event.key for event in profile.key_averages()}
    threads(2)
    for name, t in forward_backward(by_onednn, inputs, dy).items():
        atol = 4 * torch.finfo(dtype).eps * largest(t)
        torch.testing.assert_close(one[name], t, rtol=0, atol=atol if dtype == torch.bfloat16 else 10 * atol)


@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
def test_one_gradient_alone(wanted):
    inputs, dy = case(40, 130, 140, torch.float32, True)
    all_of_them = forward_backward(by_onednn, inputs, dy)
    leaf = inputs[wanted].requires_grad_()
    linear(**inputs).backward(dy)
    torch.testing.assert_close(leaf.grad, all_of_them[f"d{wanted}"])


@pytest.mark.parametrize(
    "x, weight",
    [
        (normal(3, 8), normal(5, 8)),  # few rows
        (normal(100, 8).double(), normal(5, 8).double()),
        (normal(100, 8).half(), normal(5, 8).half()),
    ],
)
def test_otherwise_it_is_torchs(x, weight):
    y = linear(x, weight.requires_grad_())
    assert type(y.grad_fn).__name__ != "LinearFunctionBackward" and torch.equal(y, F.linear(x, weight))


@pytest.mark.parametrize("shape", [(100, 0, 3), (100, 4, 0), (0, 4, 3)])
def test_of_nothing(shape):
    M, K, N = shape
    x, weight, bias = normal(M, K), normal(N, K), normal(N)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


def test_autocast_leaves_float64_alone():
    x, weight = normal(100, 8).double(), normal(5, 8).double()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear(x, weight), F.linear(x, weight))
        with pytest.raises(RuntimeError, match="dtype"):
            linear(x, weight.float())


def test_wrong_input_is_told_by_torch():
    with pytest.raises(RuntimeError, match="shapes|dtype"):
        linear(normal(100, 8), normal(5, 8).double())
    with pytest.raises(RuntimeError):
        linear(normal(100, 8), normal(5, 9))


def test_a_module_compiles_whole_and_is_saved_as_torchs():
    layer, x = Linear(8, 5), normal(100, 8)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_where_nothing_was_measured_it_is_torchs(monkeypatch):
    monkeypatch.undo()
    module._onednn_dtypes.cache_clear()
    monkeypatch.setattr(module.Path, "read_text", lambda path: "vendor_id\t: GenuineIntel\n")
    assert module._onednn_dtypes() == ()
    module._onednn_dtypes.cache_clear()
