"""Writes a model as a GGUF file that llama.cpp runs: its tensors and what it reads of a config. See `gguf`, the format.

llama.cpp pairs the dims that rotate together as 2i and 2i + 1 in its Llama, and as i and i + D/2 in its Qwen. Ours are
the latter, so that for a Llama the rows of queries and keys change places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from minigpt_ext.model import GPTConfig
from minigpt_ext.model.positions import RopeScaling

from .gguf import GGUFTensor, Value, write_gguf
from .gguf_tokenizer import tokenizer_metadata
from .layouts import layout_of, window_sizes, written_tensors
from .rules import HEAD, Family, Rule
from .source import Source

ARCHITECTURES = {"gpt2": "gpt2", "llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_Rows = Callable[[GPTConfig], list[int]]
_FILE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}  # general.file_type, which is for people


def architecture_of(config: GPTConfig) -> str:
    """The one of llama.cpp's architectures that computes what a model of this config does.

    Raises:
        ValueError: there is none; the message names the fields that stand in the way.
    """
    architecture = ARCHITECTURES[layout_of(config)]
    scaling = config.rope_scaling
    special_rope = scaling is not None and scaling.kind == "llama3"
    if architecture == "qwen2" and (special_rope or config.n_head * config.head_dim != config.n_embd):
        architecture = "llama"  # which takes these biases too, and more besides
    reasons = []
    if narrow := [size for size in window_sizes(config) if size < config.block_size]:
        reasons.append(f"window is {narrow[0]}, and in llama.cpp a token sees all before it")
    if architecture == "gpt2" and config.activation != "gelu_tanh":
        reasons.append(f"activation is {config.activation!r}, and in llama.cpp it is 'gelu_tanh'")
    if architecture == "qwen3" and config.bias is not False:
        reasons.append(f"bias is {config.bias!r}, and in llama.cpp it is False")
    if special_rope and architecture == "qwen3":
        reasons.append("rope_scaling is of the kind 'llama3', and in llama.cpp it is 'linear' or 'yarn'")
    if scaling is not None and scaling.kind == "yarn" and not scaling.truncate:
        reasons.append("rope_scaling has truncate False, and in llama.cpp it is True")
    if reasons:
        raise ValueError(f"llama.cpp cannot run this model as its architecture {architecture}: {'; '.join(reasons)}")
    return architecture


def metadata_of(config: GPTConfig, architecture: str) -> dict[str, Value]:
    """What llama.cpp reads of a config."""
    values: dict[str, Value] = {
        "context_length": config.block_size,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.mlp_width,
        "attention.head_count": config.n_head,
        "vocab_size": config.vocab_size,
    }
    if architecture == "gpt2":
        values["attention.layer_norm_epsilon"] = float(config.norm_epsilon)
    else:
        values |= {
            "attention.head_count_kv": config.n_kv_head,
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
            "attention.layer_norm_rms_epsilon": float(config.norm_epsilon),
            "rope.dimension_count": config.head_dim,
            "rope.freq_base": float(config.rope_theta),
        }
        if config.rope_scaling is not None:
            values |= _rope_scaling(config.rope_scaling)
    return {f"{architecture}.{key}": value for key, value in values.items()}


def _rope_scaling(scaling: RopeScaling) -> dict[str, Value]:
    if scaling.kind == "llama3":
        return {}  # a tensor of its own says it
    values: dict[str, Value] = {"rope.scaling.type": scaling.kind, "rope.scaling.factor": float(scaling.factor)}
    if scaling.kind == "yarn":
        values |= {
            "rope.scaling.original_context_length": scaling.original_block_size,
            "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
            "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
            # llama.cpp multiplies the usual amplitude in by itself
            "rope.scaling.attn_factor": scaling.amplitude / (0.1 * math.log(scaling.factor) + 1.0),
        }
    return values


def tensors_of(source: Source, architecture: str) -> list[GGUFTensor]:
    """The model's tensors under llama.cpp's names: matrices in the model's dtype, vectors in float32."""
    config = source.model.config
    tensors = []
    if config.rope_scaling is not None and config.rope_scaling.kind == "llama3":
        divisors = _rope_divisors(config)
        tensors.append(GGUFTensor("rope_freqs.weight", tuple(divisors.shape), torch.float32, lambda: divisors))
    for part, values in written_tensors(source.model, GPT2 if architecture == "gpt2" else LLAMA):
        if architecture == "llama" and any(f".attn_{x}." in part.theirs for x in "qk"):
            values = _interleaved(values, config.head_dim)
        dtype = values.dtype if len(part.shape) > 1 else torch.float32
        tensors.append(GGUFTensor(part.theirs, part.shape, dtype, lambda values=values: values))
    return tensors


