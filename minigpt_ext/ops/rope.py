"""Rotary position embedding (RoPE; Su et al., 2021, arXiv:2104.09864)."""

import torch
from torch import Tensor

from ..backend import implementation, library
from .devices import check_same_device


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, positions: Tensor | None = None) -> Tensor:
    """Rotates queries or keys by their positions' angles, in pairs (i, i + R/2) of the first R dimensions of a head:

        y[i] = x[i] cos[p, i] - x[i + R/2] sin[p, i]        y[i + R/2] = x[i + R/2] cos[p, i] + x[i] sin[p, i]

    the half-split form of GPT-NeoX and of Llama in Hugging Face's layout. Dimensions R ... D - 1 pass through.

    x: (B, T, H, D), float32, bfloat16, float16 or float64. A view of a packed projection is read where it lies; only a
        tensor whose last dimension is not contiguous is copied.
    cos, sin: (n_positions, R/2), R <= D, float32 (float64 for float64 x): what is computed in. Not differentiable.
    positions: (B, T) int32, each token's p. None: token t of each sequence stands at position t, and T <= n_positions.
    Returns a contiguous (B, T, H, D) of x's dtype. Differentiable once in x: the gradient is rotated back.
    Raises RuntimeError naming the argument for a wrong shape, dtype or device, for cos or sin that requires a gradient,
    and on the CPU for a position out of range; a GPU's kernel writes zeros for such a token, unless MINIGPT_CHECK=1 has
    positions checked there too, which waits for the device.
    """
    if cos.requires_grad or sin.requires_grad:
        raise RuntimeError("rope: cos and sin must not require gradients: they are tables, and get none")
    kernels = implementation("rope", x.device)
    if kernels == "torch":
        return rope_reference(x, cos, sin, positions=positions)
    return RopeFunction.apply(x, cos, sin, positions, kernels)


def rope_reference(x: Tensor, cos: Tensor, sin: Tensor, *, positions: Tensor | None = None) -> Tensor:
    """The formula, in torch ops of any precision."""
    half = cos.shape[-1]
    x1, x2, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
    rows = slice(x.shape[1]) if positions is None else positions.long()
    c, s = cos[rows].unsqueeze(-2), sin[rows].unsqueeze(-2)  # (T, 1, R/2) or (B, T, 1, R/2): the same for all heads
    return torch.cat([(x1 * c - x2 * s).to(x.dtype), (x2 * c + x1 * s).to(x.dtype), rest], -1)


class RopeFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, kernels: str) -> Tensor:
        ctx.save_for_backward(cos, sin, positions)
        ctx.kernels = kernels
        return library(kernels).rope(x, cos, sin, positions, False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        return library(ctx.kernels).rope(dy, *ctx.saved_tensors, True), None, None, None, None


@torch.library.register_fake("minigpt::rope")
def _(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, inverse: bool) -> Tensor:
    check_same_device("rope", x=x, cos=cos, sin=sin, positions=positions)
    return x.new_empty(x.shape)
