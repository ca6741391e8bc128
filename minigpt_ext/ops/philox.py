"""Philox4x32-10 in torch's integer ops: the reference for the kernels' dropout masks (csrc/common/philox.h)."""

import math

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def _high_low(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    product = b * a  # wraps modulo 2^64, which leaves both words right
    return (product >> 32) & _WORD, product & _WORD


def philox(seed: int | Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of 32 bits (in int64 tensors) for each counter (c0, c1, c2, c3) under the key `seed` (64 bits)."""
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        a_high, a_low = _high_low(0xD2511F53, c0)
        b_high, b_low = _high_low(0xCD9E8D57, c2)
        c0, c1, c2, c3 = b_high ^ c1 ^ k0, b_low, a_high ^ c3 ^ k1, a_low
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def attention_keep_mask(
    seed: int | Tensor, B: int, H: int, T: int, S: int, dropout_p: float, device: torch.device
) -> Tensor:
    """(B, H, T, S), True where dropout keeps a probability: by word j % 4 of the counter (j // 4, i, b * H + h, 0)."""
    head, query = torch.arange(B * H, device=device), torch.arange(T, device=device)
    group = torch.arange((S + 3) // 4, device=device)
    counters = torch.broadcast_tensors(group, query[:, None], head[:, None, None], torch.zeros_like(group))
    words = torch.stack(philox(seed, *counters), dim=-1).reshape(B, H, T, -1)[..., :S]
    return words >= dropout_threshold(dropout_p)


def dropout_keep_mask(seed: int | Tensor, shape: tuple[int, ...], p: float, device: torch.device) -> Tensor:
    """Of `shape`, True where the op dropout keeps element i: by word i % 4 of the counter (i // 4, 0, 0, 1)."""
    n = math.prod(shape)
    group = torch.arange((n + 3) // 4, device=device)
    zero = torch.zeros_like(group)
    words = torch.stack(philox(seed, group & _WORD, group >> 32, zero, zero + 1), dim=-1).flatten()[:n]
    return (words >= dropout_threshold(p)).view(shape)


def dropout_threshold(dropout_p: float) -> int:
    """Words below it are dropped."""
    return min(int(dropout_p * 2.0**32), _WORD)
