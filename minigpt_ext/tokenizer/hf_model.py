"""The vocabulary and the merges of a `tokenizer.json`, from text to bytes and ids."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from minigpt_ext.tokenizer.added_tokens import AddedToken
from minigpt_ext.tokenizer.byte_alphabet import CHARACTER_OF, meant
from minigpt_ext.tokenizer.json_node import Node
from minigpt_ext.tokenizer.spec import LARGEST_ID

_SURROGATE = re.compile("[\ud800-\udfff]")


def read_model(node: Node, over_bytes: bool, added: tuple[AddedToken, ...]) -> dict[str, Any]:
    """`tokens`, `merges` and `ignore_merges` of the object "model". Raises ValueError naming the field."""
    if "type" in node:  # old files have none
        node["type"].only("BPE")
    node.known(
        "type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
        "ignore_merges", "vocab", "merges",
    )  # fmt: skip
    node.get("dropout").only(None, 0, 0.0)
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        node.get(affix).only(None, "")
    if node.get("unk_token").value is not None:  # never needed: there are all bytes
        node["unk_token"].text()
    node.get("fuse_unk").flag()
    if not over_bytes and not node.get("byte_fallback").flag():
        raise node.get("byte_fallback").refused(
            "without ByteLevel this program can do true only: nothing is unknown then"
        )
    vocab = read_vocab(node["vocab"])
    return {
        "tokens": token_bytes(node["vocab"], vocab, over_bytes, added),
        "merges": tuple(_merges(node["merges"], vocab)),
        "ignore_merges": node.get("ignore_merges").flag(),
    }


def read_vocab(node: Node) -> dict[str, int]:
    """The ids by text, each id checked and met once."""
    owner: dict[int, str] = {}
    for text, id in node.object().items():  # maybe 200,000 times: a Node is made where something is wrong
        if type(id) is not int or not 0 <= id <= LARGEST_ID:
            node.get(text).integer(0, LARGEST_ID)
        if id in owner:
            raise node.error(f"the id {id} belongs to {owner[id]!r} and to {text!r}")
        if _SURROGATE.search(text):
            raise node.error(f"the token {text!r} holds a lone surrogate, which is no text")
        owner[id] = text
    return node.value


def token_bytes(
    node: Node, vocab: dict[str, int], over_bytes: bool, added: tuple[AddedToken, ...]
) -> tuple[bytes | None, ...]:
    """The bytes of every id of the vocabulary `node`. Added tokens must have the ids they have there."""
    own = {token.content: token.id for token in added}
    texts = {id: text for text, id in vocab.items()}
    for content, id in own.items():
        if vocab.get(content, id) != id or texts.get(id, content) != content:
            held = f"{content!r} has {vocab[content]}" if content in vocab else f"{id} belongs to {texts[id]!r}"
            raise node.error(f"the added token {content!r} has the id {id}, and here {held}")
    tokens: list[bytes | None] = [None] * (max(texts, default=-1) + 1)
    for text, id in vocab.items():
        token = meant(text) if over_bytes else text.encode()
        if text in own and token != text.encode():
            if token and len(token) == 1:
                raise node.error(f"the added token {text!r} is also how the byte 0x{token[0]:02X} is written")
        elif token:
            tokens[id] = token
        else:
            raise node.error(f"the token {text!r} is empty, or has characters that GPT-2's alphabet of bytes lacks")
    _check_bytes(node, vocab, over_bytes)
    return tuple(tokens)


def _check_bytes(node: Node, vocab: dict[str, int], over_bytes: bool) -> None:
    for byte in range(256):
        text = CHARACTER_OF[byte] if over_bytes else f"<0x{byte:02X}>"
        if text not in vocab:
            raise node.error(f"the byte 0x{byte:02X} has no token: {text!r} is missing, and some texts had no ids then")


def _merges(node: Node, vocab: dict[str, int]) -> Iterator[tuple[int, int]]:
    """Both spellings: "a b" and ["a", "b"]."""
    seen: set[tuple[int, int]] = set()
    for merge in node.items():
        parts = merge.value.split(" ") if isinstance(merge.value, str) else merge.value
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise merge.error(f"expected two tokens, got {merge.shown()}")
        yield checked_merge(merge, parts[0], parts[1], vocab, seen)


def checked_merge(
    node: Node, left: str, right: str, vocab: dict[str, int], seen: set[tuple[int, int]]
) -> tuple[int, int]:
    """The ids of both; they and what they make must be tokens, and not merged before."""
    for text in (left, right, left + right):
        if text not in vocab:
            raise node.error(f"{left!r} + {right!r}: {text!r} is not in the vocabulary")
    pair = vocab[left], vocab[right]
    if pair in seen:
        raise node.error(f"{left!r} + {right!r} is there twice")
    seen.add(pair)
    return pair
