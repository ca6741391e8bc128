"""Byte-pair encoding at speed: the C++ core of `csrc/tokenizer`, with all that files of Hugging Face ask for around it.

`bpe_python` is the same to be read.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from minigpt_ext import _C
from minigpt_ext.tokenizer.added_tokens import AddedToken, Cutter
from minigpt_ext.tokenizer.base import Ids, StreamDecoder, Tokenizer, check_id, check_no_surrogate, check_text, listed
from minigpt_ext.tokenizer.hf_directory import (
    TOKENIZER,
    VOCAB,
    read_file,
    read_vocab_directory,
    write_directory,
    write_file,
)
from minigpt_ext.tokenizer.hf_write import tokenizer_text
from minigpt_ext.tokenizer.patterns import known
from minigpt_ext.tokenizer.spec import END_OF_TEXT, SPACE_MARK, BPESpec
from minigpt_ext.tokenizer.vocab_files import read_vocab_files

if TYPE_CHECKING:
    from typing_extensions import Self


class BPETokenizer(Tokenizer):
    """A byte-pair tokenizer.

    Args:
        spec: everything that decides which ids a text has.

    Raises:
        ValueError: the vocabulary lacks a byte, a merge makes what is no token, two tokens are the same, and the like.
    """

    FORMAT = "huggingface"

    def __init__(self, spec: BPESpec):
        self.spec = spec
        self.special_tokens = {token.content: token.id for token in spec.added if token.special}
        self.bos_id, self.eos_id, self.add_bos = spec.bos_id, spec.eos_id, spec.add_bos
        self._words = {token.content for token in spec.added if not token.special}  # added, and always taken as such
        self._core_cuts = self._core_can_cut()
        metaspace = spec.metaspace if self._core_cuts and spec.metaspace != "never" else "replace"
        texts = {token.id: self._decoded(token) for token in spec.added}
        self._core = _C.Bpe(
            [None if id in texts and texts[id].encode() != token else token for id, token in enumerate(spec.tokens)],
            list(spec.merges),
            spec.pattern,
            specials={text: id for id, text in texts.items()},
            ignore_merges=spec.ignore_merges,
            alphabet=spec.alphabet,
            metaspace="none" if spec.metaspace == "none" else metaspace,
        )
        self._cutters = functools.lru_cache(maxsize=8)(self._make_cutters)

    @classmethod
    def train(
        cls,
        texts: str | Sequence[str],
        vocab_size: int,
        pattern: str = "gpt2",
        special_tokens: Sequence[str] = (),
        *,
        n_threads: int = 2,
    ) -> Self:
        """Learn a byte-level vocabulary.

        Args:
            texts: what to learn from; no merge goes from one text into the next.
            vocab_size: the 256 bytes, merges and special tokens together; there are fewer if nothing is left to merge.
            pattern: how texts are cut into pieces, a name of `patterns.NAMES`.
            special_tokens: they get the ids behind all others. `<|endoftext|>` among them is the eos.
            n_threads: at most so many work at it; the result does not depend on it.

        Raises:
            ValueError: vocab_size leaves no room for bytes and special tokens, an unknown pattern, a special token that
                is empty or there twice, a lone surrogate.
        """
        known(pattern)
        texts = [texts] if isinstance(texts, str) else list(texts)
        least = 256 + len(special_tokens)
        if not isinstance(vocab_size, int) or isinstance(vocab_size, bool) or vocab_size < least:
            needed = f"256 bytes and {len(special_tokens)} special tokens"
            raise ValueError(f"vocab_size: expected an integer of {least} at least, for {needed}, got {vocab_size!r}")
        for text in texts:
            check_text(text)
            check_no_surrogate(text)
        _, merges = _C.train_bpe(texts, vocab_size - len(special_tokens), pattern, n_threads)
        return cls.from_merges(merges, pattern, special_tokens)

    @classmethod
    def from_merges(
        cls, merges: Sequence[tuple[int, int]], pattern: str = "gpt2", special_tokens: Sequence[str] = ()
    ) -> Self:
        """From pairs of ids in the order they were learned, over 0 ... 255 for the bytes, as `ReadableBPE` has them.

        Raises ValueError for a pair of ids that are not there yet.
        """
        tokens = [bytes([byte]) for byte in range(256)]
        there = set(tokens)
        for rank, (left, right) in enumerate(merges):
            if not (0 <= left < len(tokens) and 0 <= right < len(tokens)):
                raise ValueError(f"merges[{rank}]: got ({left}, {right}); so far there are ids 0 to {len(tokens) - 1}")
            token = tokens[left] + tokens[right]
            if token not in there:
                there.add(token)
                tokens.append(token)
        added = tuple(AddedToken(text, len(tokens) + i) for i, text in enumerate(special_tokens))
        eos_id = next((token.id for token in added if token.content == END_OF_TEXT), None)
        return cls(BPESpec(tuple(tokens), tuple(merges), pattern, added, eos_id=eos_id))

    @classmethod
    def from_files(cls, vocab: str | Path, merges: str | Path, pattern: str = "gpt2") -> Self:
        """From `vocab.json` and `merges.txt` in the form of GPT-2. See `vocab_files.read_vocab_files`."""
        return built(cls, read_vocab_files(Path(vocab), Path(merges), pattern), Path(vocab))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """From a `tokenizer.json` of Hugging Face, and the `tokenizer_config.json` beside it if there is one."""
        return built(cls, read_file(Path(path)), Path(path))

    @classmethod
    def load_directory(cls, path: str | Path) -> Self:
        """From a directory of Hugging Face: its tokenizer.json, or its vocab.json and merges.txt."""
        path = Path(path)
        file = path / TOKENIZER
        spec = read_file(file) if file.is_file() else read_vocab_directory(path)
        return built(cls, spec, file if file.is_file() else path / VOCAB)

    def save(self, path: str | Path) -> None:
        """Write a `tokenizer.json` of Hugging Face and, beside it, the `tokenizer_config.json` that names the eos."""
        write_file(self.spec, Path(path))

    def file_content(self) -> str:
        return tokenizer_text(self.spec)

    def without_bos(self) -> Self:
        """The same without a token in front of prompts."""
        return type(self)(replace(self.spec, add_bos=False)) if self.add_bos else self

    def save_directory(self, path: str | Path) -> list[Path]:
        """Write what `transformers` loads: tokenizer.json, tokenizer_config.json, and, where they can say all there is
        to say, vocab.json and merges.txt. Returns the files written, each of them atomically."""
        return write_directory(self.spec, Path(path))

    @property
    def vocab_size(self) -> int:
        return self.spec.vocab_size

    def encode_to_tensor(self, text: str, *, special: bool | Iterable[str] = True) -> torch.Tensor:
        check_text(text)
        wanted = self._wanted(special)
        if self._core_cuts and (not self.spec.nfc or unicodedata.is_normalized("NFC", text)):
            allowed = wanted if isinstance(wanted, bool) else wanted | self._words
            if allowed is False and self._words:
                allowed = self._words
            return torch.from_numpy(self._core.encode(text, allowed))
        check_no_surrogate(text)  # which the core does too, for a stretch
        names = frozenset(self.special_tokens if wanted is True else wanted or ())
        parts = [
            np.array([part], dtype=np.int32) if isinstance(part, int) else self._core.encode(part, False)
            for part in self._parts(text, names)
        ]
        return torch.from_numpy(np.concatenate([np.zeros(0, np.int32), *parts]))

    def token_bytes(self, id: int) -> bytes:
        check_id(id, self.vocab_size)
        return self._core.decode([id])

    def decode_bytes(self, ids: Ids) -> bytes:
        numbers = listed(ids)
        for number in (min(numbers), max(numbers)) if numbers else ():
            check_id(number, self.vocab_size)
        data = self._core.decode(numbers)
        return data.removeprefix(b" ") if self.spec.strips_space else data

    def stream_decoder(self) -> StreamDecoder:
        return StreamDecoder(self, skip_first_space=self.spec.strips_space)

    def __repr__(self) -> str:
        spec = self.spec
        return (
            f"BPETokenizer({self.vocab_size} ids, {len(spec.merges)} merges, {spec.alphabet}, pattern {spec.pattern})"
        )

    # What the core cannot do by itself, step by step as the library `tokenizers` does it: cut at the added tokens that
    # want the text as it is; normalize the stretches between; cut at the others; put a space in front.

    def _core_can_cut(self) -> bool:
        """Whether the core may get the whole text, since added tokens are their content and nothing else happens."""
        added = self.spec.added
        early = [token for token in added if not token.normalized]
        late = [token for token in added if token.normalized]
        return (
            not self.spec.add_prefix_space
            and all(token.plain for token in added)
            and not (early and late)
            and all(self._normalized(token.content) == token.content for token in late)
        )

    def _make_cutters(self, names: frozenset[str]) -> tuple[Cutter, Cutter]:
        counting = [token for token in self.spec.added if not token.special or token.content in names]
        early = [token for token in counting if not token.normalized]
        late = [token for token in counting if token.normalized]
        return Cutter(early), Cutter(late, [self._normalized(token.content) for token in late])

    def _parts(self, text: str, names: frozenset[str]) -> Iterable[str | int]:
        """Ids of added tokens, and stretches ready for the core."""
        early, late = self._cutters(names)
        at_start = True
        for part in early.cut(text):
            for piece in [part] if isinstance(part, int) else late.cut(self._normalized(part)):
                yield piece if isinstance(piece, int) else self._with_prefix(piece, at_start)
                at_start = False

    def _normalized(self, text: str) -> str:
        if self.spec.metaspace == "prepend":
            text = SPACE_MARK + text if text else text
        if self.spec.metaspace in ("prepend", "replace"):
            text = text.replace(" ", SPACE_MARK)
        # By Python's tables, which know combining marks that an older Unicode, as other tokenizers have, does not.
        return unicodedata.normalize("NFC", text) if self.spec.nfc else text

    def _decoded(self, token: AddedToken) -> str:
        """What an added token stands for: where it is looked for in normalized text, what it is there."""
        return self._normalized(token.content).replace(SPACE_MARK, " ") if token.normalized else token.content

    def _with_prefix(self, text: str, at_start: bool) -> str:
        if self.spec.add_prefix_space and not text.startswith(" "):
            return " " + text
        if self.spec.metaspace == "always" or (self.spec.metaspace == "first" and at_start):
            return text if text.startswith((" ", SPACE_MARK)) else SPACE_MARK + text
        return text


def built(cls: type[BPETokenizer], spec: BPESpec, file: Path) -> BPETokenizer:
    """The tokenizer of a spec that was read from `file`. Raises ValueError naming it."""
    try:
        return cls(spec)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
