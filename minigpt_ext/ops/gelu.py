"""GELU, the Gaussian error linear unit (Hendrycks and Gimpel, 2016, arXiv:1606.08415), also with the bias that comes
before it."""

import math

import torch
from torch import Tensor

from ..backend import implementation, library
from .devices import check_same_device


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """GELU of every element: x * Phi(x), with Phi the distribution function of the standard normal distribution.

    x: any shape; float32, bfloat16, float16 or float64. A tensor that is not contiguous is copied into one that is.
    approximate: "none" for Phi(x) = (1 + erf(x / sqrt 2)) / 2, or "tanh" for GPT-2's
        x/2 * (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
    Returns a tensor of x's shape and dtype. Differentiable once.
    Raises ValueError for another `approximate`, RuntimeError for another dtype.
    """
    _check_form("gelu", approximate)
    kernels = implementation("gelu", x.device)
    if kernels == "torch":
        return torch.nn.functional.gelu(x, approximate=approximate)
    return GeluFunction.apply(x, approximate == "tanh", kernels)


def gelu_reference(x: Tensor, approximate: str = "none") -> Tensor:
    """The formula, in torch ops of any precision."""
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * torch.special.erfc(-x / math.sqrt(2))


def bias_gelu(x: Tensor, bias: Tensor, approximate: str = "none") -> Tensor:
    """gelu(x + bias), in one pass, as behind an MLP's first matrix product.

    x: (..., C), float32, bfloat16, float16 or float64. A tensor that is not contiguous is copied into one that is.
    bias: (C,), of x's dtype, or float32 with a bfloat16 or float16 x (as under autocast).
    approximate: as gelu takes it.
    Returns a tensor of x's shape and dtype; x + bias is not rounded to it. Differentiable once in x and bias.
    Raises ValueError for another `approximate`, RuntimeError naming the argument for a wrong shape, dtype or device.
    """
    _check_form("bias_gelu", approximate)
    kernels = implementation("gelu", x.device)
    if kernels == "torch":
        return torch.nn.functional.gelu(x + bias, approximate=approximate).to(x.dtype)
    return BiasGeluFunction.apply(x, bias, approximate == "tanh", kernels)


def bias_gelu_reference(x: Tensor, bias: Tensor, approximate: str = "none") -> Tensor:
    """The formula, in torch ops of any precision."""
    return gelu_reference(x + bias, approximate)


def _check_form(op: str, approximate: str) -> None:
    if approximate not in ("none", "tanh"):
        raise ValueError(f"{op}: approximate must be 'none' or 'tanh', got {approximate!r}")


class GeluFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, tanh: bool, kernels: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.tanh, ctx.kernels = tanh, kernels
        return library(kernels).gelu_forward(x, tanh)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return library(ctx.kernels).gelu_backward(dy, x, ctx.tanh), None, None


class BiasGeluFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor, tanh: bool, kernels: str) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.tanh, ctx.kernels = tanh, kernels
        return library(kernels).bias_gelu_forward(x, bias, tanh)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *library(ctx.kernels).bias_gelu_backward(dy, *ctx.saved_tensors, ctx.tanh), None, None


@torch.library.register_fake("minigpt::gelu_forward")
def _(x: Tensor, tanh: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("minigpt::gelu_backward")
def _(dy: Tensor, x: Tensor, tanh: bool) -> Tensor:
    check_same_device("gelu backward", dy=dy, x=x)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("minigpt::bias_gelu_forward")
def _(x: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    check_same_device("bias_gelu", x=x, bias=bias)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("minigpt::bias_gelu_backward")
def _(dy: Tensor, x: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    check_same_device("bias_gelu", x=x, dy=dy, bias=bias)
    return torch.empty_like(x, memory_format=torch.contiguous_format), bias.new_empty(bias.shape)
