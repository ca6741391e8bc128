"""RoPE's settings in a Llama-like config.json, in the old spelling and the new.

Old: "rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}, or null. New: both in one object,
"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}; "default" is the type without scaling.
"""

from __future__ import annotations

import math
from typing import Any

from minigpt_ext.model import RopeScaling

from .fields import MAX_IDS, Fields
from .safetensors_header import shown

TYPES = {"default": None, "linear": "linear", "yarn": "yarn", "llama3": "llama3"}
# Of any type; "finetuned" is a remark that YaRN's first models carry.
KNOWN = {
    "type", "rope_type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings",
    "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "low_freq_factor",
    "high_freq_factor", "finetuned",
}  # fmt: skip


def rope_of(config: Fields, block_size: int) -> dict[str, Any]:
    """GPTConfig's rope_theta and rope_scaling.

    Raises:
        ValueError: a field is missing, of the wrong type or out of range, or asks for what our model does not compute.
    """
    name, values = config.get("rope_parameters", "rope_scaling", default={})
    if not isinstance(values, dict):
        raise ValueError(f"{name} must be an object, not {shown(values)}")
    if unknown := [shown(key) for key in values if key not in KNOWN]:
        raise ValueError(f"{name} has {', '.join(unknown[:4])}; known are {', '.join(sorted(KNOWN))}")
    fields = Fields(values, f"{name}.")
    theta = _beside_or_inside("rope_theta", config, fields, 10000.0)
    if (factor := _beside_or_inside("partial_rotary_factor", config, fields, 1.0)) != 1:
        raise ValueError(
            f"partial_rotary_factor is {factor}; in models of this family all dims rotate: supported is 1 only"
        )
    kind = fields.choice("rope_type", "type", among=TYPES, default="default")
    if kind is None:
        return {"rope_theta": theta}
    scaling: dict[str, Any] = {"kind": kind}
    if kind != "linear":
        # a size beside the object has precedence, as in transformers
        beside = config.integer("original_max_position_embeddings", default=None, limit=MAX_IDS)
        inside = fields.integer("original_max_position_embeddings", default=block_size, limit=MAX_IDS)
        scaling["original_block_size"] = beside or inside
    if kind == "yarn":
        scaling |= _yarn(fields, block_size / scaling["original_block_size"])
    else:
        scaling["factor"] = fields.number("factor")
    if kind == "llama3":
        scaling |= {key: fields.number(key) for key in ("low_freq_factor", "high_freq_factor")}
    return {"rope_theta": theta, "rope_scaling": RopeScaling(**scaling)}


def _beside_or_inside(key: str, config: Fields, fields: Fields, default: float) -> float:
    """A number of the config itself or of the object in it; where both are there they must agree."""
    beside, inside = config.number(key, default=None), fields.number(key, default=None)
    if beside is not None and inside is not None and beside != inside:
        raise ValueError(f"{key} and {fields.where}{key} differ: {beside} and {inside}")
    return next((value for value in (inside, beside) if value is not None), default)


def _yarn(fields: Fields, default_factor: float) -> dict[str, Any]:
    factor = fields.number("factor", default=default_factor)
    scaling = {
        "factor": factor,
        "beta_fast": fields.number("beta_fast", default=32.0),
        "beta_slow": fields.number("beta_slow", default=1.0),
        "attention_factor": fields.number("attention_factor", default=None),
        "truncate": fields.flag("truncate", True),
    }
    over, under = fields.number("mscale", default=None), fields.number("mscale_all_dim", default=None)
    if scaling["attention_factor"] is None and over and under:  # DeepSeek's way to say it
        scaling["attention_factor"] = (0.1 * over * math.log(factor) + 1) / (0.1 * under * math.log(factor) + 1)
    return scaling
