"""Writes `tokenizer.json` for the library `tokenizers`: what it reads has the same ids as here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from minigpt_ext.tokenizer.byte_alphabet import written
from minigpt_ext.tokenizer.patterns import PATTERNS
from minigpt_ext.tokenizer.spec import SPACE_MARK, BPESpec

Json = dict[str, Any]


def tokenizer_text(spec: BPESpec) -> str:
    """The file. Raises ValueError where the format cannot hold `spec`."""
    return json.dumps(tokenizer_json(spec), ensure_ascii=False, indent=1) + "\n"


def tokenizer_json(spec: BPESpec) -> Json:
    """Its content."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [asdict(token) for token in sorted(spec.added, key=lambda token: token.id)],
        "normalizer": _normalizer(spec),
        "pre_tokenizer": _pre_tokenizer(spec),
        "post_processor": _post_processor(spec),
        "decoder": _decoder(spec),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": spec.alphabet == "characters+bytes",
            "ignore_merges": spec.ignore_merges,
            "vocab": _pinned(spec, written_vocab(spec)),
            "merges": [list(pair) if " " in "".join(pair) else " ".join(pair) for pair in written_merges(spec)],
        },
    }


def written_vocab(spec: BPESpec) -> dict[str, int]:
    """The ordinary tokens as files write them, by id.

    Raises ValueError where an added token is written like another one: a file could not tell the two apart.
    """
    text_of = _text_of(spec)
    vocab = {text_of(token): id for id, token in enumerate(spec.tokens) if token is not None}
    for token in spec.added:
        if vocab.get(token.content, token.id) != token.id:
            raise ValueError(
                f"the added token {token.content!r} is written as the ordinary token {vocab[token.content]} is; "
                "a file cannot tell them apart"
            )
    return vocab


def written_merges(spec: BPESpec) -> list[tuple[str, str]]:
    """The merges as files write them."""
    text_of = _text_of(spec)
    texts = ["" if token is None else text_of(token) for token in spec.tokens]
    return [(texts[left], texts[right]) for left, right in spec.merges]


def _text_of(spec: BPESpec):
    return written if spec.alphabet == "bytes" else bytes.decode


def _pinned(spec: BPESpec, vocab: Mapping[str, int]) -> dict[str, int]:
    """With the added tokens, unless they come right behind: then `tokenizers` gives them their ids by itself."""
    outside = sorted(token.id for token in spec.added if token.content not in vocab)
    if outside == list(range(len(vocab), len(vocab) + len(outside))):
        return dict(vocab)
    return with_added(spec, vocab)


def with_added(spec: BPESpec, vocab: Mapping[str, int]) -> dict[str, int]:
    """The vocabulary and the added tokens, by id."""
    everything = {**vocab, **{token.content: token.id for token in spec.added}}
    return dict(sorted(everything.items(), key=lambda entry: entry[1]))


def _normalizer(spec: BPESpec) -> Json | None:
    if spec.nfc:
        return {"type": "NFC"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}
    if spec.metaspace == "prepend":
        return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE_MARK}, replace]}
    return replace if spec.metaspace == "replace" else None


def _pre_tokenizer(spec: BPESpec) -> Json | None:
    if spec.metaspace in ("always", "first", "never"):
        return {"type": "Metaspace", "replacement": SPACE_MARK, "prepend_scheme": spec.metaspace, "split": False}
    if spec.alphabet != "bytes":
        return None
    expression = spec.pattern in ("gpt2", "smollm")  # which ByteLevel brings along
    last = {
        "type": "ByteLevel",
        "add_prefix_space": spec.add_prefix_space,
        "trim_offsets": True,
        "use_regex": expression,
    }
    if spec.pattern == "smollm":
        first = {"type": "Digits", "individual_digits": True}
    elif spec.pattern in PATTERNS and not expression:
        pattern = {"Regex": PATTERNS[spec.pattern]}
        first = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    else:
        return last
    return {"type": "Sequence", "pretokenizers": [first, last]}


def _post_processor(spec: BPESpec) -> Json | None:
    if not spec.add_bos:
        return None
    bos = next(token.content for token in spec.added if token.id == spec.bos_id)
    front = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    behind = [{"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "type": "TemplateProcessing",
        "single": front,
        "pair": front + behind,
        "special_tokens": {bos: {"id": bos, "ids": [spec.bos_id], "tokens": [bos]}},
    }


def _decoder(spec: BPESpec) -> Json:
    if spec.alphabet == "bytes":
        return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    steps: list[Json] = [
        {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if spec.strips_space:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
