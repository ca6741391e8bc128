"""Who reads the tokens of a generation: the decode engine, or the model itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from minigpt_ext.backend import OPS, implementation

if TYPE_CHECKING:
    from minigpt_ext.decoder import Decoder
    from minigpt_ext.model import GPT, KVCache


# Tokens to make from which on the engine pays: packing takes the time of some steps of the model itself. It came out
# even at 6 to 11 tokens with `tiny`, 2 to 5 with `medium` and 2 to 6 with `gpt2`, after short and long prompts, on one
# thread and on two; but with `gpt2` near 24 where the half gigabyte was the first that a virtual machine asked for,
# which took a second.
WORTH_PACKING = 16


def reader_of(model: GPT | Decoder, weights: str | None, n_tokens: int, cache: KVCache | None = None) -> GPT | Decoder:
    """What has ``new_cache`` and ``next_logits``: the model, a Decoder made of it now, or the one that was given.

    n_tokens: how many are to be made.

    Raises:
        TypeError, ValueError: model is neither, or cannot be read with the weights asked for.
    """
    from minigpt_ext.decoder import FORMATS, Decoder
    from minigpt_ext.model import GPT

    if isinstance(model, Decoder):
        if weights not in (None, model.weights):
            raise ValueError(f"weights must be None or the decoder's own, {model.weights!r}, not {weights!r}")
        return model
    if not isinstance(model, GPT):
        raise TypeError(f"model must be a GPT or a Decoder, not {type(model).__name__}")
    if weights not in (None, "model", *FORMATS):
        raise ValueError(f"weights must be None, model, {', '.join(FORMATS)}, not {weights!r}")
    if weights == "model":
        return model
    fits = cache is None or cache.k[0].dtype in (model.wte.weight.dtype, torch.int8)  # else only the engine reads it
    if weights is None and n_tokens < WORTH_PACKING and fits:
        return model
    obstacle = _obstacle(model)
    if weights is not None:
        if obstacle:
            raise ValueError(f"weights={weights!r} is for the decode engine, and {obstacle}")
        return Decoder(model, weights)
    if obstacle or {parameter.dtype for parameter in model.parameters()} != {torch.float32}:
        return model
    return Decoder(model)


def _obstacle(model: Any) -> str | None:
    """Why the engine cannot stand for the model, in words for a person; None where it can."""
    from minigpt_ext.model import GPT

    device = next((each.device for each in model.parameters() if each.device.type != "cpu"), torch.device("cpu"))
    if device.type != "cpu":
        return f"that runs on the CPU; the model is on {device}"
    if other := [op for op in OPS if implementation(op, device) != "kernels"]:
        return f"another backend than the kernels is chosen for {', '.join(other)}"
    if torch.is_autocast_enabled("cpu"):
        return "it knows no autocast"
    if type(model) is not GPT:
        return f"the model is a {type(model).__name__}, which may compute something else than a GPT"
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"it would not call the forward hooks of {name or 'the model'}"
        if "forward" in vars(module):
            return f"it would not call the forward method that {name or 'the model'} was given"
    with torch.device("meta"):
        plain = GPT(model.config)
    if _shapes(model) != _shapes(plain):
        return "the model has other parameters than its config says"
    return None


def _shapes(model: GPT) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


@contextlib.contextmanager
def on_one_thread(device: torch.device) -> Iterator[None]:
    """Sampling on a CPU is too little to share, and torch's workers, once woken, would take the engine's cores."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
