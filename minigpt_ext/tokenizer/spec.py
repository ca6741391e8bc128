"""What a byte-pair tokenizer is, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minigpt_ext.tokenizer.added_tokens import AddedToken
from minigpt_ext.tokenizer.patterns import known

SPACE_MARK = "\u2581"  # how SentencePiece writes a space
END_OF_TEXT = "<|endoftext|>"  # what GPT-2 calls it; where nothing else is said, this special token ends a text
LARGEST_ID = 2**22  # an id above costs memory for all the ids below it, and no vocabulary known comes near


@dataclass(frozen=True)
class BPESpec:
    """Everything that decides which ids a text has.

    Two alphabets: with "bytes" (GPT-2, Llama 3, Qwen) a piece of text begins as its bytes. With "characters+bytes"
    (Llama 2, Mistral) it begins as its characters, and one that the vocabulary lacks as the tokens <0x00> ... <0xFF> of
    its bytes; there a space is written U+2581.

    Attributes:
        tokens: the bytes of each id; None where the id is an added token's alone, or nobody's.
        merges: pairs of ids, the first to be joined first; the joined token is the one with the bytes of both.
        pattern: how the text is cut into pieces before, a name of `patterns.NAMES`.
        added: added tokens, special ones among them.
        ignore_merges: a piece that is a token as a whole is that token, whatever the merges say.
        alphabet: "bytes" or "characters+bytes".
        metaspace: how U+2581 comes in. "none" (always so with bytes); "prepend" and "replace" as a normalizer does it,
            with one in front of every stretch of text or without; "always", "first" and "never" as the pre-tokenizer
            does it: in front of every stretch that does not begin with one, of one at the very beginning, of none.
        nfc: the text is brought to Unicode's composed form first (Qwen).
        add_prefix_space: a stretch of text gets a space in front, unless it has one (with bytes only).
        strips_space: decoding leaves out one space at the very beginning.
        bos_id, eos_id, add_bos: as in `Tokenizer`.
        config: the content of tokenizer_config.json as it came, where there was one: chat templates are in it.

    Raises:
        ValueError: a field holds what it cannot, or two do not go together.
    """

    tokens: tuple[bytes | None, ...]
    merges: tuple[tuple[int, int], ...]
    pattern: str = "gpt2"
    added: tuple[AddedToken, ...] = ()
    ignore_merges: bool = False
    alphabet: str = "bytes"
    metaspace: str = "none"
    nfc: bool = False
    add_prefix_space: bool = False
    strips_space: bool = False
    bos_id: int | None = None
    eos_id: int | None = None
    add_bos: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known(self.pattern)
        allowed = {"bytes": ("none",), "characters+bytes": ("prepend", "replace", "always", "first", "never")}
        if self.alphabet not in allowed:
            raise ValueError(f"alphabet: expected {' or '.join(allowed)}, got {self.alphabet!r}")
        if self.metaspace not in allowed[self.alphabet]:
            options = " or ".join(allowed[self.alphabet])
            raise ValueError(f"metaspace: expected {options} with alphabet {self.alphabet}, got {self.metaspace!r}")
        if self.alphabet != "bytes" and (self.nfc or self.add_prefix_space or self.pattern != "none"):
            raise ValueError(f"alphabet {self.alphabet} goes with no nfc, no add_prefix_space, and pattern none only")
        contents = [token.content for token in self.added]
        ids = [token.id for token in self.added]
        for name, values in (("content", contents), ("id", ids)):
            if len(set(values)) != len(values):
                repeated = next(value for value in values if values.count(value) > 1)
                raise ValueError(f"added tokens: the {name} {repeated!r} occurs twice")
        if "" in contents:
            raise ValueError("added tokens: one has no content")
        if out := [id for id in ids if not 0 <= id <= LARGEST_ID]:
            raise ValueError(f"added tokens: got the id {out[0]}, allowed are 0 to {LARGEST_ID}")
        for name in ("bos_id", "eos_id"):
            id = getattr(self, name)
            if id is not None and id not in ids:
                raise ValueError(f"{name}: {id} is no added token")
        if self.add_bos and self.bos_id is None:
            raise ValueError("add_bos: there is no bos_id to add")

    @property
    def vocab_size(self) -> int:
        """The largest id and one."""
        return max([len(self.tokens), *(token.id + 1 for token in self.added)])
