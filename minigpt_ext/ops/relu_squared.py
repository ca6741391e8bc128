"""Squared ReLU, the activation of Primer (So et al., 2021, arXiv:2109.08668)."""

import torch
from torch import Tensor

from ..backend import implementation, library
from .devices import check_same_device


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2 of every element.

    x: any shape; float32, bfloat16, float16 or float64. A tensor that is not contiguous is copied into one that is.
    Returns a tensor of x's shape and dtype. Differentiable once: dx = 2 max(x, 0) dy.
    Raises RuntimeError for another dtype.
    """
    kernels = implementation("relu_squared", x.device)
    if kernels == "torch":
        return relu_squared_reference(x)
    return ReluSquaredFunction.apply(x, kernels)


def relu_squared_reference(x: Tensor) -> Tensor:
    """The formula, in torch ops of any precision."""
    return torch.nn.functional.relu(x).square()


class ReluSquaredFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, kernels: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kernels = kernels
        return library(kernels).relu_squared_forward(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor, None]:
        return library(ctx.kernels).relu_squared_backward(dy, *ctx.saved_tensors), None


@torch.library.register_fake("minigpt::relu_squared_forward")
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("minigpt::relu_squared_backward")
def _(dy: Tensor, x: Tensor) -> Tensor:
    check_same_device("relu_squared backward", dy=dy, x=x)
    return torch.empty_like(x, memory_format=torch.contiguous_format)
