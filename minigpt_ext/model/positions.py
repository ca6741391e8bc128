"""How a model knows where a token stands: rotations of queries and keys, biases on scores, or vectors that are added.

RoPE (Su et al., 2021, arXiv:2104.09864) turns pair i of a head's R rotated dims by the angle position * f_i, with
f_i = theta^(-2i/R), so that <q, k> depends on the distance alone. To read further than a model was trained, RopeScaling
stretches the f_i: all of them (linear), or the slow ones that never went round (YaRN, Peng et al., 2023,
arXiv:2309.00071; and Llama 3's variant). ALiBi (Press et al., 2022, arXiv:2108.12409) subtracts slope_h * distance from
the scores of head h. Sinusoidal vectors are those of Vaswani et al., 2017, arXiv:1706.03762.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .config import GPTConfig

FIRST_POSITIONS = 4096
ROPE_SCALINGS = ("linear", "yarn", "llama3")


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE's frequencies are stretched for contexts longer than those of the training.

    Args:
        kind: "linear" divides every frequency by factor; "yarn" and "llama3" only those that turn slowly, with a ramp
            between.
        factor: how many times longer, at least 1.
        original_block_size: the context of the training; yarn and llama3 need it.
        beta_fast, beta_slow: yarn: a pair that turns more often than beta_fast within the original context keeps its
            frequency, one that turns less often than beta_slow gets it divided.
        attention_factor: yarn: multiplies cos and sin; 0.1 ln(factor) + 1 by default.
        truncate: yarn: whether the ramp begins and ends at whole pairs.
        low_freq_factor, high_freq_factor: llama3: the same bounds, in turns within the original context.

    Raises:
        ValueError: a field is of the wrong type or out of range; the message names it.
    """

    kind: str
    factor: float
    original_block_size: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        if self.kind not in ROPE_SCALINGS:
            raise ValueError(f"rope_scaling: kind must be one of {', '.join(ROPE_SCALINGS)}, not {self.kind!r}")
        numbers = ["factor", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor"]
        for name in numbers + (["attention_factor"] if self.attention_factor is not None else []):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"rope_scaling: {name} must be a positive number, not {value!r}")
        if self.factor < 1:
            raise ValueError(f"rope_scaling: factor must be at least 1, not {self.factor!r}")
        size = self.original_block_size
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise ValueError(f"rope_scaling: original_block_size must be a positive integer, not {size!r}")
        if size is None and self.kind != "linear":
            raise ValueError(f"rope_scaling: {self.kind} needs original_block_size, the context of the training")
        if not isinstance(self.truncate, bool):
            raise ValueError(f"rope_scaling: truncate must be True or False, not {self.truncate!r}")
        if self.beta_fast <= self.beta_slow:
            raise ValueError(
                f"rope_scaling: beta_fast must be above beta_slow, not {self.beta_fast!r} and {self.beta_slow!r}"
            )
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"rope_scaling: high_freq_factor must be above low_freq_factor, not {self.high_freq_factor!r} and "
                f"{self.low_freq_factor!r}"
            )

    def scaled(self, frequencies: Tensor, theta: float) -> Tensor:
        """The stretched form of frequencies (R/2,), theta^(-2i/R)."""
        if self.kind == "linear":
            return frequencies / self.factor
        if self.kind == "yarn":
            keep = self._yarn_ramp(frequencies, theta)
        else:
            turns = self.original_block_size / (2 * math.pi / frequencies)
            keep = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        keep = keep.clamp(0, 1)
        return (1 - keep) * frequencies / self.factor + keep * frequencies

    def _yarn_ramp(self, frequencies: Tensor, theta: float) -> Tensor:
        """1 where a frequency is kept, 0 where it is divided, falling from one to the other over the pairs between."""
        n_pairs = len(frequencies)

        def pair_that_turns(times: float) -> float:
            return n_pairs * math.log(self.original_block_size / (times * 2 * math.pi)) / math.log(theta)

        first, last = pair_that_turns(self.beta_fast), pair_that_turns(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * n_pairs - 1)
        if first == last:
            last += 0.001
        pairs = torch.arange(n_pairs, dtype=frequencies.dtype, device=frequencies.device)
        return 1 - (pairs - first) / (last - first)

    @property
    def amplitude(self) -> float:
        """What cos and sin are multiplied with: longer contexts ask for sharper attention (YaRN, section 3.4)."""
        if self.kind != "yarn":
            return 1.0
        return 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor


