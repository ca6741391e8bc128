"""The character and the byte tokenizer as a `tokenizer.json` of the library `tokenizers`, with the same ids.

A vocabulary of characters is its "WordLevel" model behind a cut at every character. There is no unknown token in it,
so that an unknown character is an error there as it is here. Bytes are its "BPE" with no merges.
"""

from __future__ import annotations

from typing import Any

from minigpt_ext.tokenizer.base import check_no_surrogate
from minigpt_ext.tokenizer.byte_alphabet import CHARACTER_OF
from minigpt_ext.tokenizer.char import CharTokenizer
from minigpt_ext.tokenizer.json_node import Node

_EVERY_CHARACTER = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_NO_SUCH_TOKEN = "<unk>"  # the format wants a name; none of one character can be it


def characters_json(tokenizer: CharTokenizer) -> dict[str, Any]:
    """The content of the tokenizer.json of a character tokenizer. Raises ValueError for a lone surrogate in it."""
    check_no_surrogate(tokenizer.characters)
    vocab = {character: id for id, character in enumerate(tokenizer.characters)}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": _NO_SUCH_TOKEN}
    return _json(pre_tokenizer=_EVERY_CHARACTER, decoder={"type": "Fuse"}, model=model)


def bytes_json() -> dict[str, Any]:
    """The content of the tokenizer.json of the byte tokenizer."""
    vocab = {CHARACTER_OF[byte]: byte for byte in range(256)}
    return _json(_BYTE_LEVEL, decoder=_BYTE_LEVEL, model={"type": "BPE", "vocab": vocab, "merges": []})


def characters_of(root: Node) -> CharTokenizer:
    """The tokenizer that `characters_json` wrote. Raises ValueError where the file is anything else."""
    vocab = root["model"]["vocab"].object()
    try:
        tokenizer = CharTokenizer("".join(sorted(vocab, key=vocab.__getitem__)))
        if characters_json(tokenizer) == root.value:
            return tokenizer
    except (TypeError, ValueError):
        pass
    raise root["model"].error('of "WordLevel" this program can do the vocabularies of characters that it writes')


def _json(pre_tokenizer: dict[str, Any], decoder: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
