"""Which tensor of a file becomes which parameter of a GPT: tables, read in both directions.

A family of models writes its tensors under names and in layouts of its own. A `Rule` says for one of our parameters
which of theirs it consists of: one as it is; one transposed (GPT-2 keeps its matrices as (in, out)); or several, one
below the other (queries, keys and values; gate and up). From the rules and a config come `Part`s, one for each tensor
of the file, that work both ways: import copies by them, export too, and `minigpt inspect` prints them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minigpt_ext.model import GPT, GPTConfig

EMBEDDING = "wte.weight"  # of ours
HEAD = "lm_head.weight"  # stands beside the trunk in every family, so that no prefix comes before it


class Rule(NamedTuple):
    """What one of our parameters consists of in a family's files; {n} stands for the number of a layer.

    Args:
        theirs: the names, in the order of our rows, without the family's prefix.
        rows: how many of our rows each has; needed where there are several.
        transposed: theirs is (in, out), ours (out, in).
    """

    theirs: tuple[str, ...]
    rows: Callable[[GPTConfig], list[int]] | None = None
    transposed: bool = False


class Part(NamedTuple):
    """One tensor of a file, and the rows of our parameter that it is.

    Args:
        ours: the parameter's name.
        begin, end: its rows; all of them where theirs is the whole of it.
        theirs: the tensor's name.
        shape: the tensor's.
        transposed: whether the tensor is the rows' transpose.
        whole: whether theirs is the whole parameter.
    """

    ours: str
    begin: int
    end: int
    theirs: str
    shape: tuple[int, ...]
    transposed: bool = False
    whole: bool = True

    def view(self, parameter: Tensor) -> Tensor:
        """Our parameter's rows as a tensor of their layout: a view."""
        rows = parameter[self.begin : self.end]
        return rows.t() if self.transposed else rows

    def fill(self, parameter: Tensor, theirs: Tensor) -> None:
        """Copy their tensor into our parameter's rows; dtypes and devices may differ."""
        # into rows that lie as they are, since torch transposes a source six times as fast as a target
        parameter[self.begin : self.end].copy_(theirs.t() if self.transposed else theirs)

    @property
    def becomes(self) -> str:
        """The place in our model, for people: ``h.0.attn.c_attn.weight[64:96]``, and whether it is transposed."""
        rows = "" if self.whole else f"[{self.begin}:{self.end}]"
        return f"{self.ours}{rows}{' transposed' if self.transposed else ''}"


@dataclass(frozen=True)
class Family:
    """A kind of files.

    Args:
        name: of the family.
        prefix: what stands before the names of the trunk; whole files come without it.
        rules: by the names of our parameters; None where theirs are ours.
        config_of: the config a ``config.json`` describes. Raises ValueError naming the field and its value where that
            is wrong, or asks for a computation this model has not.
        skipped: names of tensors that are in files and nothing is lost without, and why.
    """

    name: str
    prefix: str
    rules: Mapping[str, Rule] | None
    config_of: Callable[[Mapping[str, Any]], GPTConfig]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def parts(self, config: GPTConfig, *, prefixed: bool = True) -> list[Part]:
        """Every tensor of a file of this family, in the order of our parameters.

        Raises:
            ValueError: these files have no place for a parameter that a model of this config has.
        """
        parts = []
        for ours, shape in shapes_of(config).items():
            rule = self._rule(ours)
            rows = rule.rows(config) if rule.rows else [shape[0]]
            begin = 0
            for name, count in zip(rule.theirs, rows, strict=True):
                theirs = self.prefix + name if prefixed and name != HEAD else name
                their_shape = (count, *shape[1:])[:: -1 if rule.transposed else 1]
                whole = len(rows) == 1
                parts.append(Part(ours, begin, begin + count, theirs, their_shape, rule.transposed, whole))
                begin += count
        return parts

    def skipped_of(self, config: GPTConfig, *, prefixed: bool = True) -> dict[str, str]:
        """The names that may be in a file of this config and are not read, and why."""
        prefix = self.prefix if prefixed else ""
        layers = range(config.n_layer)
        skipped = {prefix + name.format(n=n): why for name, why in self.skipped.items() for n in layers}
        if config.tied_head:
            skipped[HEAD] = "the token embedding's values again: the head is tied to it"
        return skipped

    def _rule(self, ours: str) -> Rule:
        if self.rules is None:
            return Rule((ours,))
        layer = re.match(r"h\.(\d+)\.", ours)
        pattern = f"h.{{n}}.{ours[layer.end() :]}" if layer else ours
        if pattern not in self.rules:
            raise ValueError(f"files of the {self.name} family have no place for {ours}")
        rule = self.rules[pattern]
        return rule._replace(theirs=tuple(name.format(n=layer and layer[1]) for name in rule.theirs))


def shapes_of(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The parameters of a GPT of this config: names and shapes, without memory for their values.

    Raises:
        ValueError: a parameter would have more bytes than 63 bits can count.
    """
    try:
        with torch.device("meta"):
            return {name: tuple(tensor.shape) for name, tensor in GPT(config).state_dict().items()}
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(f"a model of these sizes is more than torch can count: {error}") from None
