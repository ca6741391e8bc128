"""Interim: the reference; the room follows."""

import torch
from torch import Tensor


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, positions: Tensor | None = None) -> Tensor:
    half = cos.shape[-1]
    cos, sin = (t[: x.shape[1], None] if positions is None else t[positions][:, :, None] for t in (cos, sin))
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1).to(x.dtype)
