"""What a choice of tokenizer costs: how many tokens a text becomes, and what a model does with so many.

Letters: T tokens, V vocabulary, C width, H heads, H_kv key/value heads, D head dim; all summed over the layers. Counts
are of one forward pass; a multiplication and an addition are 2 FLOPs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minigpt_ext.model.config import GPTConfig
from minigpt_ext.tokenizer.base import Tokenizer

LENGTH_CLASSES = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 8), (9, 12), (13, None))  # bytes a token, from - to


@dataclass(frozen=True)
class TokenizedText:
    """A text as one tokenizer sees it.

    Attributes:
        vocab_size: V. n_tokens: T.
        n_characters, n_bytes: of the text.
        lengths: how many of the T tokens have 1, 2, 3 ... bytes; lengths[0] is of tokens that stand for nothing.
    """

    vocab_size: int
    n_tokens: int
    n_characters: int
    n_bytes: int
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, text: str) -> TokenizedText:
        """Encode `text` and count. Special tokens written in it are text. Raises ValueError as `encode` does."""
        ids = tokenizer.encode_to_tensor(text, special=False)
        used, counts = ids.unique(return_counts=True)
        sizes = torch.tensor([len(tokenizer.token_bytes(id)) for id in used.tolist()], dtype=torch.int64)
        lengths = torch.zeros(int(sizes.max()) + 1 if len(sizes) else 1, dtype=torch.int64).index_add_(0, sizes, counts)
        return cls(tokenizer.vocab_size, len(ids), len(text), len(text.encode()), tuple(lengths.tolist()))

    @property
    def tokens_a_character(self) -> float:
        return self.n_tokens / self.n_characters

    @property
    def bytes_a_token(self) -> float:
        return self.n_bytes / self.n_tokens

    def share_of_lengths(self, low: int, high: int | None) -> float:
        """The share of tokens with low ... high bytes, or low and more."""
        return sum(self.lengths[low : None if high is None else high + 1]) / self.n_tokens


def attention_pairs(n_tokens: int, context: int, window: int | None = None) -> int:
    """How many pairs of a query and a key it sees there are, for one head of one layer.

    The text is read in contexts of `context` tokens, the last one shorter. A context of n tokens has n (n + 1) / 2
    pairs: query i sees itself and the i before it; with a window of w, w at most.
    """
    full, rest = divmod(n_tokens, context)

    def pairs(n: int) -> int:
        w = n if window is None else min(n, window)
        return w * (w + 1) // 2 + (n - w) * w

    return full * pairs(context) + pairs(rest)


def attention_flops(config: GPTConfig, n_tokens: int, context: int) -> int:
    """4 H D a pair, in every layer: 2 D for its score, 2 D for its share of the values."""
    per_pair = 4 * config.n_head * config.head_dim
    return per_pair * sum(
        attention_pairs(n_tokens, context, config.window_of(layer)) for layer in range(config.n_layer)
    )


def matrix_weights(config: GPTConfig) -> int:
    """The weights a token is multiplied with in the layers, without the head: attention's projections, the MLP."""
    qkv = config.n_embd * config.head_dim * (config.n_head + 2 * config.n_kv_head)
    projection = config.n_head * config.head_dim * config.n_embd
    mlp = (3 if config.activation == "swiglu" else 2) * config.n_embd * config.mlp_width
    return config.n_layer * (qkv + projection + mlp)


def matrix_flops(config: GPTConfig, n_tokens: int, vocab_size: int) -> int:
    """2 T (weights of the layers + V C): every other product, the head's among them."""
    return 2 * n_tokens * (matrix_weights(config) + vocab_size * config.n_embd)


def embedding_weights(config: GPTConfig, vocab_size: int) -> int:
    """V C, and as much again for a head of its own."""
    return (1 if config.tied_head else 2) * vocab_size * config.n_embd


def kv_bytes(config: GPTConfig, n_tokens: int, bytes_a_number: int) -> int:
    """2 H_kv D bytes_a_number T in every layer: a key and a value of each token."""
    return 2 * config.n_layer * config.n_kv_head * config.head_dim * bytes_a_number * n_tokens


def characters_in_context(text: TokenizedText, config: GPTConfig) -> float:
    """How much of this text a full context of block_size tokens holds."""
    return config.block_size / text.tokens_a_character


def bar(share: float, width: int = 10) -> str:
    """A share as a bar of blocks, eighths of a block at its end."""
    eighths = round(share * width * 8)
    return "\u2588" * (eighths // 8) + ("", *"\u258f\u258e\u258d\u258c\u258b\u258a\u2589")[eighths % 8]


def class_name(low: int, high: int | None) -> str:
    return f"{low} or more" if high is None else str(low) if low == high else f"{low} - {high}"


def shares(texts: Sequence[TokenizedText]) -> list[tuple[str, list[float]]]:
    """For every class of lengths its name and the share of each text's tokens in it; the empty classes are left out."""
    rows = [(class_name(*c), [text.share_of_lengths(*c) for text in texts]) for c in LENGTH_CLASSES]
    return [(name, row) for name, row in rows if any(row)]