def _interleaved(rows: Tensor, head_dim: int) -> Tensor:
    """(heads * D, ...): row i of a head goes to 2i, row i + D/2 to 2i + 1."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _rope_divisors(config: GPTConfig) -> Tensor:
    """(D/2,): what Llama 3's scaling divides each frequency by."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    frequencies = float(config.rope_theta) ** -exponents
    return frequencies / config.rope_scaling.scaled(frequencies, config.rope_theta)


def export_gguf(source: Source, out: Path) -> list[Path]:
    """Write the model with its tokenizer and chat templates into the file `out`, wholly or not at all.

    Returns the file. Raises ValueError where llama.cpp has no architecture or no tokenizer for it, before anything is
    written; OSError as the file system does.
    """
    config = source.model.config
    architecture = architecture_of(config)
    metadata: dict[str, Value] = {
        "general.architecture": architecture,
        "general.name": source.name,
        "general.file_type": _FILE_TYPES[source.model.wte.weight.dtype],
        **metadata_of(config, architecture),
        **tokenizer_metadata(source),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(out, metadata, tensors_of(source, architecture))
    return [out]


def _rules(names: dict[str, str], split: Mapping[str, tuple[tuple[str, ...], _Rows]] = {}) -> dict[str, Rule]:
    rules = {}
    for kind in ("weight", "bias"):
        rules |= {f"{ours}.{kind}": Rule((f"{theirs}.{kind}",)) for ours, theirs in names.items()}
        for ours, (theirs, rows) in split.items():
            rules[f"{ours}.{kind}"] = Rule(tuple(f"{name}.{kind}" for name in theirs), rows=rows)
    return rules


def _qkv_rows(config: GPTConfig) -> list[int]:
    return [heads * config.head_dim for heads in (config.n_head, config.n_kv_head, config.n_kv_head)]


def _not_read(values: object) -> GPTConfig:
    raise ValueError("GGUF files are written here, and not read")


_BOTH = {
    "wte": "token_embd",
    "h.{n}.ln_1": "blk.{n}.attn_norm",
    "h.{n}.attn.c_proj": "blk.{n}.attn_output",
    "h.{n}.ln_2": "blk.{n}.ffn_norm",
    "h.{n}.mlp.c_proj": "blk.{n}.ffn_down",
    "ln_f": "output_norm",
    HEAD.removesuffix(".weight"): "output",
}
GPT2 = Family(
    name="gguf gpt2",
    prefix="",
    rules=_rules(
        _BOTH | {"wpe": "position_embd", "h.{n}.attn.c_attn": "blk.{n}.attn_qkv", "h.{n}.mlp.c_fc": "blk.{n}.ffn_up"}
    ),
    config_of=_not_read,
)
LLAMA = Family(
    name="gguf llama",
    prefix="",
    rules=_rules(
        _BOTH | {f"h.{{n}}.attn.{x}_norm": f"blk.{{n}}.attn_{x}_norm" for x in "qk"},
        {
            "h.{n}.attn.c_attn": (tuple(f"blk.{{n}}.attn_{x}" for x in "qkv"), _qkv_rows),
            "h.{n}.mlp.c_fc": (("blk.{n}.ffn_gate", "blk.{n}.ffn_up"), lambda config: [config.mlp_width] * 2),
        },
    ),
    config_of=_not_read,
)
