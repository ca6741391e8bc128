"""Text to token ids and back."""

from __future__ import annotations

from pathlib import Path

from minigpt_ext.tokenizer.base import StreamDecoder, Tokenizer
from minigpt_ext.tokenizer.bpe import BPETokenizer
from minigpt_ext.tokenizer.byte import ByteTokenizer
from minigpt_ext.tokenizer.char import CharTokenizer
from minigpt_ext.tokenizer.hf_directory import MERGES, TOKENIZER, VOCAB
from minigpt_ext.tokenizer.hf_simple import characters_of
from minigpt_ext.tokenizer.json_node import read_json

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "load_tokenizer",
    "open_tokenizer",
]

_OURS: dict[str, type[CharTokenizer | ByteTokenizer]] = {c.FORMAT: c for c in (CharTokenizer, ByteTokenizer)}


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a run directory, of a directory of Hugging Face, or of a `tokenizer.json`.

    A directory without tokenizer.json may hold vocab.json and merges.txt.

    Raises FileNotFoundError where there is none, ValueError where a file is of no known format or asks for what this
    program cannot do exactly.
    """
    path = Path(path)
    file = path / TOKENIZER if path.is_dir() else path
    if not file.is_file():
        if all((path / name).is_file() for name in (VOCAB, MERGES)):
            return BPETokenizer.load_directory(path)
        raise FileNotFoundError(f"{path}: no tokenizer.json there; a run directory of `minigpt train` holds one")
    content = read_json(file)
    if isinstance(content.value, dict) and "model" in content.value:
        return characters_of(content) if content["model"].get("type").value == "WordLevel" else BPETokenizer.load(file)
    name = content.get("format").value if isinstance(content.value, dict) else None
    if name not in _OURS:
        known = ", ".join([*_OURS, 'and tokenizer.json of Hugging Face, which has a "model"'])
        raise ValueError(f'{file}: "format" is {name!r}; known are {known}')
    return _OURS[name].load(file)


def open_tokenizer(name: str) -> Tokenizer:
    """`byte`, or the tokenizer at a path. Raises ValueError where there is none, or as `load_tokenizer` does."""
    if name == "byte":
        return ByteTokenizer()
    if name == "char" and not Path(name).exists():
        raise ValueError("tokenizer: char has the characters of a text: name the run directory that has learned them")
    try:
        return load_tokenizer(name)
    except OSError as error:
        raise ValueError(f"tokenizer: {error}") from error
