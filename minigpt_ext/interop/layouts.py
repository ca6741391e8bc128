"""Which of the layouts other programs know holds a given model: GPT-2's, Llama's, Mistral's, Qwen2's or Qwen3's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from minigpt_ext.model import GPT, GPTConfig

from .rules import Family, Part, shapes_of

# The biases that a layout has where a model has these. What a model lacks is written as zeros, which add nothing.
_MORE_BIASES: dict[str, dict[bool | str, bool | str]] = {
    "gpt2": dict.fromkeys((False, "qkv", "attention", "mlp"), True),
    "qwen2": {False: "qkv"},
    "qwen3": {"qkv": "attention"},
}


def layout_of(config: GPTConfig) -> str:
    """The "model_type" of a model that computes the same in the library `transformers`.

    Raises:
        ValueError: there is none; the message names the fields that stand in the way.
    """
    not_gpt2, not_llama = _not_gpt2(config), _not_llama(config)
    if not not_gpt2:
        return "gpt2"
    if not_llama:
        name, reasons = min(("GPT-2's", not_gpt2), ("Llama's", not_llama), key=lambda entry: len(entry[1]))
        raise ValueError(f"no known layout holds this model. The nearest is {name}, and {'; '.join(reasons)}")
    if config.qk_norm:
        return "qwen3"
    if not window_sizes(config):
        return "qwen2" if config.bias == "qkv" else "llama"
    everywhere = not isinstance(config.window, tuple) or None not in config.window
    return "mistral" if everywhere and config.bias is False else "qwen2"


def written_config(config: GPTConfig) -> GPTConfig:
    """`config` with all the biases that its layout has."""
    return replace(config, bias=_MORE_BIASES.get(layout_of(config), {}).get(config.bias, config.bias))


def written_tensors(model: GPT, family: Family) -> Iterator[tuple[Part, Tensor]]:
    """Every tensor of a file of `family` and its values: a view of the model's, or zeros for a bias it lacks."""
    config = written_config(model.config)
    shapes = shapes_of(config)
    own = model.state_dict()
    for part in family.parts(config):
        parameter = own.get(part.ours)
        if parameter is None:
            parameter = torch.zeros(shapes[part.ours], dtype=model.wte.weight.dtype)
        yield part, part.view(parameter)


def window_sizes(config: GPTConfig) -> set[int]:
    """The windows that layers have."""
    return {size for size in map(config.window_of, range(config.n_layer)) if size is not None}


def _not_gpt2(config: GPTConfig) -> list[str]:
    reasons = _other_fields(config, norm=["layer_norm"], positions=["learned"], qk_norm=[False], **_NO_SOFTCAPS)
    reasons += _other_fields(config, activation=["gelu_tanh", "gelu", "relu_squared"], n_kv_head=[config.n_head])
    if config.head_dim * config.n_head != config.n_embd:
        reasons.append(f"head_dim is {config.head_dim}, and in that layout it is n_embd / n_head")
    if window_sizes(config):
        reasons.append(f"window is {config.window}, and in that layout it is None")
    return reasons


def _not_llama(config: GPTConfig) -> list[str]:
    reasons = _other_fields(config, norm=["rms_norm"], activation=["swiglu"], positions=["rope"], **_NO_SOFTCAPS)
    if config.rope_dim not in (None, config.head_dim):
        reasons.append(f"rope_dim is {config.rope_dim}, and in that layout it is head_dim, {config.head_dim}")
    if config.head_dim % 2:
        reasons.append(f"head_dim is {config.head_dim}, and in that layout it is even")
    sizes = window_sizes(config)
    if len(sizes) > 1:
        reasons.append(f"window has the sizes {', '.join(map(str, sorted(sizes)))}, and in that layout it has one")
    if config.qk_norm:
        reasons += _other_fields(config, "with qk_norm", bias=[False, "qkv", "attention"])
    elif sizes:
        reasons += _other_fields(config, "with a window", bias=[False, "qkv"])
    return reasons


_NO_SOFTCAPS = {"attention_softcap": [None], "logit_softcap": [None]}


def _other_fields(config: GPTConfig, where: str = "in that layout", **allowed: list) -> list[str]:
    """What to say of each field that has none of the values allowed."""
    return [
        f"{name} is {getattr(config, name)!r}, and {where} it is {' or '.join(map(repr, values))}"
        for name, values in allowed.items()
        if getattr(config, name) not in values
    ]
