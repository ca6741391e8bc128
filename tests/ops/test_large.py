"""Results of 4 MB and more are stored past the caches (csrc/common/stream.h). They are those of the same rows in two
parts, which are too small for that, to the bit."""

import pytest
import torch
from accuracy import DTYPES
from tensors import normal
from torch import Tensor

from minigpt_ext import ops

LEAST = 1 << 22  # bytes


def results(function, inputs: list[Tensor], others: list[Tensor], rows: slice) -> list[Tensor]:
    """What function(*inputs, *others) returns for these rows of the inputs, and the inputs' gradients."""
    leaves = [t[rows].detach().requires_grad_() for t in inputs]
    out = function(*leaves, *others)
    out = out if isinstance(out, tuple) else (out,)
    return [*out, *torch.autograd.grad(sum((y * y.detach()).sum() for y in out), leaves)]


def check(
    function,
    dtype: torch.dtype,
    *others: Tensor,
    inputs: int = 1,
    columns: tuple[int, ...] = (192,),
    large: int = 0,  # which of the results is just large
    times: int = 1,  # how much larger the inputs are than that
) -> None:
    rows = times * LEAST // (torch.Size(columns).numel() * dtype.itemsize) + 7
    tensors = [normal(rows, *columns, dtype=dtype) for _ in range(inputs)]
    whole = results(function, tensors, list(others), slice(None))
    parts = [results(function, tensors, list(others), part) for part in (slice(rows // 2), slice(rows // 2, None))]
    assert whole[large].nbytes >= LEAST > parts[1][large].nbytes
    for result, *of_parts in zip(whole, *parts, strict=True):
        assert torch.equal(result, torch.cat(of_parts))


def check_all(dtype: torch.dtype) -> None:
    weight, bias = normal(192, dtype=dtype), normal(192, dtype=dtype)
    cos, sin = (normal(1, 32, dtype=torch.promote_types(dtype, torch.float32)) for _ in range(2))
    check(ops.layer_norm, dtype, weight, bias)
    check(ops.residual_layer_norm, dtype, weight, bias, inputs=2)
    check(ops.rms_norm, dtype, weight)
    check(ops.residual_rms_norm, dtype, weight, inputs=2)
    check(ops.bias_gelu, dtype, bias)
    check(lambda x, bias: ops.bias_gelu(x, bias, "tanh"), dtype, bias)
    check(ops.gelu, dtype)
    check(lambda x: ops.gelu(x, "tanh"), dtype)
    check(ops.relu_squared, dtype)
    check(ops.swiglu, dtype, columns=(384,), times=2)
    check(ops.swiglu, dtype, columns=(384,), large=1)
    check(lambda x: ops.rope(x.unsqueeze(1), cos, sin).squeeze(1), dtype, columns=(3, 64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_results_are_those_of_their_parts(dtype):
    check_all(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_dropout_begins_as_a_small_one(dtype):
    n = LEAST // dtype.itemsize + 35
    x, residual = normal(n, dtype=dtype), normal(n, dtype=dtype)
    seed = torch.tensor([5])
    large, small = (ops.dropout(x[:m], 0.3, seed=seed, residual=residual[:m]) for m in (n, n - 1000))
    assert torch.equal(large[: n - 1000], small)
