"""SwiGLU, the gated linear unit with SiLU as its gate (Shazeer, 2020, arXiv:2002.05202)."""

import torch
from torch import Tensor

from ..backend import implementation, library
from .devices import check_same_device


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up, with gate the first and up the second half of the last dimension; silu(g) = g / (1 + e^(-g)).

    x: (..., 2 F), float32, bfloat16, float16 or float64, as one projection to both makes it. A tensor that is not
        contiguous is copied into one that is.
    Returns (..., F) of x's dtype. Differentiable once. A gate of -infinity gives 0.
    Raises RuntimeError for another dtype, and for a last dimension that is odd or empty.
    """
    kernels = implementation("swiglu", x.device)
    if kernels == "torch":
        return swiglu_reference(x)
    return SwigluFunction.apply(x, kernels)


def swiglu_reference(x: Tensor) -> Tensor:
    """The formula, in torch ops of any precision."""
    gate, up = x.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


class SwigluFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, kernels: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kernels = kernels
        return library(kernels).swiglu_forward(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor, None]:
        return library(ctx.kernels).swiglu_backward(dy, *ctx.saved_tensors), None


@torch.library.register_fake("minigpt::swiglu_forward")
def _(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


@torch.library.register_fake("minigpt::swiglu_backward")
def _(dy: Tensor, x: Tensor) -> Tensor:
    check_same_device("swiglu", x=x, dy=dy)
    return torch.empty_like(x, memory_format=torch.contiguous_format)
