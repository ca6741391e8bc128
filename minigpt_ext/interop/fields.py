"""Reading a config.json: every field by its type and range, under its old and its new names."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from minigpt_ext.model.config import MAX_HEAD_DIM

from .safetensors_header import shown

REQUIRED = object()
# Far beyond any model, and such that products of sizes still fit 64 bits and a list of layers stays small.
MAX_SIZE = 2**24
MAX_IDS = 2**31  # of a vocabulary, and positions
MAX_LAYERS = 2**12

# What any family's config may have, and ours cannot do.
OTHER_MODELS = {
    "quantization_config": "its weights are packed integers; a copy of the model that is not quantised is needed",
    "per_layer_config": "its layers differ in more than their windows",
}


def divided(width_name: str, width: int, heads_name: str, n_head: int) -> int:
    """head_dim, where it is the width over the heads. Raises ValueError where that is none, or too much."""
    if width % n_head:
        raise ValueError(f"{width_name} must be a multiple of {heads_name}, and {width} is none of {n_head}")
    if width // n_head > MAX_HEAD_DIM:
        raise ValueError(
            f"{width_name} / {heads_name}, the width of a head, must be {MAX_HEAD_DIM} at most, not {width} / {n_head}"
        )
    return width // n_head


class Fields:
    """The fields of a config.json, or of an object in it; null stands for a field that is not there.

    Where a field has several names, of which configs of one age use one and of another age another, the first one there
    counts, and all that are there must agree.

    Args:
        values: the object.
        where: what goes before a name in a message: "" for the config itself, "rope_parameters." for that object in it.

    Raises:
        ValueError: by every method: the field is not of its type or range; the message names it, what came and what is
            allowed.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self.values = values
        self.where = where

    def get(self, *names: str, default: Any = None) -> tuple[str, Any]:
        """The name under which the field is there (the first of `names` where it is not), and its value."""
        there = [name for name in names if self.values.get(name) is not None]
        if not there:
            if default is REQUIRED:
                raise ValueError(f"{self.where}{names[0]} is missing")
            return self.where + names[0], default
        first = self.values[there[0]]
        for other in there[1:]:
            if self.values[other] != first:
                raise ValueError(
                    f"{self.where}{there[0]} and {other} are two names of one field, and differ: {shown(first)} and "
                    f"{shown(self.values[other])}"
                )
        return self.where + there[0], first

    def integer(self, *names: str, default: Any = REQUIRED, least: int = 1, limit: int = MAX_SIZE) -> Any:
        """An integer from `least` to `limit`; or the default, whatever that is."""
        name, value = self.get(*names, default=default)
        if value is not default and not (type(value) is int and least <= value <= limit):
            raise ValueError(f"{name} must be an integer from {least} to {limit}, not {shown(value)}")
        return value

    def number(self, *names: str, default: Any = REQUIRED) -> Any:
        """A positive, finite number; or the default, whatever that is."""
        name, value = self.get(*names, default=default)
        if value is not default and not (type(value) in (int, float) and 0 < value <= sys.float_info.max):
            raise ValueError(f"{name} must be a positive number, not {shown(value)}")
        return value if value is default else float(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        name, value = self.get(name, default=default)
        if type(value) is not bool:
            raise ValueError(f"{name} must be true or false, not {shown(value)}")
        return value

    def choice(self, *names: str, among: Mapping[str, Any], default: str) -> Any:
        """What `among` has for the field's value."""
        name, value = self.get(*names, default=default)
        if not isinstance(value, str) or value not in among:
            raise ValueError(f"{name} is {shown(value)}; supported are {', '.join(among)}")
        return among[value]

    def only(self, name: str, value: Any) -> None:
        """Refuse a field that asks for a computation our model has not: only `value` (or none at all) is supported."""
        name, given = self.get(name, default=value)
        if type(given) is not type(value) or given != value:
            raise ValueError(f"{name} is {shown(given)}; supported is {shown(value)} only")

    def none_of(self, **reasons: str) -> None:
        """Refuse fields that may not be there, each for its reason."""
        for name, reason in reasons.items():
            if self.values.get(name) is not None:
                raise ValueError(f"{self.where}{name} is there: {reason}")
