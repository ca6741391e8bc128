"""GPTConfig: the numbers that make a GPT, checked once, where they are written down."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

ACTIVATIONS = ("gelu_tanh", "gelu")
MAX_HEAD_DIM = 256  # the widest head the attention kernels take

# Parameters: tiny 437,888; small 3,241,728; medium 10,770,816 (65 characters); gpt2 124,439,808.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(vocab_size=65, block_size=256, n_layer=2, n_head=2, n_embd=128),
    "small": dict(vocab_size=65, block_size=256, n_layer=4, n_head=4, n_embd=256),
    "medium": dict(vocab_size=65, block_size=256, n_layer=6, n_head=6, n_embd=384, dropout=0.2),
    "gpt2": dict(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768),
}


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. Names follow nanoGPT.

    Args:
        vocab_size: V, how many token ids there are.
        block_size: the longest context in tokens (learned positions).
        n_layer: transformer blocks.
        n_head: H, attention heads of a block.
        n_embd: C, the width of the residual stream.
        head_dim: D, the width of a head, 256 at most; ``n_embd // n_head`` by default, which must then divide.
        bias: whether linear layers and LayerNorms have biases.
        dropout: probability in [0, 1) on embeddings, attention weights and residual branches, in training mode.
        layer_norm_epsilon: added to the variance by every LayerNorm.
        activation: of the MLP; ``"gelu_tanh"`` (GPT-2's) or ``"gelu"`` (erf).

    Raises:
        ValueError: a field is of the wrong type or out of range; the message names it.
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    head_dim: int | None = None
    bias: bool = True
    dropout: float = 0.0
    layer_norm_epsilon: float = 1e-5
    activation: str = "gelu_tanh"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            _check_positive_int(name, getattr(self, name))
        if self.head_dim is None:
            if self.n_embd % self.n_head:
                raise ValueError(
                    f"n_embd must be a multiple of n_head where head_dim is not given: "
                    f"n_embd {self.n_embd} / n_head {self.n_head} leaves a remainder of {self.n_embd % self.n_head}"
                )
            object.__setattr__(self, "head_dim", self.n_embd // self.n_head)
        _check_positive_int("head_dim", self.head_dim)
        if self.head_dim > MAX_HEAD_DIM:
            raise ValueError(f"head_dim must be {MAX_HEAD_DIM} at most, not {self.head_dim}")
        if not isinstance(self.bias, bool):
            raise ValueError(f"bias must be True or False, not {self.bias!r}")
        if not (_is_number(self.dropout) and 0 <= self.dropout < 1):
            raise ValueError(f"dropout must be a number in [0, 1), not {self.dropout!r}")
        if not (_is_number(self.layer_norm_epsilon) and 0 < self.layer_norm_epsilon < math.inf):
            raise ValueError(f"layer_norm_epsilon must be a positive number, not {self.layer_norm_epsilon!r}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {self.activation!r}")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "GPTConfig":
        """The preset ``name`` (tiny, small, medium, gpt2) with fields of one's own in place of its."""
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {name!r}")
        return cls.from_dict(PRESETS[name] | overrides)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GPTConfig":
        """The config that :meth:`to_dict` wrote. Unknown and missing fields raise ValueError and are named."""
        if not isinstance(values, Mapping):
            raise ValueError(f"the model's config must be a mapping of fields, not {type(values).__name__}")
        known = [field.name for field in fields(cls)]
        if unknown := [str(name) for name in values if name not in known]:
            raise ValueError(f"unknown model field {', '.join(unknown)}; the fields are {', '.join(known)}")
        required = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")
        if missing := [name for name in required if name not in values]:
            raise ValueError(f"the model's config lacks {', '.join(missing)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, ready for JSON."""
        return asdict(self)


def _check_positive_int(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer, not {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
