"""GPT-2's files: its config.json as a GPTConfig, and its tensors as our parameters.

Our parameters have GPT-2's names. Its matrices are (in, out), since its linear layers were written as convolutions of
width 1 (Conv1D), and its oldest files hold the causal mask of every layer as a tensor: 160 tensors for the smallest
model, 12 of them masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minigpt_ext.model import GPTConfig

from .fields import MAX_IDS, MAX_LAYERS, OTHER_MODELS, Fields, divided
from .rules import HEAD, Family, Rule

# gelu_new, gelu_fast and gelu_pytorch_tanh are three spellings of one formula.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu2": "relu_squared",
}


def config_of(values: Mapping[str, Any]) -> GPTConfig:
    """The config that a GPT-2's ``config.json`` describes.

    Dropout is not read: it is a setting of a training, and the loaded model has none.

    Raises:
        ValueError: a field is missing, of the wrong type or out of range, or asks for what our model does not compute.
    """
    fields = Fields(values)
    n_layer = fields.integer("n_layer", "num_hidden_layers", limit=MAX_LAYERS)
    n_head = fields.integer("n_head", "num_attention_heads")
    n_embd = fields.integer("n_embd", "hidden_size")
    fields.none_of(**OTHER_MODELS)
    fields.only("scale_attn_weights", True)
    fields.only("scale_attn_by_inverse_layer_idx", False)
    fields.only("add_cross_attention", False)
    # reorder_and_upcast_attn is about the precision of the scores alone, and ours are float32 in any case.
    fields.flag("reorder_and_upcast_attn", False)
    return GPTConfig(
        vocab_size=fields.integer("vocab_size", limit=MAX_IDS),
        block_size=fields.integer("n_positions", "max_position_embeddings", "n_ctx", limit=MAX_IDS),
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        head_dim=divided("n_embd", n_embd, "n_head", n_head),
        mlp_width=fields.integer("n_inner", default=4 * n_embd),
        activation=fields.choice("activation_function", among=ACTIVATIONS, default="gelu_new"),
        norm_epsilon=fields.number("layer_norm_epsilon", default=1e-5),
        tied_head=fields.flag("tie_word_embeddings", True),
    )


def _rules() -> dict[str, Rule]:
    as_is = ["wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias", HEAD]
    as_is += [f"h.{{n}}.{norm}.{kind}" for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")]
    linear = [f"h.{{n}}.{layer}" for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    as_is += [f"{name}.bias" for name in linear]
    rules = {name: Rule((name,)) for name in as_is}
    return rules | {f"{name}.weight": Rule((f"{name}.weight",), transposed=True) for name in linear}


GPT2 = Family(
    name="gpt2",
    prefix="transformer.",
    rules=_rules(),
    config_of=config_of,
    skipped={
        "h.{n}.attn.bias": "the causal mask: a constant",
        "h.{n}.attn.masked_bias": "what a masked score is set to: a constant",
    },
)
