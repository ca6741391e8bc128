"""`vocab.json` and `merges.txt`, the files GPT-2 came with: ids by token, and a merge a line, the oldest first."""

from __future__ import annotations

import json
from pathlib import Path

from minigpt_ext.data.files import write_atomically
from minigpt_ext.tokenizer.added_tokens import AddedToken
from minigpt_ext.tokenizer.byte_alphabet import BYTE_OF
from minigpt_ext.tokenizer.hf_model import checked_merge, read_vocab, token_bytes
from minigpt_ext.tokenizer.hf_write import with_added, written_merges, written_vocab
from minigpt_ext.tokenizer.json_node import Node, read_json
from minigpt_ext.tokenizer.patterns import known
from minigpt_ext.tokenizer.spec import BPESpec

_VERSION_LINE = "#version: 0.2"


def read_vocab_files(vocab: Path, merges: Path, pattern: str = "gpt2") -> BPESpec:
    """A byte-level tokenizer from both files; merges.txt may begin with a line `#version: ...` or not.

    The files do not say which tokens are special: those are that are neither a byte nor made by a merge, for no text
    could have them otherwise. In GPT-2 that is <|endoftext|>.

    Raises ValueError naming the file and what is wrong with it, OSError as the system does.
    """
    known(pattern)
    content = read_json(vocab)
    ids = read_vocab(content)
    pairs = _read_merges(merges, ids)
    made = {left + right for left, right in pairs}
    added = tuple(AddedToken(text, id) for text, id in ids.items() if text not in made and text not in BYTE_OF)
    tokens = token_bytes(content, ids, True, added)
    return BPESpec(tokens, tuple(pairs.values()), pattern, tuple(sorted(added, key=lambda token: token.id)))


def write_vocab_files(spec: BPESpec, vocab: Path, merges: Path) -> None:
    """Write both, each atomically; added tokens are in vocab.json too.

    Raises ValueError where the files cannot hold `spec`: they are for bytes.
    """
    if spec.alphabet != "bytes":
        raise ValueError(f"vocab.json and merges.txt hold byte-level tokenizers, and this one is of {spec.alphabet}")
    lines = [_VERSION_LINE, *(f"{left} {right}" for left, right in written_merges(spec))]
    write_atomically(vocab, json.dumps(with_added(spec, written_vocab(spec)), ensure_ascii=False) + "\n")
    write_atomically(merges, "\n".join(lines) + "\n")


def _read_merges(path: Path, ids: dict[str, int]) -> dict[tuple[str, str], tuple[int, int]]:
    try:
        lines = path.read_bytes().decode("utf-8").removeprefix("\ufeff").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error.reason} at byte offset {error.start}") from None
    pairs: dict[tuple[str, str], tuple[int, int]] = {}
    seen: set[tuple[int, int]] = set()
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        node = Node(line, path, f"line {number}")
        parts = line.split(" ")
        if len(parts) != 2:
            raise node.error(f"expected two tokens with a space between, got {node.shown()}")
        pairs[parts[0], parts[1]] = checked_merge(node, parts[0], parts[1], ids, seen)
    return pairs
