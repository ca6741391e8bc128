"""A tokenizer as the metadata of a GGUF file: the same ids for the same text in llama.cpp, or an error, or a note.

llama.cpp has a tokenizer for byte-level BPE ("gpt2"), one for SentencePiece's BPE ("llama"), and one that takes the
longest token of a list ("rwkv"). The last is all that characters and bytes need, and it wants no token to end texts.
"""

from __future__ import annotations

from collections.abc import Iterable

from minigpt_ext.tokenizer import BPETokenizer, CharTokenizer
from minigpt_ext.tokenizer.byte_alphabet import written
from minigpt_ext.tokenizer.spec import BPESpec

from .gguf import Value
from .source import Source

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # the types of tokens
# What llama.cpp calls a way to cut texts into pieces, by ours and by ignore_merges.
_PRE = {
    ("gpt2", False): "gpt-2",
    ("smollm", False): "smollm",
    ("qwen2", False): "qwen2",
    ("llama3", False): "smaug-bpe",
    ("llama3", True): "llama-bpe",
    ("cl100k", False): "smaug-bpe",
    ("cl100k", True): "llama-bpe",
}
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
_NEVER_IN_TEXT = (b"\xff", b"<0xFF>")  # tokens of a byte that UTF-8 has not


def tokenizer_metadata(source: Source) -> dict[str, Value]:
    """The entries `tokenizer.*` of a model's file. Adds to source.notes where texts may get other ids.

    Raises ValueError where llama.cpp has no such tokenizer, or the model has none.
    """
    tokenizer, vocab_size = source.tokenizer, source.model.config.vocab_size
    if tokenizer is None:
        raise ValueError(f"{source.directory} has no tokenizer, and a GGUF file is to hold one")
    if not isinstance(tokenizer, BPETokenizer):
        texts = tokenizer.characters if isinstance(tokenizer, CharTokenizer) else [bytes([b]) for b in range(256)]
        values = _list_of(text.encode() if isinstance(text, str) else text for text in texts)
    elif tokenizer.spec.alphabet == "bytes":
        values = _byte_level(tokenizer.spec, source.notes) | _ends(tokenizer.spec, source)
    else:
        values = _sentencepiece(tokenizer.spec, source.notes) | _ends(tokenizer.spec, source)
    tokens, types = values["tokens"], values["token_type"]
    for id in range(len(tokens), vocab_size):  # rows of the embedding that no token has
        tokens.append(rf"\xff\xff{id}" if values["model"] == "rwkv" else f"[PAD{id}]")
        types.append(_UNUSED)
        if "scores" in values:
            values["scores"].append(-1e9)
    metadata: dict[str, Value] = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    return metadata | _chat_templates(source)


def _list_of(tokens: Iterable[bytes]) -> dict[str, Value]:
    """Tokens that are all there is to say; only one of them can begin at a place, so that the longest is the right one.

    The file has them as Python writes bytes: printable ASCII, and \\xHH.
    """
    plain = {byte for byte in range(0x20, 0x7F) if byte != ord("\\")}
    texts = ["".join(chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in token) for token in tokens]
    return {"model": "rwkv", "tokens": texts, "token_type": [_NORMAL] * len(texts)}


def _byte_level(spec: BPESpec, notes: list[str]) -> dict[str, Value]:
    """Tokens in GPT-2's byte alphabet, merges as pairs with a space between, and the name of the pattern."""
    if (spec.pattern, spec.ignore_merges) not in _PRE or spec.add_prefix_space:
        raise ValueError(
            f"llama.cpp has no tokenizer with the pattern {spec.pattern}, ignore_merges {spec.ignore_merges} and "
            f"add_prefix_space {spec.add_prefix_space}; it has {', '.join(sorted({pattern for pattern, _ in _PRE}))}"
        )
    if spec.pattern == "cl100k":
        notes.append("llama.cpp cuts white space with line breaks at the end of a text in two, unlike this tokenizer")
    if spec.nfc:
        notes.append("llama.cpp does not compose characters (NFC): e and an accent behind it get other ids there")
    texts = [None if token is None else written(token) for token in spec.tokens]
    merges = [f"{texts[left]} {texts[right]}" for left, right in spec.merges]
    values = _with_added(spec, texts, [_NORMAL] * len(texts), notes)
    pre = _PRE[spec.pattern, spec.ignore_merges]
    return {"model": "gpt2", "pre": pre, "merges": merges} | values


