"""How the next token is chosen from logits (B, V): pure functions, ids (B,) int64 out."""

import math
from typing import Any

import torch
from torch import Tensor


def greedy(logits: Tensor) -> Tensor:
    """The likeliest id of each row; the first of equals."""
    return logits.argmax(dim=-1)


def sample(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """One id a row, drawn from softmax(logits / temperature) over the top_k likeliest ids.

    One uniform number a row is drawn on the CPU and looked up in the cumulated probabilities, so that a seed gives the
    same text on every device whose logits agree.

    Args:
        logits: (B, V), any floating dtype.
        temperature: 0 is :func:`greedy`; below 1 sharpens, above 1 flattens.
        top_k: how many ids to choose from; all by default, and where there are fewer.
        generator: a CPU generator; torch's default one if None.

    Raises:
        ValueError: temperature or top_k is out of range.
    """
    check_sampling(temperature, top_k)
    if temperature == 0:
        return greedy(logits)
    logits = logits.float()
    ids = None
    if top_k is not None and top_k < logits.shape[-1]:
        logits, ids = logits.topk(top_k, dim=-1)
    # The largest becomes 0 before it is divided: then no temperature, however small, makes inf - inf.
    logits = logits - logits.amax(dim=-1, keepdim=True)
    cumulated = (logits / max(temperature, torch.finfo(torch.float32).tiny)).softmax(dim=-1).cumsum(dim=-1)
    # 1 - u lies in (0, 1]: the first id whose cumulated probability reaches it has a probability above 0.
    uniform = 1 - torch.rand(logits.shape[0], 1, generator=generator, device="cpu")
    chosen = torch.searchsorted(cumulated, uniform.to(logits.device) * cumulated[:, -1:])
    return (chosen if ids is None else ids.gather(-1, chosen)).squeeze(-1)


def check_sampling(temperature: Any, top_k: Any) -> None:
    """Raise ValueError unless temperature is a finite number >= 0 and top_k None or a positive integer."""
    number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
    if not number or not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be a finite number, 0 (greedy) or more, not {temperature!r}")
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
        raise ValueError(f"top_k must be a positive integer or None, not {top_k!r}")