def rope_tables(
    config: "GPTConfig", dtype: torch.dtype, device: torch.device, n_positions: int | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin of the angles of the first n_positions (block_size by default), (n_positions, rope_dim / 2) each.

    In the arithmetic of dtype from the first step on: models were trained on angles rounded to float32.
    """
    exponents = torch.arange(0, config.rope_dim, 2, dtype=dtype, device=device) / config.rope_dim
    frequencies = 1.0 / config.rope_theta**exponents
    amplitude = 1.0
    if scaling := config.rope_scaling:
        frequencies = scaling.scaled(frequencies, config.rope_theta)
        amplitude = scaling.amplitude
    angles = torch.arange(n_positions or config.block_size, dtype=dtype, device=device)[:, None] * frequencies
    return angles.cos() * amplitude, angles.sin() * amplitude


def alibi_slopes(n_head: int) -> list[float]:
    """The slope of each head: 2^(-8/n), 2^(-16/n), ... for a power of two n; otherwise those of the next lower power,
    then every other one of the next higher."""
    below = 2 ** int(math.log2(n_head))
    slopes = [2.0 ** (-8 * (i + 1) / below) for i in range(below)]
    return slopes + [2.0 ** (-8 * (i + 1) / (2 * below)) for i in range(0, 2 * (n_head - below), 2)]


def sinusoids(config: "GPTConfig", dtype: torch.dtype, device: torch.device, n_positions: int | None = None) -> Tensor:
    """(n_positions, C), block_size by default: sin(p / 10000^(2i/C)) at column 2i, cos of the same at 2i + 1."""
    C = config.n_embd
    exponents = torch.arange(0, C, 2, dtype=dtype, device=device) / C
    angles = torch.arange(n_positions or config.block_size, dtype=dtype, device=device)[:, None] / 10000.0**exponents
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :C]


class Place(NamedTuple):
    """Where the tokens of a call stand, as attention wants to know it; None where a model does it another way."""

    cos: Tensor | None = None  # (T, rope_dim / 2)
    sin: Tensor | None = None
    alibi_slopes: Tensor | None = None  # (H,)


class PositionTables:
    """The constant tables of a model, made when first asked for and kept by device and dtype.

    Of a context longer than FIRST_POSITIONS they are made as far as is asked for, and at least doubled: those of a
    million positions take half a gigabyte.

    They are no buffers: `model.to(torch.bfloat16)` would round a buffer, and angles need all of float32.
    """

    def __init__(self, config: "GPTConfig") -> None:
        self.config = config
        self._made: dict[
            tuple[torch.device, torch.dtype], tuple[int, tuple[Tensor, ...]]
        ] = {}  # with how many positions

    def _tables(self, like: Tensor, n_positions: int) -> tuple[Tensor, ...]:
        """Of n_positions at least."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        key = like.device, dtype
        made, tables = self._made.get(key, (0, ()))
        if made < n_positions:
            made = min(max(FIRST_POSITIONS, 2 * made, n_positions), self.config.block_size)
            # Tensors made in inference mode could not be saved for a backward later.
            with torch.inference_mode(False), torch.no_grad():
                if self.config.positions == "rope":
                    tables = rope_tables(self.config, dtype, like.device, made)
                elif self.config.positions == "alibi":
                    tables = (torch.tensor(alibi_slopes(self.config.n_head), dtype=dtype, device=like.device),)
                else:
                    tables = (sinusoids(self.config, dtype, like.device, made),)
            self._made[key] = made, tables
        return tables

    def place(self, start: int, n_tokens: int, like: Tensor) -> Place:
        """Of tokens start ... start + n_tokens - 1, on the device of `like`."""
        if self.config.positions == "rope":
            cos, sin = self._tables(like, start + n_tokens)
            return Place(cos[start : start + n_tokens], sin[start : start + n_tokens])
        if self.config.positions == "alibi":
            return Place(alibi_slopes=self._tables(like, 1)[0])
        return Place()

    def sinusoids(self, start: int, n_tokens: int, like: Tensor) -> Tensor:
        """(T, C), in the dtype of `like`."""
        return self._tables(like, start + n_tokens)[0][start : start + n_tokens].to(like.dtype)
