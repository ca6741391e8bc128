"""Dropout (Srivastava et al., 2014, JMLR 15), with the addition to the residual stream that follows it."""

import torch
from torch import Tensor

from ..backend import implementation, library
from .devices import check_same_device
from .philox import dropout_keep_mask


def dropout(x: Tensor, p: float, seed: int | Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """Each element of x set to 0 with probability p, the others times 1 / (1 - p); residual, if any, added to that.

    x: any shape, float32, bfloat16, float16 or float64. A tensor that is not contiguous is copied into one that is.
    p: in [0, 1).
    seed: an int, or a one-element int64 tensor on x's device; drawn from torch's default generator if None. Which
        elements are dropped depends on the seed and on their index alone: the same on every device.
    residual: of x's shape and dtype, or float32 with a bfloat16 or float16 x (as under autocast).
    Returns a tensor of x's shape, of residual's dtype (x's without one). Differentiable once in x and residual; the
    backward makes the mask anew, so that none is kept.
    Raises ValueError or RuntimeError naming the argument for a wrong p, shape, dtype or device.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout: p must be in [0, 1), got {p}")
    kernels = implementation("dropout", x.device)
    if kernels == "torch" and seed is None:
        dropped = torch.nn.functional.dropout(x, p)
        return dropped if residual is None else residual + dropped
    if kernels == "torch":
        out_dtype = x.dtype if residual is None else residual.dtype
        return dropout_reference(x, p, seed, residual).to(out_dtype)
    if seed is None:
        seed = torch.randint(2**63 - 1, (1,), device=x.device)
    elif isinstance(seed, int):
        seed = torch.full((1,), seed, dtype=torch.int64, device=x.device)
    return DropoutFunction.apply(x, p, seed, residual, kernels)


def dropout_reference(x: Tensor, p: float, seed: int | Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """The formula, in torch ops of any precision. It needs a seed."""
    keep = dropout_keep_mask(seed, tuple(x.shape), p, x.device)
    dropped = torch.where(keep, x / (1 - p), 0)
    return dropped if residual is None else residual + dropped


class DropoutFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, p: float, seed: Tensor, residual: Tensor | None, kernels: str) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.p, ctx.dtype, ctx.has_residual, ctx.kernels = p, x.dtype, residual is not None, kernels
        return library(kernels).dropout(x, residual, p, seed, x.dtype if residual is None else residual.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dout: Tensor) -> tuple[Tensor | None, ...]:
        dx = library(ctx.kernels).dropout(dout, None, ctx.p, *ctx.saved_tensors, ctx.dtype)
        return dx, None, None, dout if ctx.has_residual else None, None


@torch.library.register_fake("minigpt::dropout")
def _(x: Tensor, residual: Tensor | None, p: float, seed: Tensor, dtype: torch.dtype) -> Tensor:
    check_same_device("dropout", x=x, residual=residual, seed=seed)
    return x.new_empty(x.shape, dtype=dtype)
