"""LayerNorm over the last dimension (Ba, Kiros and Hinton, 2016, arXiv:1607.06450), also with the addition to the
residual stream that comes before it."""

import torch
from torch import Tensor

from ..backend import implementation, library
from .devices import check_same_device


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, mean and variance taken over the last dimension.

    x: (..., C), float32, bfloat16, float16 or float64; a tensor that is not contiguous is copied into one that is.
    weight, bias: (C,), of x's dtype, or float32 with a bfloat16 or float16 x (as under autocast). bias may be None.
    Returns a tensor of x's shape and dtype. Mean and variance are kept in float32 (float64 for float64), the variance
    is taken in a second pass around the mean. Differentiable once in x, weight and bias.
    Raises RuntimeError naming the argument for a wrong shape, dtype or device.
    """
    kernels = implementation("layer_norm", x.device)
    if kernels == "torch":
        if weight.dtype != x.dtype:  # torch wants one dtype
            wide = torch.nn.functional.layer_norm(
                x.to(weight.dtype), weight.shape, weight, None if bias is None else bias.to(weight.dtype), eps
            )
            return wide.to(x.dtype)
        return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, eps)
    return LayerNormFunction.apply(x, weight, bias, eps, kernels)


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """The formula, in torch ops of any precision."""
    centred = x - x.mean(-1, keepdim=True)
    y = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + eps) * weight
    return y if bias is None else y + bias


def residual_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """s = residual + x and y = layer_norm(s), in one pass, as between two parts of a transformer block.

    x: (..., C), weight, bias: (C,), as layer_norm takes them.
    residual: of x's shape and dtype, or float32 with a bfloat16 or float16 x and float32 weights (as under autocast).
    Returns (y, s), of x's shape; y of x's dtype, s of residual's. y is the norm of s as it was rounded to that dtype.
    Differentiable once in x, residual, weight and bias; the gradients of y and s are brought together in one pass.
    Raises RuntimeError naming the argument for a wrong shape, dtype or device.
    """
    kernels = implementation("layer_norm", x.device)
    if kernels == "torch":
        s = residual + x
        return layer_norm(s, weight, bias, eps).to(x.dtype), s
    return ResidualLayerNormFunction.apply(x, residual, weight, bias, eps, kernels)


def residual_layer_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """The formula, in torch ops of any precision."""
    s = residual + x
    return layer_norm_reference(s, weight, bias, eps), s


class LayerNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, kernels: str) -> Tensor:
        y, mean, rstd = library(kernels).layer_norm_forward(x, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.has_bias = bias is not None
        ctx.kernels = kernels
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight, dbias = library(ctx.kernels).layer_norm_backward(dy, *ctx.saved_tensors, ctx.has_bias)
        return dx, dweight, dbias if ctx.has_bias else None, None, None


class ResidualLayerNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float, kernels: str
    ) -> tuple[Tensor, Tensor]:
        y, s, mean, rstd = library(kernels).residual_layer_norm_forward(x, residual, weight, bias, eps)
        ctx.save_for_backward(s, weight, mean, rstd)
        ctx.set_materialize_grads(False)
        ctx.dtype, ctx.has_bias, ctx.kernels = x.dtype, bias is not None, kernels
        return y, s

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor | None, ds: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:  # of s alone
            return None if ds is None else ds.to(ctx.dtype), ds, None, None, None, None
        dx, dresidual, dweight, dbias = library(ctx.kernels).residual_layer_norm_backward(
            dy, ds, *ctx.saved_tensors, ctx.has_bias
        )
        # Where both have one dtype it is one tensor, as torch's own addition hands on one.
        same = ctx.saved_tensors[0].dtype == ctx.dtype
        return dx, dx if same else dresidual, dweight, dbias if ctx.has_bias else None, None, None


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.register_fake("minigpt::layer_norm_forward")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    check_same_device("layer_norm", x=x, weight=weight, bias=bias)
    rows = x.numel() // x.shape[-1]
    mean, rstd = (x.new_empty(rows, dtype=_statistics_dtype(x)) for _ in range(2))
    return torch.empty_like(x, memory_format=torch.contiguous_format), mean, rstd


@torch.library.register_fake("minigpt::layer_norm_backward")
def _(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    check_same_device("layer_norm", x=x, weight=weight, dy=dy, mean=mean, rstd=rstd)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, weight.new_empty(weight.shape), weight.new_empty(x.shape[-1] if has_bias else 0)


@torch.library.register_fake("minigpt::residual_layer_norm_forward")
def _(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_same_device("residual_layer_norm", x=x, residual=residual, weight=weight, bias=bias)
    rows = x.numel() // x.shape[-1]
    mean, rstd = (x.new_empty(rows, dtype=_statistics_dtype(x)) for _ in range(2))
    y, s = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, residual))
    return y, s, mean, rstd


@torch.library.register_fake("minigpt::residual_layer_norm_backward")
def _(
    dy: Tensor, ds: Tensor | None, s: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_same_device("residual_layer_norm", dy=dy, ds=ds, s=s, weight=weight, mean=mean, rstd=rstd)
    dx = torch.empty_like(dy, memory_format=torch.contiguous_format)
    dresidual = s.new_empty(0 if s.dtype == dy.dtype else s.shape)
    return dx, dresidual, weight.new_empty(weight.shape), weight.new_empty(dy.shape[-1] if has_bias else 0)
