"""What may be done to attention's scores between the product and the mask: a soft cap, and ALiBi's bias."""

import math

import torch
from torch import Tensor


def check_score_rule(op: str, q: Tensor, alibi_slopes: Tensor | None, softcap: float | None) -> None:
    """Raises an error that names the argument. q: (..., H, D)."""
    if softcap is not None and not (isinstance(softcap, int | float) and 1e-30 <= softcap <= 1e30):
        raise ValueError(f"{op}: softcap must be positive and finite (1e-30 ... 1e30), or None, got {softcap!r}")
    if alibi_slopes is None:
        return
    if not isinstance(alibi_slopes, Tensor):
        raise TypeError(f"{op}: alibi_slopes must be a tensor, got {type(alibi_slopes).__name__}")
    if torch.is_grad_enabled() and alibi_slopes.requires_grad:
        raise RuntimeError(f"{op}: alibi_slopes requires a gradient, and there is none; give it detached")
    wanted = accumulation_type(q.dtype)
    if (q.dim() > 1 and alibi_slopes.shape != q.shape[-2:-1]) or alibi_slopes.dtype != wanted:
        raise ValueError(
            f"{op}: alibi_slopes must be (H,) = {tuple(q.shape[-2:-1])} in {wanted}, got "
            f"{tuple(alibi_slopes.shape)} in {alibi_slopes.dtype}"
        )


def accumulation_type(dtype: torch.dtype) -> torch.dtype:
    """What kernels add up in: float32 for everything that is stored in 32 bits or fewer."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def final_scores(scores: Tensor, distance: Tensor, alibi_slopes: Tensor | None, softcap: float | None) -> Tensor:
    """The formula: softcap * tanh(scores / softcap) - alibi_slopes * distance.

    scores: (B, H, T, S), scaled. distance: (T, S), or (B, 1, T, S), from each query's position back to each key's.
    """
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if alibi_slopes is not None:
        scores = scores - alibi_slopes.to(scores.dtype)[:, None, None] * distance
    return scores


def probabilities(scores: Tensor, visible: Tensor) -> Tensor:
    """Softmax over the visible ones of the last dimension; all 0 where none is."""
    scores = scores.masked_fill(~visible, -math.inf)
    lowest, smallest = torch.finfo(scores.dtype).min, torch.finfo(scores.dtype).tiny
    highest = scores.amax(-1, keepdim=True).clamp_min(lowest) if scores.shape[-1] else scores.sum(-1, keepdim=True)
    weights = torch.exp(scores - highest)
    return weights / weights.sum(-1, keepdim=True).clamp_min(smallest)
