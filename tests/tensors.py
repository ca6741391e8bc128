"""Tensors for tests: random ones, and the same values lying in memory in unusual ways."""

import torch
from torch import Tensor


def normal(*shape: int, dtype=torch.float32, device="cpu", factor: float = 1.0) -> Tensor:
    """Normally distributed; drawn on the CPU in float32, so that every device and dtype sees the same numbers."""
    return (torch.randn(shape) * factor).to(dtype).to(device)


def unaligned(t: Tensor) -> Tensor:
    """The same values, contiguous, one element behind the start of their storage."""
    storage = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)
    return storage[1:].view(t.shape).copy_(t)


def spread(t: Tensor) -> Tensor:
    """The same values, with gaps of NaN between the rows; the last dimension stays contiguous."""
    wide = torch.full((*t.shape[:-1], t.shape[-1] + 3), float("nan"), dtype=t.dtype, device=t.device)
    return wide[..., 1 : 1 + t.shape[-1]].copy_(t)


def turned(t: Tensor) -> Tensor:
    """The same values, the last dimension not contiguous."""
    return t.transpose(-1, -2).contiguous().transpose(-1, -2)
