"""A token a character: the tokenizer one can see through."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from minigpt_ext.tokenizer.base import Ids, Tokenizer, check_id, check_text, listed


class CharTokenizer(Tokenizer):
    """Numbers the characters of a text, in the order of their code points, and goes both ways without loss.

    Args:
        characters: the vocabulary, each character once; the character at index i has the id i.

    Raises:
        TypeError: `characters` is not a string.
        ValueError: `characters` is empty or repeats a character.
    """

    FORMAT = "minigpt-char"
    UNIT = "character"

    def __init__(self, characters: str):
        if not isinstance(characters, str):
            raise TypeError(f"characters: expected a string, got {type(characters).__name__}")
        if not characters:
            raise ValueError("characters: got an empty string; a vocabulary needs at least one character")
        if len(set(characters)) != len(characters):
            repeated = next(c for c in characters if characters.count(c) > 1)
            raise ValueError(f"characters: {repeated!r} stands in the vocabulary more than once")
        self.characters = characters
        points = _code_points(characters)
        self._order = np.argsort(points)  # ids in the order of their code points, for binary search
        self._sorted_points = points[self._order]

    @classmethod
    def from_text(cls, text: str) -> CharTokenizer:
        """The tokenizer whose vocabulary is every character of `text`. Raises ValueError where `text` is empty."""
        return cls("".join(sorted(set(text))))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    def encode_to_tensor(self, text: str, *, special: bool | Iterable[str] = True) -> torch.Tensor:
        """The id of each character, (len(text),) int32.

        Raises ValueError naming the first character that is not in the vocabulary.
        """
        check_text(text)
        self._wanted(special)
        points = _code_points(text)
        found = np.minimum(np.searchsorted(self._sorted_points, points), self.vocab_size - 1)
        unknown = self._sorted_points[found] != points
        if unknown.any():
            at = int(unknown.argmax())
            raise ValueError(
                f"text: character {text[at]!r} (U+{ord(text[at]):04X}) at position {at} is not in the tokenizer's "
                f"vocabulary of {self.vocab_size}: {_shortened(self.characters)}"
            )
        return torch.from_numpy(self._order[found].astype(np.int32))

    def token_bytes(self, id: int) -> bytes:
        check_id(id, self.vocab_size)
        return self.characters[id].encode("utf-8", "surrogatepass")

    def decode(self, ids: Ids) -> str:
        numbers = listed(ids)
        for number in numbers:
            check_id(number, self.vocab_size)
        return "".join(self.characters[number] for number in numbers)

    def file_content(self) -> str:
        content = {"format": self.FORMAT, "version": 1, "characters": self.characters}
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> CharTokenizer:
        """Read what `save` wrote. Raises ValueError where the file holds anything else."""
        path = Path(path)
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:  # not JSON, or not UTF-8
            raise ValueError(f"{path}: not a tokenizer file: {error}") from None
        if not isinstance(content, dict) or content.get("format") != cls.FORMAT:
            raise ValueError(f'{path}: not a character tokenizer: its "format" is not "{cls.FORMAT}"')
        if content.get("version") != 1:
            raise ValueError(f"{path}: version {content.get('version')!r} of the format; this program reads version 1")
        try:
            return cls(content.get("characters"))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None

    def __repr__(self) -> str:
        return f"CharTokenizer({_shortened(self.characters)})"


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _shortened(characters: str) -> str:
    return repr(characters) if len(characters) <= 100 else f"{characters[:100]!r}..."
