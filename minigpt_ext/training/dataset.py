"""A corpus as a model sees it: token ids to train on and to be judged by."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from minigpt_ext.data.batches import check_long_enough
from minigpt_ext.data.corpora import split
from minigpt_ext.tokenizer import BPETokenizer, CharTokenizer, Tokenizer, open_tokenizer

CHAR = "char"  # the tokenizer that is made of the text itself


@dataclass(frozen=True)
class Dataset:
    """Attributes:
    tokenizer: knows every character of the text.
    train, validation: (N,) int32 ids, the first nine tenths of the text and the rest.
    """

    tokenizer: Tokenizer
    train: Tensor
    validation: Tensor

    @classmethod
    def from_text(cls, text: str, block_size: int, tokenizer: Tokenizer | None = None) -> Dataset:
        """Split and tokenize `text`, by its characters where no tokenizer is given.

        Special tokens written in the text are taken as such: <|endoftext|> between documents, say.

        Raises ValueError where it is too short for windows of `block_size`, or the tokenizer lacks a character.
        """
        tokenizer = CharTokenizer.from_text(text) if tokenizer is None else tokenizer
        train, validation = (tokenizer.encode_to_tensor(part) for part in split(text))
        check_long_enough(len(train), len(validation), block_size, tokenizer.UNIT)
        return cls(tokenizer, train, validation)


def tokenizer_named(name: str, text: str) -> Tokenizer:
    """The tokenizer to train on `text` with: `char`, `byte`, or the one at a path.

    One from a file puts no token in front of a prompt any more, for a model trained here never saw it there.

    Raises ValueError where there is none, or its file asks for what this program cannot do.
    """
    if name == CHAR:
        return CharTokenizer.from_text(text)
    tokenizer = open_tokenizer(name)
    return tokenizer.without_bos() if isinstance(tokenizer, BPETokenizer) else tokenizer
