"""The loop of generation: prefill the prompt once, then decode one token a step through the key/value cache.

On a CPU the steps are the decode engine's (minigpt_ext.decoder), unless the model is to do them itself, op by op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minigpt_ext.profiling.ranges import part

from .engine import on_one_thread, reader_of
from .sampling import check_sampling, sample

if TYPE_CHECKING:
    from minigpt_ext.decoder import Decoder
    from minigpt_ext.model import GPT, KVCache


def stream(
    model: GPT | Decoder,
    ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int | None = None,
    cache: KVCache | None = None,
    n_ids: int | None = None,
    weights: str | None = None,
) -> Iterator[Tensor]:
    """Yield the ids that follow a prompt, (B,) int64 on the model's device, each as soon as it is known.

    The prompt is read in one call, then every new token costs one call of one token. Past block_size: when the context
    is full, its last ``block_size // 2`` tokens (one at least) are prefilled anew into the emptied cache, and decoding
    goes on. Of a prompt longer than block_size the last block_size tokens are read.

    The model is in evaluation mode until the iterator is exhausted or closed, and then as it was before.

    On a CPU this call packs the weights for the decode engine: the copy takes the time of some of the model's own steps
    and goes when the iterator does. Whoever generates often makes one ``Decoder(model)`` and gives it in the
    model's place. The model steps itself, op by op, where fewer than 16 tokens are asked for; on other devices; where
    ``backend`` or MINIGPT_BACKEND asks for other ops than the kernels; under autocast; where its parameters are not
    float32; and where it is more than a plain GPT (a subclass, hooks).

    Args:
        model: the GPT, or a Decoder of it.
        ids: (B, T) int64 or int32, T >= 1, on the model's device.
        max_new_tokens: how many ids to yield.
        temperature: 0 is greedy, 1 the model's own distribution.
        top_k: choose among the k likeliest ids only; all by default.
        seed: of the draws, the same on every device; by default they come from torch's default CPU generator.
        cache: a KVCache to use in place of a new one, of ``model.new_cache(B)`` (with dtype=torch.int8, for one that
            takes little over a quarter of the memory) or, also in bfloat16, of ``Decoder.new_cache``; it is emptied
            first, and its max_tokens stand for block_size in the policy above.
        n_ids: only ids below this are drawn: how many a tokenizer has, where the model's vocabulary was rounded up.
        weights: of the engine: "fp32" (the same logits within 1e-4 of the largest), or "bf16", "int8", "int4" (less to
            read, faster, less exact; see :class:`Decoder`); "model" for the model itself. By default "fp32" where the
            engine can stand for the model, else "model".

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range; raised by this call, not by the first
            step. (Ids out of range are named by the first step.)
    """
    from minigpt_ext.model import KVCache

    if not isinstance(ids, Tensor):
        raise TypeError(f"ids must be a tensor, not {type(ids).__name__}")
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"ids must be int64 or int32, not {ids.dtype}")
    if ids.ndim != 2 or ids.numel() == 0:
        raise ValueError(f"ids must be (B, T) with one token at least to go on from, not {tuple(ids.shape)}")
    _check_integer("max_new_tokens", max_new_tokens)
    if seed is not None:
        _check_integer("seed", seed)
    check_sampling(temperature, top_k)
    if n_ids is not None and (not isinstance(n_ids, int) or isinstance(n_ids, bool) or n_ids < 1):
        raise ValueError(f"n_ids must be a positive integer or None, not {n_ids!r}")
    if cache is not None and not isinstance(cache, KVCache):
        raise TypeError(f"cache must be a KVCache, as model.new_cache makes them, or None, not {type(cache).__name__}")
    if cache is not None and cache.batch_size != ids.shape[0]:
        raise ValueError(f"cache is for {cache.batch_size} sequences, and ids holds {ids.shape[0]}")
    reader = reader_of(model, weights, max_new_tokens, cache)
    if cache is None:
        # the last new token is not fed back
        n_tokens = ids.shape[1] + max(max_new_tokens, 1) - 1
        cache = reader.new_cache(ids.shape[0], min(n_tokens, model.config.block_size))
    return _steps(model, reader.next_logits, ids, max_new_tokens, temperature, top_k, seed, cache, n_ids)


@torch.inference_mode()
def _steps(
    model: GPT | Decoder,
    next_logits: Callable[[Tensor, KVCache], Tensor],
    ids: Tensor,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int | None,
    cache: KVCache,
    n_ids: int | None,
) -> Iterator[Tensor]:
    generator = None if seed is None else torch.Generator("cpu").manual_seed(seed)
    capacity = cache.max_tokens
    training = []
    if isinstance(model, torch.nn.Module):
        training = [module for module in model.modules() if module.training]
        model.eval()
    cache.reset()
    try:
        recent = ids[:, -capacity:].long()  # the tokens a full cache may have to be filled with again
        unread = recent.shape[1]
        for _ in range(max_new_tokens):
            if cache.length + unread > capacity:
                cache.reset()
                unread = max(capacity // 2, 1)
            with part("token" if cache.length else "prefill"):
                logits = next_logits(recent[:, -unread:], cache)
                with on_one_thread(logits.device):
                    new = sample(logits[:, :n_ids], temperature, top_k, generator)
                recent = torch.cat([recent, new[:, None]], dim=1)[:, -capacity:]
            unread = 1
            yield new
    finally:
        for module in training:
            module.training = True


def generate(model: GPT | Decoder, ids: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
    """The prompt and what follows it together, (B, T + max_new_tokens) int64. Arguments and errors as :func:`stream`.

    What comes back is an ordinary tensor: it may be trained on.
    """
    steps = stream(model, ids, max_new_tokens, **options)
    n_prompt = ids.shape[1]
    tokens = torch.empty(ids.shape[0], n_prompt + max_new_tokens, dtype=torch.int64, device=ids.device)
    tokens[:, :n_prompt] = ids
    for end, new in enumerate(steps, start=n_prompt):
        tokens[:, end] = new
    return tokens


def _check_integer(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"{name} must be an integer of at least 0 and below 2**63, not {value!r}")
