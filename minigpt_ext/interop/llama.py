"""The files of Llama 2 and 3, Mistral, Qwen2, Qwen3 and their like (SmolLM calls itself a llama).

They share names and layouts of tensors; they differ in biases (Qwen2: on queries, keys and values), normalised queries
and keys (Qwen3), windows (Mistral: one for all layers; Qwen: some layers), and in defaults. Their rotations pair dim i
with dim i + D/2, as ours do, so that no row moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minigpt_ext.model import GPTConfig
from minigpt_ext.model.config import MAX_HEAD_DIM

from .fields import MAX_IDS, MAX_LAYERS, OTHER_MODELS, Fields, divided
from .rope import rope_of
from .rules import HEAD, Family, Rule
from .safetensors_header import shown

ACTIVATIONS = {"silu": "swiglu", "swish": "swiglu"}  # of the gate
BIASES = {(True, True): True, (True, False): "attention", (False, True): "mlp", (False, False): False}
LAYER_TYPES = ("full_attention", "sliding_attention")  # at the place that tells whether a window slides


def config_of(values: Mapping[str, Any]) -> GPTConfig:
    """The config that the ``config.json`` of a Llama-like model describes.

    Dropout is not read: it is a setting of a training, and the loaded model has none.

    Raises:
        ValueError: a field is missing, of the wrong type or out of range, or asks for what our model does not compute.
    """
    fields = Fields(values)
    kind = values["model_type"]
    fields.none_of(**OTHER_MODELS)
    n_layer = fields.integer("num_hidden_layers", limit=MAX_LAYERS)
    n_head = fields.integer("num_attention_heads")
    n_embd = fields.integer("hidden_size")
    block_size = fields.integer("max_position_embeddings", limit=MAX_IDS)
    return GPTConfig(
        vocab_size=fields.integer("vocab_size", limit=MAX_IDS),
        block_size=block_size,
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        head_dim=_head_dim(fields, kind, n_embd, n_head),
        bias=_bias(fields, kind),
        norm="rms_norm",
        norm_epsilon=fields.number("rms_norm_eps", default=1e-6),
        activation=fields.choice("hidden_act", among=ACTIVATIONS, default="silu"),
        mlp_width=fields.integer("intermediate_size"),
        n_kv_head=_n_kv_head(fields, n_head),
        window=_window(fields, kind, n_layer),
        qk_norm=kind == "qwen3",
        positions="rope",
        tied_head=fields.flag("tie_word_embeddings", False),
        **rope_of(fields, block_size),
    )


def _head_dim(fields: Fields, kind: str, n_embd: int, n_head: int) -> int:
    head_dim = fields.integer("head_dim", default=128 if kind == "qwen3" else None, limit=MAX_HEAD_DIM)
    if head_dim is None:
        head_dim = divided("hidden_size", n_embd, "num_attention_heads", n_head)
    if head_dim % 2:
        raise ValueError(f"head_dim must be even, since dims rotate in pairs, not {head_dim}")
    return head_dim


def _n_kv_head(fields: Fields, n_head: int) -> int:
    n_kv_head = fields.integer("num_key_value_heads", default=n_head)
    if n_head % n_kv_head:
        raise ValueError(f"num_key_value_heads must divide num_attention_heads {n_head}, and {n_kv_head} does not")
    return n_kv_head


def _bias(fields: Fields, kind: str) -> bool | str:
    if kind == "qwen2":
        return "qkv"
    if kind == "mistral":
        return False
    return BIASES[fields.flag("attention_bias", False), kind == "llama" and fields.flag("mlp_bias", False)]


def _window(fields: Fields, kind: str, n_layer: int) -> int | None | list[int | None]:
    """The window of all layers, or a list of every layer's."""
    window, slides = None, [False] * n_layer
    if kind == "llama":
        fields.none_of(
            sliding_window="models of type llama see all; those of type mistral, qwen2 and qwen3 have windows"
        )
    elif kind == "mistral":
        window = _window_size(fields)
        slides = [window is not None] * n_layer
    elif fields.flag("use_sliding_window", False):
        window = _window_size(fields)
        first = fields.integer("max_window_layers", default=28, least=0)
        slides = [window is not None and layer >= first for layer in range(n_layer)]
    name, kinds = fields.get("layer_types", default=[LAYER_TYPES[slide] for slide in slides])
    if not isinstance(kinds, list) or len(kinds) != n_layer:
        raise ValueError(f"{name} must be a list with an entry a layer, {n_layer} of them (num_hidden_layers)")
    for layer, layer_type in enumerate(kinds):
        if layer_type not in LAYER_TYPES:
            raise ValueError(f"{name}: layer {layer} is {shown(layer_type)}; supported are {', '.join(LAYER_TYPES)}")
        if layer_type == LAYER_TYPES[True] and window is None:
            raise ValueError(f"{name}: layer {layer} is {layer_type}, and no sliding_window is in use")
        if layer_type != LAYER_TYPES[slides[layer]] and kind == "mistral":
            raise ValueError(
                f"{name}: layer {layer} is {layer_type}, and in models of type mistral all have the window"
            )
    windows = [window if layer_type == LAYER_TYPES[True] else None for layer_type in kinds]
    return windows if len(set(windows)) > 1 else windows[0]


def _window_size(fields: Fields) -> int | None:
    """null is no window; a config in which the field is not there is from before there was a choice."""
    return fields.integer("sliding_window", default=None if "sliding_window" in fields.values else 4096, limit=MAX_IDS)


def _rules() -> dict[str, Rule]:
    rules = {
        "wte.weight": Rule(("embed_tokens.weight",)),
        "h.{n}.ln_1.weight": Rule(("layers.{n}.input_layernorm.weight",)),
        "h.{n}.attn.q_norm.weight": Rule(("layers.{n}.self_attn.q_norm.weight",)),
        "h.{n}.attn.k_norm.weight": Rule(("layers.{n}.self_attn.k_norm.weight",)),
        "h.{n}.ln_2.weight": Rule(("layers.{n}.post_attention_layernorm.weight",)),
        "ln_f.weight": Rule(("norm.weight",)),
        HEAD: Rule((HEAD,)),
    }
    for kind in ("weight", "bias"):
        qkv = tuple(f"layers.{{n}}.self_attn.{name}_proj.{kind}" for name in "qkv")
        rules[f"h.{{n}}.attn.c_attn.{kind}"] = Rule(qkv, rows=_qkv_rows)
        rules[f"h.{{n}}.attn.c_proj.{kind}"] = Rule((f"layers.{{n}}.self_attn.o_proj.{kind}",))
        gate_up = tuple(f"layers.{{n}}.mlp.{name}_proj.{kind}" for name in ("gate", "up"))
        rules[f"h.{{n}}.mlp.c_fc.{kind}"] = Rule(gate_up, rows=_gate_up_rows)
        rules[f"h.{{n}}.mlp.c_proj.{kind}"] = Rule((f"layers.{{n}}.mlp.down_proj.{kind}",))
    return rules


def _qkv_rows(config: GPTConfig) -> list[int]:
    return [heads * config.head_dim for heads in (config.n_head, config.n_kv_head, config.n_kv_head)]


def _gate_up_rows(config: GPTConfig) -> list[int]:
    return [config.mlp_width] * 2


LLAMA = Family(
    name="llama",
    prefix="model.",
    rules=_rules(),
    config_of=config_of,
    skipped={
        "layers.{n}.self_attn.rotary_emb.inv_freq": "the frequencies of the rotations: they follow from the config",
        "rotary_emb.inv_freq": "the frequencies of the rotations: they follow from the config",
    },
)
