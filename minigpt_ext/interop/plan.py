"""What loading a checkpoint into a GPT will do, and what stands against it: known from headers and config alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from minigpt_ext.model import GPTConfig

from .checkpoint import Checkpoint
from .rules import EMBEDDING, HEAD, Family, Part
from .safetensors_header import shown

WEIGHTS = ("F64", "F32", "F16", "BF16")  # dtypes of weights that mean what they say; those of 8 bits come with scales


class Copy(NamedTuple):
    """A tensor of the checkpoint, by its name there, and the place it is copied to."""

    name: str
    part: Part


@dataclass
class Plan:
    """What becomes of every tensor of a checkpoint.

    Args:
        copies: what is copied.
        skipped: by name, why it is not read.
        wrong: what is missing, unknown, or of the wrong shape or dtype, a phrase each; the checkpoint can be loaded
            where there is none.
    """

    copies: list[Copy] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def becomes(self) -> dict[str, str]:
        """For people, by name: the place in our model, or in brackets why there is none."""
        places = {name: part.becomes for name, part in self.copies}
        return places | {name: f"({why})" for name, why in self.skipped.items()}


def make_plan(checkpoint: Checkpoint, family: Family, config: GPTConfig) -> Plan:
    """Compare the names, shapes and dtypes of a checkpoint with those of a model of this config.

    No tensor is read, and no memory taken but in proportion to the checkpoint's header.
    """
    names = dict.fromkeys(checkpoint.names)
    if config.n_layer > len(names):  # a model that claims more could not be built, not even without memory for weights
        return Plan(wrong=[f"there are {len(names)} tensors, too few for {config.n_layer} layers"])
    prefixed = 2 * sum(name.startswith(family.prefix) for name in names) > len(names)
    parts = {part.theirs: part for part in family.parts(config, prefixed=prefixed)}
    embedding = next(part for part in parts.values() if part.ours == EMBEDDING)
    not_read = family.skipped_of(config, prefixed=prefixed)
    plan = Plan(wrong=[f"{name} is missing" for name in parts if name not in names])
    for name in names:
        if name in not_read:
            plan.skipped[name] = not_read[name]
            if name == HEAD and (fault := _fault(checkpoint, name, embedding)):
                plan.wrong.append(fault)
        elif name not in parts:
            plan.wrong.append(f"{shown(name)} is unknown")
        elif fault := _fault(checkpoint, name, parts[name]):
            plan.wrong.append(fault)
        else:
            plan.copies.append(Copy(name, parts[name]))
    return plan


def _fault(checkpoint: Checkpoint, name: str, part: Part) -> str | None:
    info = checkpoint.info(name)
    if info.dtype not in WEIGHTS:
        return f"{name} is of dtype {info.dtype}, and weights are of {', '.join(WEIGHTS)}"
    if info.shape != part.shape:
        return f"{name} has shape {info.shape} instead of {part.shape}"
    return None