def _sentencepiece(spec: BPESpec, notes: list[str]) -> dict[str, Value]:
    """Tokens with scores, of which llama.cpp joins the pair whose token has the highest: merges become -rank."""
    rank: dict[bytes, int] = {}
    pairs = set(spec.merges)
    ids = {token: id for id, token in enumerate(spec.tokens) if token is not None}
    for place, (left, right) in enumerate(spec.merges):
        rank.setdefault(spec.tokens[left] + spec.tokens[right], place)
    for token in ids:
        text = token.decode(errors="replace")
        for cut in range(1, len(text)):
            left, right = text[:cut].encode(), text[cut:].encode()
            if left in ids and right in ids and (ids[left], ids[right]) not in pairs:
                raise ValueError(
                    f"llama.cpp would join {text[:cut]!r} and {text[cut:]!r} into a token, and this tokenizer has no "
                    "such merge: the same text would get other ids"
                )
    prefix = spec.metaspace in ("prepend", "always", "first")
    if spec.metaspace in ("always", "first"):
        where = "where one is already" if spec.metaspace == "always" else "behind special tokens"
        notes.append(f"llama.cpp puts a space in front of a text also {where}, unlike this tokenizer")
    if prefix and any(token.normalized for token in spec.added):
        notes.append("llama.cpp finds special tokens inside a word too, unlike this tokenizer")
    bytes_of = {f"<0x{byte:02X}>".encode() for byte in range(256)}
    types = [_BYTE if token in bytes_of else _NORMAL for token in spec.tokens]
    texts = [None if token is None else token.decode(errors="replace") for token in spec.tokens]
    values = _with_added(spec, texts, types, notes)
    scores = [float(-rank.get(token, 0)) for token in spec.tokens] + [0.0] * (len(values["tokens"]) - len(spec.tokens))
    return {"model": "llama", "scores": scores, "add_space_prefix": prefix} | values


def _with_added(spec: BPESpec, texts: list[str | None], types: list[int], notes: list[str]) -> dict[str, Value]:
    """Tokens and their types, with the added ones at their places and names for the holes."""
    texts, types = list(texts), list(types)
    texts += [None] * (spec.vocab_size - len(texts))
    types += [_UNUSED] * (spec.vocab_size - len(types))
    for token in spec.added:
        texts[token.id] = token.content
        types[token.id] = _CONTROL if token.special else _USER_DEFINED
        if not token.plain:
            notes.append(f"llama.cpp does not know that {token.content!r} takes the white space beside it")
    for id, text in enumerate(texts):
        if text is None:
            texts[id], types[id] = f"[PAD{id}]", _UNUSED
    return {"tokens": texts, "token_type": types}


def _ends(spec: BPESpec, source: Source) -> dict[str, Value]:
    """Which tokens begin and end a text; llama.cpp stops at three kinds: of a text, of a turn, of a message.

    Where a file names none, llama.cpp takes 11 or 2, whatever they stand for. A token that no text has does no harm.
    """
    harmless = next((id for id, token in enumerate(spec.tokens) if token in _NEVER_IN_TEXT), None)
    ends = source.end_ids or [harmless]
    begin = harmless if spec.bos_id is None else spec.bos_id
    if None in (begin, *ends):
        raise ValueError("llama.cpp needs tokens that begin and end a text, and this tokenizer has none")
    if len(ends) > len(_ENDS):
        known, more = ends[: len(_ENDS)], ends[len(_ENDS) :]
        source.notes.append(f"llama.cpp stops at tokens {known}, and this model also at {more}")
    return dict(zip(_ENDS, ends, strict=False)) | {"bos_token_id": begin, "add_bos_token": spec.add_bos}


def _chat_templates(source: Source) -> dict[str, Value]:
    if source.chat is None:
        return {}
    named = {name: text for name, text in source.chat.sources.items() if name != "default"}
    values: dict[str, Value] = {f"tokenizer.chat_template.{name}": text for name, text in named.items()}
    if named:
        values["tokenizer.chat_templates"] = list(named)
    if "default" in source.chat.sources:
        values["tokenizer.chat_template"] = source.chat.sources["default"]
    return values
