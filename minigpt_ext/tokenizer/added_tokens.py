"""Added tokens: texts that are cut out of the input before anything else, and are one token each."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import regex

# The classes of the library `tokenizers`: white space, and what counts as part of a word.
_SPACE = r"\p{White_Space}"
_WORD = r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]"
_SPACES_BEHIND = regex.compile(f"{_SPACE}*")
_SPACES_BEFORE = regex.compile(f"{_SPACE}*", regex.REVERSE)
_WORD_CHARACTER = regex.compile(_WORD)


@dataclass(frozen=True)
class AddedToken:
    """One of them, in the words of Hugging Face's files.

    Attributes:
        content: the text it is written as. id: its id.
        special: whether it stands for no text, as <|endoftext|>; the others are words that shall stay whole.
        normalized: it is looked for after the normalizer, not before.
        lstrip, rstrip: it takes the white space to its left, to its right.
        single_word: it does not count inside a word.
    """

    content: str
    id: int
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is its content wherever that is written."""
        return not (self.lstrip or self.rstrip or self.single_word)


class Cutter:
    """Cuts a text at added tokens: the leftmost first, and of those that begin at one place the longest.

    Args:
        tokens: what to look for.
        written: what each is looked for as, its content unless given.
    """

    def __init__(self, tokens: Collection[AddedToken], written: Sequence[str] | None = None):
        self._tokens = dict(zip(written or [token.content for token in tokens], tokens, strict=True))
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._expression = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def cut(self, text: str) -> list[str | int]:
        """Ids of added tokens, and the stretches of text between them, none of them empty."""
        parts: list[str | int] = []
        done = 0
        for match in self._expression.finditer(text) if self._expression else ():
            token = self._tokens[match[0]]
            start, end = match.span()
            if token.single_word and (_is_word(text[start - 1 : start]) or _is_word(text[end : end + 1])):
                continue
            if token.lstrip:
                start = max(_SPACES_BEFORE.match(text, 0, start).start(), done)
            if token.rstrip:
                end = _SPACES_BEHIND.match(text, end).end()
            if done < start:
                parts.append(text[done:start])
            parts.append(token.id)
            done = end
        if done < len(text):
            parts.append(text[done:])
        return parts


def _is_word(character: str) -> bool:
    return bool(_WORD_CHARACTER.match(character))
