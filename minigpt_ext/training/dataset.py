"""A corpus as a model sees it: token ids to train on and to be judged by."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from minigpt_ext.data.batches import check_long_enough
from minigpt_ext.data.corpora import split
from minigpt_ext.tokenizer import CharTokenizer


@dataclass(frozen=True)
class Dataset:
    """Attributes:
    tokenizer: knows every character of the text.
    train, validation: (N,) int32 ids, the first nine tenths of the text and the rest.
    """

    tokenizer: CharTokenizer
    train: Tensor
    validation: Tensor

    @classmethod
    def from_text(cls, text: str, block_size: int) -> Dataset:
        """Split and tokenize `text`. Raises ValueError where it is too short for windows of `block_size`."""
        train, validation = split(text)
        check_long_enough(len(train), len(validation), block_size)
        tokenizer = CharTokenizer.from_text(text)
        return cls(tokenizer, tokenizer.encode_to_tensor(train), tokenizer.encode_to_tensor(validation))
