"""Text to token ids and back."""

from __future__ import annotations

import json
from pathlib import Path

from minigpt_ext.tokenizer.char import CharTokenizer

__all__ = ["CharTokenizer", "load_tokenizer"]

_CLASSES = {CharTokenizer.FORMAT: CharTokenizer}


def load_tokenizer(path: str | Path) -> CharTokenizer:
    """The tokenizer of a run directory, or of a `tokenizer.json`.

    Raises FileNotFoundError where there is none, ValueError where the file is of no known format.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{path}: no tokenizer.json there; a run directory of `minigpt train` holds one")
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: not a tokenizer file: {error}") from None
    name = content.get("format") if isinstance(content, dict) else None
    if name not in _CLASSES:
        raise ValueError(f'{file}: "format" is {name!r}; known are {", ".join(_CLASSES)}')
    return _CLASSES[name].load(file)
