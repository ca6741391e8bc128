"""GPT-2's way to write bytes as characters one can see, in which vocab.json, merges.txt and tokenizer.json are kept.

The 188 bytes that Latin-1 prints stand for themselves; the other 68, in their order, are U+0100, U+0101 and so on. So a
space is U+0120, and no token holds white space.
"""

from __future__ import annotations

_PLAIN = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_HIDDEN = [byte for byte in range(256) if byte not in _PLAIN]
CHARACTER_OF = {byte: chr(byte) for byte in _PLAIN} | {byte: chr(0x100 + i) for i, byte in enumerate(_HIDDEN)}
BYTE_OF = {character: byte for byte, character in CHARACTER_OF.items()}


def written(token: bytes) -> str:
    """The token as files have it."""
    return "".join(map(CHARACTER_OF.__getitem__, token))


def meant(text: str) -> bytes | None:
    """The token that `text` in a file stands for; None where it holds a character that stands for no byte."""
    try:
        return bytes(map(BYTE_OF.__getitem__, text))
    except KeyError:
        return None
