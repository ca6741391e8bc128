"""What every tokenizer offers."""

from __future__ import annotations

import codecs
import hashlib
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import torch

from minigpt_ext.data.files import write_atomically

Ids = Iterable[int] | torch.Tensor


class Tokenizer(ABC):
    """Text to ids and back. Ids are 0 ... vocab_size - 1; there may be holes among those of a file.

    Attributes:
        FORMAT: what its files are called in `load_tokenizer`.
        UNIT: what a token is, in a word.
        special_tokens: the texts that stand for one token each and for nothing that is written, with their ids.
        bos_id, eos_id: the tokens that begin and end a text, None where there is none.
        add_bos: whether a prompt begins with bos_id.
    """

    FORMAT: ClassVar[str]
    UNIT: ClassVar[str] = "token"
    special_tokens: dict[str, int] = {}  # noqa: RUF012  replaced, never changed
    bos_id: int | None = None
    eos_id: int | None = None
    add_bos: bool = False

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """How many ids there are; those of holes count."""

    @abstractmethod
    def encode_to_tensor(self, text: str, *, special: bool | Iterable[str] = True) -> torch.Tensor:
        """The ids of `text`, (N,) int32: the way to encode a corpus.

        Args:
            text: any text without lone surrogates.
            special: which special tokens written in the text count as such: all, none, or those named. The others are
                text like any other: what a user types into a chat should be encoded with False.

        Raises:
            TypeError: `text` is no string.
            ValueError: `special` names what is no special token; a lone surrogate; a character the vocabulary lacks.
        """

    @abstractmethod
    def token_bytes(self, id: int) -> bytes:
        """What the token stands for, in UTF-8, which may be part of a character. Raises ValueError where it is none."""

    @abstractmethod
    def file_content(self) -> str:
        """What `save` writes to its file."""

    def save(self, path: str | Path) -> None:
        """Write it to a file that `load_tokenizer` reads, atomically."""
        write_atomically(Path(path), self.file_content())

    @property
    def sha256(self) -> str:
        """Of its file: two tokenizers of the same are the same."""
        return hashlib.sha256(self.file_content().encode("utf-8", "surrogatepass")).hexdigest()

    def encode(self, text: str, *, special: bool | Iterable[str] = True) -> list[int]:
        """As `encode_to_tensor`, as a list."""
        return self.encode_to_tensor(text, special=special).tolist()

    def encode_prompt(self, text: str, *, special: bool | Iterable[str] = True) -> list[int]:
        """The ids of `text` with bos_id in front where the tokenizer asks for it (Llama's do)."""
        return [self.bos_id] * self.add_bos + self.encode(text, special=special)

    def decode_bytes(self, ids: Ids) -> bytes:
        """The bytes of `ids`, any iterable of ints or a 1-d tensor. Raises ValueError for an id out of range."""
        return b"".join(map(self.token_bytes, listed(ids)))

    def decode(self, ids: Ids) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_continuation(self, before: Ids, ids: Ids) -> str:
        """The text that `ids` add to that of `before`."""
        stream = self.stream_decoder()
        for id in listed(before):
            stream.push(id)
        return "".join(map(stream.push, listed(ids))) + stream.finish()

    def written(self, ids: torch.Tensor) -> tuple[int, int]:
        """How many bytes and how many characters `ids` (N,) stand for. A character counts where its first byte is."""
        used, counts = ids.unique(return_counts=True)
        n_bytes = n_characters = 0
        for id, count in zip(used.tolist(), counts.tolist(), strict=True):
            token = self.token_bytes(id)
            n_bytes += count * len(token)
            n_characters += count * sum(byte & 0xC0 != 0x80 for byte in token)
        return n_bytes, n_characters

    def start_ids(self) -> list[int]:
        """What a text without a prompt goes on from: bos_id where prompts begin with it, a line break, or else id 0."""
        if self.add_bos:
            return self.encode_prompt("")
        try:
            return self.encode("\n")
        except ValueError:  # no line break in this vocabulary
            return [0]

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for ids that come one at a time."""
        return StreamDecoder(self)

    def _wanted(self, special: bool | Iterable[str]) -> bool | set[str]:
        """`special`, checked."""
        if isinstance(special, bool):
            return special
        if isinstance(special, str):
            raise TypeError(f"special: expected True, False or a set of special tokens, got the string {special!r}")
        wanted = set(special)
        if unknown := sorted(wanted - set(self.special_tokens)):
            there = ", ".join(map(repr, self.special_tokens)) or "none"
            raise ValueError(f"special: {', '.join(map(repr, unknown))} is no special token; there are {there}")
        return wanted


class StreamDecoder:
    """Text from ids that come one at a time: the pieces put together are `decode` of all ids.

    A character may be spread over several tokens: it comes with the last of them. To go on behind a prompt, push the
    prompt's ids first.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_first_space: bool = False):
        self._token_bytes = tokenizer.token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._skip_space = skip_first_space

    def push(self, id: int) -> str:
        """The text that `id` completes, which may be empty. Raises ValueError for an id out of range."""
        data = self._token_bytes(id)
        if data and self._skip_space:
            self._skip_space = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def finish(self) -> str:
        """What is left: empty, or U+FFFD for a character that was never completed. It can be used anew then."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def listed(ids: Ids) -> list[int]:
    """`ids` as a list of ints. Raises ValueError where a tensor is not 1-d, TypeError where one is no integer."""
    if isinstance(ids, torch.Tensor):
        if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(f"ids: expected a 1-d tensor of integers, got {ids.dtype} of shape {tuple(ids.shape)}")
        return ids.tolist()
    return [operator.index(number) for number in ids]


def check_text(text: str) -> None:
    """Raises TypeError where `text` is no string."""
    if not isinstance(text, str):
        raise TypeError(f"text: expected a string, got {type(text).__name__}")


def check_no_surrogate(text: str) -> None:
    """Raises ValueError for a lone surrogate in `text`: a half character, which UTF-8 cannot hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text[{error.start}] is U+{ord(text[error.start]):04X}, a lone surrogate, which UTF-8 has no bytes for"
        ) from None


def check_id(number: int, vocab_size: int) -> None:
    """Raises ValueError for an id out of range."""
    if not 0 <= number < vocab_size:
        raise ValueError(f"ids: got {number}, allowed are 0 to {vocab_size - 1}")
