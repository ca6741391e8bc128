"""RMSNorm over the last dimension (Zhang and Sennrich, 2019, arXiv:1910.07467), also with the addition to the residual
stream that comes before it."""

import torch
from torch import Tensor

from ..backend import implementation, library
from .devices import check_same_device


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, the mean taken over the last dimension.

    x: (..., C), float32, bfloat16, float16 or float64. Heads (B, T, H, D) of a packed projection are read where they
        lie, and whatever has a contiguous last dimension and others that join to two at most; the rest is copied.
    weight: (C,), of x's dtype, or float32 with a bfloat16 or float16 x (as under autocast).
    Returns a contiguous tensor of x's shape and dtype. All is computed in float32 (float64 for float64) and rounded
    once, at the end; Hugging Face's Llama rounds x / sqrt(...) to x's dtype before it multiplies by the weight.
    Differentiable once in x and weight. Raises RuntimeError naming the argument for a wrong shape, dtype or device.
    """
    kernels = implementation("rms_norm", x.device)
    if kernels == "torch":
        return torch.nn.functional.rms_norm(x.to(weight.dtype), weight.shape, weight, eps).to(x.dtype)
    return RmsNormFunction.apply(x, weight, eps, kernels)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """The formula, in torch ops of any precision."""
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def residual_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """s = residual + x and y = rms_norm(s), in one pass, as between two parts of a transformer block.

    x: (..., C), weight: (C,), as rms_norm takes them, but x is copied where it is not contiguous.
    residual: of x's shape and dtype, or float32 with a bfloat16 or float16 x and a float32 weight (as under autocast).
    Returns (y, s), of x's shape; y of x's dtype, s of residual's. y is the norm of s as it was rounded to that dtype.
    Differentiable once in x, residual and weight; the gradients of y and s are brought together in one pass.
    Raises RuntimeError naming the argument for a wrong shape, dtype or device.
    """
    kernels = implementation("rms_norm", x.device)
    if kernels == "torch":
        s = residual + x
        return rms_norm(s, weight, eps).to(x.dtype), s
    return ResidualRmsNormFunction.apply(x, residual, weight, eps, kernels)


def residual_rms_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """The formula, in torch ops of any precision."""
    s = residual + x
    return rms_norm_reference(s, weight, eps), s


class RmsNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float, kernels: str) -> Tensor:
        y, rstd = library(kernels).rms_norm_forward(x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        ctx.kernels = kernels
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *library(ctx.kernels).rms_norm_backward(dy, *ctx.saved_tensors), None, None


class ResidualRmsNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, residual: Tensor, weight: Tensor, eps: float, kernels: str) -> tuple[Tensor, Tensor]:
        y, s, rstd = library(kernels).residual_rms_norm_forward(x, residual, weight, eps)
        ctx.save_for_backward(s, weight, rstd)
        ctx.set_materialize_grads(False)
        ctx.dtype, ctx.kernels = x.dtype, kernels
        return y, s

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor | None, ds: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:  # of s alone
            return None if ds is None else ds.to(ctx.dtype), ds, None, None, None
        dx, dresidual, dweight = library(ctx.kernels).residual_rms_norm_backward(dy, ds, *ctx.saved_tensors)
        # Where both have one dtype it is one tensor, as torch's own addition hands on one.
        same = ctx.saved_tensors[0].dtype == ctx.dtype
        return dx, dx if same else dresidual, dweight, None, None


@torch.library.register_fake("minigpt::rms_norm_forward")
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    check_same_device("rms_norm", x=x, weight=weight)
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape), x.new_empty(x.numel() // x.shape[-1], dtype=statistics)


@torch.library.register_fake("minigpt::rms_norm_backward")
def _(dy: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    check_same_device("rms_norm", x=x, weight=weight, dy=dy, rstd=rstd)
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


@torch.library.register_fake("minigpt::residual_rms_norm_forward")
def _(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    check_same_device("residual_rms_norm", x=x, residual=residual, weight=weight)
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    s = torch.empty_like(residual, memory_format=torch.contiguous_format)
    return x.new_empty(x.shape), s, x.new_empty(x.numel() // x.shape[-1], dtype=statistics)


@torch.library.register_fake("minigpt::residual_rms_norm_backward")
def _(dy: Tensor, ds: Tensor | None, s: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    check_same_device("residual_rms_norm", dy=dy, ds=ds, s=s, weight=weight, rstd=rstd)
    dx = torch.empty_like(dy, memory_format=torch.contiguous_format)
    return dx, s.new_empty(0 if s.dtype == dy.dtype else s.shape), weight.new_empty(weight.shape)
