"""Linear layers whose matrix products, on a CPU, are oneDNN's where that is the faster of torch's two libraries."""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt_ext import _C

_FEWEST_ROWS = 64  # below, a product is short beside the calls around it
_AUTOCAST = (torch.float32, torch.bfloat16, torch.float16)  # what autocast turns into its own dtype
_NARROWEST = 128  # of a weight whose gradient oneDNN makes faster


class Linear(nn.Linear):
    """torch's linear layer, by :func:`linear`. x (..., in_features) -> (..., out_features)."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, under autocast in its dtype: torch's F.linear, or the same products by oneDNN.

    F.linear multiplies float32 by MKL, which keeps its AVX-512 kernels for Intel's CPUs: on others oneDNN is two to
    three times as fast, and torch offers it as a convolution of width 1, over a channels-last image of one pixel a row.
    In bfloat16 both are oneDNN; the convolution takes the weights as they lie, which spares it a pass over them.

    x: (..., K); weight: (N, K); bias: (N,) or None. Returns (..., N).
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if torch.compiler.is_compiling() or not _is_faster_by_onednn(x, weight, bias, dtype):
        return F.linear(x, weight, bias)
    return LinearFunction.apply(x, weight, bias, dtype)


def _is_faster_by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> bool:
    """False also for what F.linear refuses, empty products, and the dtypes that autocast leaves alone."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if any(t.device.type != "cpu" for t in tensors) or dtype not in _onednn_dtypes():
        return False
    if x.dim() < 2 or weight.dim() != 2 or x.shape[-1] != weight.shape[1] or weight.numel() == 0:
        return False
    if x.numel() < _FEWEST_ROWS * x.shape[-1] or bias is not None and bias.shape != weight.shape[:1]:
        return False
    allowed = _AUTOCAST if torch.is_autocast_enabled("cpu") else (dtype,)
    return all(t.dtype in allowed for t in tensors)


@functools.cache
def _onednn_dtypes() -> tuple[torch.dtype, ...]:
    """The dtypes in which oneDNN is the faster one here. Intel's CPUs were not measured, and keep F.linear."""
    if not torch.backends.mkldnn.is_available() or not _C.simd_level().startswith("avx512"):
        return ()
    cpu = Path("/proc/cpuinfo")
    if not cpu.exists() or "GenuineIntel" in cpu.read_text():
        return ()
    return (torch.float32, torch.bfloat16) if _C.simd_level() == "avx512_bf16" else (torch.float32,)


class LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        rows, w = x.to(dtype).reshape(-1, x.shape[-1]).contiguous(), weight.to(dtype)
        y = _product(rows, w, None if bias is None else bias.to(dtype))
        ctx.save_for_backward(rows, w)
        ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        x_dtype, weight_dtype, bias_dtype = ctx.dtypes
        shape = (*dy.shape[:-1], x.shape[-1])
        dy = dy.reshape(-1, dy.shape[-1]).contiguous()
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = _product(dy, weight.t()) if dy.dtype == torch.float32 else dy @ weight
            dx = dx.view(shape).to(x_dtype)
        if ctx.needs_input_grad[1]:
            dweight = _weight_gradient(dy, x).to(weight_dtype)
        if ctx.needs_input_grad[2]:
            dbias = dy.sum(0, dtype=bias_dtype)
        return dx, dweight, dbias, None


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows weight^T + bias. Named, for with one thread F.conv2d would choose a convolution that is not oneDNN's."""
    ones = [1, 1]
    y = torch.mkldnn_convolution(_image(rows), weight[:, :, None, None], bias, [0, 0], ones, ones, groups=1)
    return _rows(y)


def _weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """dy^T x: (N, K) of dy (M, N) and x (M, K)."""
    if dy.dtype != torch.float32 or min(dy.shape[1], x.shape[1]) < _NARROWEST or torch.get_num_threads() == 1:
        return dy.t() @ x
    shape = dy.shape[1], x.shape[1], 1, 1
    return torch.nn.grad.conv2d_weight(_image(x), shape, _image(dy)).view(shape[:2])


def _image(rows: Tensor) -> Tensor:
    """(M, C) -> (1, C, M, 1), channels last: a view."""
    return rows[None, :, None].permute(0, 3, 1, 2)


def _rows(image: Tensor) -> Tensor:
    """(1, C, M, 1) -> (M, C): a view of a channels-last image."""
    return image.permute(0, 2, 3, 1).reshape(image.shape[2], image.shape[1])
