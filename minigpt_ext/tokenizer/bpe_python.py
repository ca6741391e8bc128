"""Byte-pair encoding, to be read. `BPETokenizer` does the same at speed.

A text is the bytes of its UTF-8, and every byte is a token: ids 0 ... 255. Training makes a token more at each step: it
counts which two tokens stand side by side most often, and joins that pair wherever it occurs. Encoding repeats the
joins, the oldest first. Decoding looks up the bytes of every id.

By hand, on "low lower lowest". First the text is cut into pieces, and no join crosses the border of two; GPT-2's
pattern puts a space in front of the word that follows: |low| lower| lowest|. Then (a space is written _):

    l-o and o-w three times, _-l and w-e twice    l-o has the lower ids      256 = lo
    lo-w three times                                                         257 = low
    _-low and low-e twice                         _-low has the lower ids    258 = _low
    _low-e twice                                                             259 = _lowe
    e-r is no pair any more; _lowe-r, _lowe-s, s-t once: s-t is lowest       260 = st

>>> bpe = ReadableBPE.train("low lower lowest", vocab_size=261)
>>> bpe.merges
[(108, 111), (256, 119), (32, 257), (258, 101), (115, 116)]
>>> bpe.encode("slow lowest")   # |slow| lowest|: s, low; _lowe, st
[115, 257, 259, 260]
>>> bpe.decode([115, 257, 259, 260])
'slow lowest'

A character outside of ASCII is several bytes, so nothing is ever unknown; only a cut through one shows:

>>> bpe.encode("é"), bpe.decode([195, 169]), bpe.decode([195])
([195, 169], 'é', '\ufffd')

Special tokens stand for no text. They are cut out before anything else, so nothing merges into them or across them:

>>> bpe = ReadableBPE(bpe.merges, special_tokens=["<|endoftext|>"])
>>> bpe.encode("low<|endoftext|>low")
[257, 261, 257]
>>> bpe.encode("<|endoftext|>", special=False)[:3]   # as the signs and letters it is written with
[60, 124, 101]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import regex

from minigpt_ext.tokenizer.patterns import PATTERNS

Pair = tuple[int, int]

# Of two pairs that are equally frequent, training takes the one with the lower ids, and there the bytes that GPT-2
# writes as themselves come before the others. Any order would do; this one is that of the library `tokenizers`.
_PLAIN = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
BYTE_ORDER = _PLAIN + [byte for byte in range(256) if byte not in _PLAIN]
_PLACE = {byte: place for place, byte in enumerate(BYTE_ORDER)}


class ReadableBPE:
    """Byte-pair encoding by the list of its merges.

    Args:
        merges: pairs of ids in the order they were learned. A pair becomes the token whose bytes are those of both.
        pattern: how the text is cut into pieces, one of `PATTERNS`.
        special_tokens: texts that become one token each, behind all others.
    """

    def __init__(self, merges: Sequence[Pair], pattern: str = "gpt2", special_tokens: Sequence[str] = ()):
        self.merges = list(merges)
        self.pattern = pattern
        self.tokens = [bytes([byte]) for byte in range(256)]  # the bytes of each id
        self.priority: dict[Pair, int] = {}  # the lower, the earlier
        self.joined: dict[Pair, int] = {}
        ids = {token: id for id, token in enumerate(self.tokens)}
        for pair in self.merges:
            token = self.tokens[pair[0]] + self.tokens[pair[1]]
            if token not in ids:  # two pairs may make the same token: aa + aa and aaa + a
                ids[token] = len(self.tokens)
                self.tokens.append(token)
            self.priority[pair] = len(self.priority)
            self.joined[pair] = ids[token]
        self.special_tokens = {text: len(self.tokens) + i for i, text in enumerate(special_tokens)}
        self.tokens += [text.encode() for text in special_tokens]

    @classmethod
    def train(
        cls, text: str, vocab_size: int, pattern: str = "gpt2", special_tokens: Sequence[str] = ()
    ) -> ReadableBPE:
        """Learn merges from `text` until there are `vocab_size` tokens, special ones included, or nothing to merge."""
        # What occurs often need be counted once: a piece with its number.
        pieces = Counter(_pieces(text, pattern))
        words = [(list(piece.encode()), number) for piece, number in pieces.items()]
        tokens = {bytes([byte]): byte for byte in range(256)}
        bytes_of = list(tokens)
        merges: list[Pair] = []
        while len(tokens) + len(special_tokens) < vocab_size:
            pairs: Counter[Pair] = Counter()
            for ids, number in words:
                for pair in zip(ids, ids[1:], strict=False):
                    pairs[pair] += number
            if not pairs:
                break
            best = min(pairs, key=lambda pair: (-pairs[pair], *map(_place, pair)))
            token = bytes_of[best[0]] + bytes_of[best[1]]
            if token not in tokens:
                tokens[token] = len(tokens)
                bytes_of.append(token)
            merges.append(best)
            words = [(_join_all(ids, best, tokens[token]), number) for ids, number in words]
        return cls(merges, pattern, special_tokens)

    def encode(self, text: str, special: bool | Iterable[str] = True) -> list[int]:
        """The ids of `text`; `special` says which special tokens written in it count: all, none, or those named."""
        wanted = set(self.special_tokens if special is True else special or ())
        if unknown := wanted - set(self.special_tokens):
            raise ValueError(f"special: {sorted(unknown)} are no special tokens of this tokenizer")
        ids: list[int] = []
        for part in _split_at(text, wanted):
            if part in wanted:
                ids.append(self.special_tokens[part])
            else:
                for piece in _pieces(part, self.pattern):
                    ids += self._encode_piece(piece.encode())
        return ids

    def _encode_piece(self, piece: bytes) -> list[int]:
        ids = list(piece)
        while len(ids) > 1:
            never = len(self.priority)
            priorities = [self.priority.get(pair, never) for pair in zip(ids, ids[1:], strict=False)]
            first = min(priorities)
            if first == never:
                break
            at = priorities.index(first)
            ids[at : at + 2] = [self.joined[ids[at], ids[at + 1]]]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; where their bytes are no UTF-8 stands U+FFFD."""
        ids = list(ids)
        for id in ids:
            if not 0 <= id < len(self.tokens):
                raise ValueError(f"ids: got {id}, allowed are 0 to {len(self.tokens) - 1}")
        return b"".join(self.tokens[id] for id in ids).decode("utf-8", errors="replace")


def _pieces(text: str, pattern: str) -> list[str]:
    if pattern not in PATTERNS:
        raise ValueError(f"pattern: expected one of {', '.join(PATTERNS)}, got {pattern!r}")
    return regex.findall(PATTERNS[pattern], text)


def _place(id: int) -> int:
    return _PLACE.get(id, id)


def _join_all(ids: list[int], pair: Pair, new: int) -> list[int]:
    """`ids` with `new` in place of every `pair`, from left to right: in x x x the first two are joined."""
    joined = []
    i = 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            joined.append(new)
            i += 2
        else:
            joined.append(ids[i])
            i += 1
    return joined


def _split_at(text: str, special: set[str]) -> list[str]:
    """The special tokens of `text` and what stands between; where two begin at one place, the longer counts."""
    if not special:
        return [text]
    longest_first = sorted(special, key=len, reverse=True)
    return regex.split(f"({'|'.join(map(regex.escape, longest_first))})", text)
