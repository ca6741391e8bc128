"""GPTConfig: the numbers that make a GPT, checked once, where they are written down."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from .positions import RopeScaling

NORMS = ("layer_norm", "rms_norm")
ACTIVATIONS = ("gelu_tanh", "gelu", "relu_squared", "swiglu")
POSITIONS = ("learned", "rope", "alibi", "sinusoidal", "none")
BIASES = (True, False, "qkv", "attention", "mlp")
MAX_HEAD_DIM = 256  # the widest head the attention kernels take

# The block of today's models: Llama's, with the normalised queries and keys of Qwen3.
_MODERN: dict[str, Any] = dict(
    vocab_size=65, block_size=256, norm="rms_norm", activation="swiglu", positions="rope", qk_norm=True, bias=False
)
# Parameters: tiny 437,888; small 3,241,728; medium 10,770,816 (65 characters); gpt2 124,439,808, gpt2-medium
# 354,823,168, gpt2-large 774,030,080, gpt2-xl 1,557,611,200.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(vocab_size=65, block_size=256, n_layer=2, n_head=2, n_embd=128),
    "small": dict(vocab_size=65, block_size=256, n_layer=4, n_head=4, n_embd=256),
    "medium": dict(vocab_size=65, block_size=256, n_layer=6, n_head=6, n_embd=384, dropout=0.2),
    "modern-tiny": _MODERN | dict(n_layer=2, n_head=2, n_kv_head=1, n_embd=128),
    "modern-small": _MODERN | dict(n_layer=4, n_head=4, n_kv_head=2, n_embd=256),
    "modern-medium": _MODERN | dict(n_layer=6, n_head=6, n_kv_head=2, n_embd=384, dropout=0.2),
    "gpt2": dict(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": dict(vocab_size=50257, block_size=1024, n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": dict(vocab_size=50257, block_size=1024, n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": dict(vocab_size=50257, block_size=1024, n_layer=48, n_head=25, n_embd=1600),
}
_REQUIRED = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. Names follow nanoGPT.

    Args:
        vocab_size: V, how many token ids there are.
        block_size: the longest context in tokens.
        n_layer: transformer blocks.
        n_head: H, attention heads of a block.
        n_embd: C, the width of the residual stream.
        head_dim: D, the width of a head, 256 at most; ``n_embd // n_head`` by default, which must then divide.
        bias: which linear layers have biases: ``True`` all but the head, ``"attention"`` the two of attention,
            ``"qkv"`` the first of those, ``"mlp"`` those of the MLP, ``False`` none. LayerNorms have them with True.
        dropout: probability in [0, 1) on embeddings, attention weights and residual branches, in training mode.
        norm: ``"layer_norm"`` or ``"rms_norm"``.
        norm_epsilon: added to the variance (or mean square) by every norm.
        activation: of the MLP: ``"gelu_tanh"`` (GPT-2's), ``"gelu"`` (erf), ``"relu_squared"`` or ``"swiglu"``.
        mlp_width: F, the width inside the MLP; 4 C by default, for swiglu (which has three matrices in place of two)
            8/3 C, rounded up to a multiple of 64.
        n_kv_head: H_kv, key/value heads, a divisor of n_head; n_head by default. Fewer make the cache smaller (GQA; MQA
            with 1).
        window: None, or how many tokens a query sees, its own included; or a list with such an entry a layer, None (or
            0) where a layer sees all.
        qk_norm: whether queries and keys go through an RMSNorm over D, before they are rotated.
        positions: ``"learned"`` (added), ``"rope"``, ``"alibi"``, ``"sinusoidal"`` (added) or ``"none"``.
        rope_theta: RoPE's base.
        rope_dim: how many of the D dims rotate, an even number; all by default.
        rope_scaling: a :class:`RopeScaling` (or a mapping of its fields) for contexts longer than the training's.
        tied_head: whether the head has the token embedding's weights.
        attention_softcap: None, or c: scores become c tanh(score / c).
        logit_softcap: None, or c: logits become c tanh(logit / c).

    Raises:
        ValueError: a field is of the wrong type or out of range; the message names it.
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    head_dim: int | None = None
    bias: bool | str = True
    dropout: float = 0.0
    norm: str = "layer_norm"
    norm_epsilon: float = 1e-5
    activation: str = "gelu_tanh"
    mlp_width: int | None = None
    n_kv_head: int | None = None
    window: int | Sequence[int | None] | None = None
    qk_norm: bool = False
    positions: str = "learned"
    rope_theta: float = 10000.0
    rope_dim: int | None = None
    rope_scaling: RopeScaling | Mapping[str, Any] | None = None
    tied_head: bool = True
    attention_softcap: float | None = None
    logit_softcap: float | None = None

    def __post_init__(self) -> None:
        for name in _REQUIRED:
            _check_positive_int(name, getattr(self, name))
        if self.head_dim is None:
            if self.n_embd % self.n_head:
                raise ValueError(
                    f"n_embd must be a multiple of n_head where head_dim is not given: "
                    f"n_embd {self.n_embd} / n_head {self.n_head} leaves a remainder of {self.n_embd % self.n_head}"
                )
            self._set("head_dim", self.n_embd // self.n_head)
        _check_positive_int("head_dim", self.head_dim)
        if self.head_dim > MAX_HEAD_DIM:
            raise ValueError(f"head_dim must be {MAX_HEAD_DIM} at most, not {self.head_dim}")
        _check_choice("bias", self.bias, BIASES)
        if not (_is_number(self.dropout) and 0 <= self.dropout < 1):
            raise ValueError(f"dropout must be a number in [0, 1), not {self.dropout!r}")
        _check_choice("norm", self.norm, NORMS)
        _check_positive("norm_epsilon", self.norm_epsilon)
        _check_choice("activation", self.activation, ACTIVATIONS)
        if self.mlp_width is None:
            gated = self.activation == "swiglu"
            self._set("mlp_width", -(-8 * self.n_embd // (3 * 64)) * 64 if gated else 4 * self.n_embd)
        _check_positive_int("mlp_width", self.mlp_width)
        if self.n_kv_head is None:
            self._set("n_kv_head", self.n_head)
        _check_positive_int("n_kv_head", self.n_kv_head)
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_kv_head must divide n_head {self.n_head}, and {self.n_kv_head} does not")
        self._check_window()
        self._check_positions()
        for name in ("qk_norm", "tied_head"):
            _check_choice(name, getattr(self, name), (True, False))
        for name in ("attention_softcap", "logit_softcap"):
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name))

    def _check_window(self) -> None:
        per_layer = isinstance(self.window, list | tuple)
        for value in self.window if per_layer else [self.window]:
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise ValueError(
                    f"window must be a positive integer, None, or a list of these, one a layer, not {self.window!r}"
                )
        if per_layer and len(self.window) != self.n_layer:
            raise ValueError(
                f"window has {len(self.window)} entries, one a layer, and there are {self.n_layer} layers (n_layer)"
            )
        self._set("window", tuple(value or None for value in self.window) if per_layer else self.window or None)

    def _check_positions(self) -> None:
        _check_choice("positions", self.positions, POSITIONS)
        _check_positive("rope_theta", self.rope_theta)
        if isinstance(self.rope_scaling, Mapping):
            known = [field.name for field in fields(RopeScaling)]
            if unknown := [str(name) for name in self.rope_scaling if name not in known]:
                raise ValueError(f"rope_scaling: unknown field {', '.join(unknown)}; the fields are {', '.join(known)}")
            if missing := [name for name in ("kind", "factor") if name not in self.rope_scaling]:
                raise ValueError(f"rope_scaling lacks {', '.join(missing)}")
            self._set("rope_scaling", RopeScaling(**self.rope_scaling))
        if not isinstance(self.rope_scaling, RopeScaling | None):
            raise ValueError(
                'rope_scaling must be a mapping such as {"kind": "linear", "factor": 2}, or a RopeScaling, '
                f"not {self.rope_scaling!r}"
            )
        if self.positions != "rope":
            if self.rope_dim is not None or self.rope_scaling is not None:
                raise ValueError(f"rope_dim and rope_scaling are for positions='rope', not {self.positions!r}")
            return
        if self.rope_dim is None:
            self._set("rope_dim", self.head_dim)
        if self.rope_scaling is not None and self.rope_scaling.kind == "yarn" and self.rope_theta <= 1:
            raise ValueError(f"rope_theta must be above 1 where rope_scaling is yarn, not {self.rope_theta!r}")
        _check_positive_int("rope_dim", self.rope_dim)
        if self.rope_dim % 2 or self.rope_dim > self.head_dim:
            raise ValueError(f"rope_dim must be even and head_dim ({self.head_dim}) at most, not {self.rope_dim}")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the one way to fill a default into a frozen dataclass

    def window_of(self, layer: int) -> int | None:
        """How many tokens a query of this layer sees; None for all before it."""
        return self.window[layer] if isinstance(self.window, tuple) else self.window

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "GPTConfig":
        """The preset ``name``, a key of PRESETS, with fields of one's own in place of its."""
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {name!r}")
        return cls.from_dict(PRESETS[name] | overrides)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GPTConfig":
        """The config that :meth:`to_dict` wrote. Unknown and missing fields raise ValueError and are named."""
        if not isinstance(values, Mapping):
            raise ValueError(f"the model's config must be a mapping of fields, not {type(values).__name__}")
        if "layer_norm_epsilon" in values:  # its name until there were other norms
            values = {"norm_epsilon" if name == "layer_norm_epsilon" else name: value for name, value in values.items()}
        known = [field.name for field in fields(cls)]
        if unknown := [str(name) for name in values if name not in known]:
            raise ValueError(f"unknown model field {', '.join(unknown)}; the fields are {', '.join(known)}")
        if missing := [name for name in _REQUIRED if name not in values]:
            raise ValueError(f"the model's config lacks {', '.join(missing)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, ready for JSON."""
        return asdict(self)


def _check_positive_int(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer, not {value!r}")


def _check_positive(name: str, value: Any) -> None:
    if not (_is_number(value) and 0 < value < math.inf):
        raise ValueError(f"{name} must be a positive number, not {value!r}")


def _check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if not any(type(value) is type(choice) and value == choice for choice in allowed):
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, not {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
