"""GELU, the Gaussian error linear unit (Hendrycks and Gimpel, 2016, arXiv:1606.08415)."""

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
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    kernels = implementation("gelu", x.device)
    if kernels == "torch":
        return torch.nn.functional.gelu(x, approximate=approximate)
    return GeluFunction.apply(x, approximate == "tanh", kernels)


def gelu_reference(x: Tensor, approximate: str = "none") -> Tensor:
    """The formula, in torch ops of any precision."""
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * torch.special.erfc(-x / math.sqrt(2))


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


@torch.library.register_fake("minigpt::gelu_forward")
def _(x: Tensor, tanh: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("minigpt::gelu_backward")
def _(dy: Tensor, x: Tensor, tanh: bool) -> Tensor:
    check_same_device("gelu backward", dy=dy, x=x)
    return torch.empty_like(x, memory_format=torch.contiguous_format)
