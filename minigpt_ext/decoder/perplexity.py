"""Perplexity of a text: what a weight format costs, in the one unit that language models are compared in."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .decoder import Decoder

_TOKENS_A_CALL = 64  # their logits are in memory at once


def perplexity(decoder: Decoder, ids: Tensor, *, cache_dtype: torch.dtype | None = None) -> float:
    """e to the mean cross-entropy, in nats a token, of ids[1], ids[2], ... each after those before it.

    Contexts do not overlap: the text is read in runs of block_size + 1 tokens, the last of one the first of the next.
    The first token of a run is read alone, so that all others see the keys and values as the cache keeps them.

    Args:
        decoder: of the model and in the format to judge.
        ids: (n,), two tokens at least, int64 or int32.
        cache_dtype: of the keys and values; as :meth:`Decoder.new_cache`.

    Raises:
        ValueError: ids has another shape, or fewer than two tokens; cache_dtype is another.
    """
    if not isinstance(ids, Tensor) or ids.ndim != 1 or len(ids) < 2:
        raise ValueError(f"ids must be a tensor (n,) of two tokens at least, not {tuple(getattr(ids, 'shape', ()))}")
    block = decoder.config.block_size
    cache = decoder.new_cache(1, min(block, len(ids)), dtype=cache_dtype)
    total = 0.0
    for begin in range(0, len(ids) - 1, block):
        run = ids[begin : begin + block + 1]
        cache.reset()
        last = len(run) - 1
        for first, end in pairwise((0, *range(1, last, _TOKENS_A_CALL), last)):
            logits = decoder.logits(run[None, first:end], cache)[0]
            total += float(F.cross_entropy(logits, run[first + 1 : end + 1].long(), reduction="sum"))
    return math.exp(total / (len(ids) - 1))
