"""Reads `tokenizer.json`, the file of the library `tokenizers`: byte-pair encoding as GPT-2 does it (over bytes) and as
SentencePiece does it (over characters, with bytes for the unknown ones).

What a file asks for is done exactly, or refused by an error that names the field and its value. Two fields are passed
over: `truncation` and `padding` say how batches are made up, and not what the tokens of a text are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minigpt_ext.tokenizer import patterns
from minigpt_ext.tokenizer.added_tokens import AddedToken
from minigpt_ext.tokenizer.hf_model import read_model
from minigpt_ext.tokenizer.json_node import Node, read_json
from minigpt_ext.tokenizer.spec import LARGEST_ID, SPACE_MARK, BPESpec

_REGEXES = {getattr(patterns, name.upper()): name for name in ("gpt2", "cl100k", "llama3", "qwen2")}
# The contractions as GPT-2 and as Llama 3 spell them: the same pieces.
_REGEXES |= {
    regex.replace("'(?:[sdmt]|ll|ve|re)", "'s|'t|'re|'ve|'m|'ll|'d").replace(
        "'(?i:[sdmt]|ll|ve|re)", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    ): name
    for regex, name in _REGEXES.items()
}


def read_tokenizer_json(path: Path) -> BPESpec:
    """What the file says. Raises ValueError naming file and field, OSError as the system does.

    Which tokens begin and end a text it does not say, except that a post-processor may put one in front: that is
    bos_id then, with add_bos.
    """
    root = read_json(path)
    root.known(
        "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder",
        "model",
    )  # fmt: skip
    fields = _normalizer(root.get("normalizer"))
    fields |= _pre_tokenizer(root.get("pre_tokenizer"), fields)
    over_bytes = fields["alphabet"] == "bytes"
    added = _added_tokens(root.get("added_tokens"))
    fields |= read_model(root["model"], over_bytes, added)
    _check_numbering(root.get("added_tokens"), added, root["model"]["vocab"].object())
    if fields.pop("splits") and any(_begins_with_space(fields["tokens"], right) for _, right in fields["merges"]):
        raise root["pre_tokenizer"].error(
            '"split" is true, and the vocabulary has tokens with a space inside; this program does not cut at spaces'
        )
    fields["strips_space"] = _decoder(root.get("decoder"), over_bytes)
    bos = _post_processor(root.get("post_processor"), added)
    try:
        return BPESpec(**fields, added=added, bos_id=bos, add_bos=bos is not None)
    except ValueError as error:
        raise root.error(str(error)) from None


def _begins_with_space(tokens: tuple[bytes | None, ...], id: int) -> bool:
    return (tokens[id] or b"").startswith(SPACE_MARK.encode())


def _added_tokens(node: Node) -> tuple[AddedToken, ...]:
    added = []
    for entry in [] if node.value is None else node.items():
        entry.known("id", "content", "single_word", "lstrip", "rstrip", "normalized", "special")
        flags = {name: entry.get(name).flag() for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        added.append(AddedToken(entry["content"].text(), entry["id"].integer(0, LARGEST_ID), **flags))
    return tuple(added)


def _check_numbering(node: Node, added: tuple[AddedToken, ...], vocab: dict[str, int]) -> None:
    """Refuse an added token outside of the vocabulary whose id is not the next: `tokenizers` would give it that one."""
    following = len(vocab)
    for entry, token in zip(node.items() if added else (), added, strict=True):
        if token.content not in vocab and token.id != following:
            raise entry["id"].error(
                f"{token.content!r} is not in the vocabulary and has the id {token.id}, where the library tokenizers "
                f"would give it the next, {following}"
            )
        following = max(following, token.id + 1)


def _steps(node: Node, list_name: str) -> list[Node]:
    """The parts of a normalizer, pre-tokenizer, decoder or post-processor: of a sequence, or the one; none for null."""
    if node.value is None:
        return []
    if node["type"].value != "Sequence":
        return [node]
    node.known("type", list_name)
    return [step for part in node[list_name].items() for step in _steps(part, list_name)]


def _types(steps: list[Node]) -> list[Any]:
    return [step["type"].value for step in steps]


def _normalizer(node: Node) -> dict[str, Any]:
    steps = _steps(node, "normalizers")
    types = _types(steps)
    if types == []:
        return {}
    if types == ["NFC"]:
        steps[0].known("type")
        return {"nfc": True}
    if types in (["Prepend", "Replace"], ["Replace"]):
        for step in steps:
            if step["type"].value == "Prepend":
                step.known("type", "prepend")
                step["prepend"].only(SPACE_MARK)
            else:
                _replaces(step, " ", SPACE_MARK)
        return {"metaspace": "prepend" if len(steps) == 2 else "replace"}
    raise node.refused("this program can do none, NFC, Replace of spaces by U+2581, and Prepend of U+2581 before that")


def _replaces(step: Node, old: str, new: str) -> None:
    step.known("type", "pattern", "content")
    step["pattern"].only({"String": old})
    step["content"].only(new)


def _pre_tokenizer(node: Node, normalizer: dict[str, Any]) -> dict[str, Any]:
    steps = _steps(node, "pretokenizers")
    types = _types(steps)
    spaces_marked = "metaspace" in normalizer
    if types == [] and spaces_marked:
        return {"alphabet": "characters+bytes", "pattern": "none", "splits": False}
    if types == ["Metaspace"] and not normalizer:
        return {"alphabet": "characters+bytes", "pattern": "none"} | _metaspace(steps[0])
    if types and types[-1] == "ByteLevel" and not spaces_marked:
        prefix, pattern = _byte_level(steps[-1])
        if types == ["Digits", "ByteLevel"] and pattern == "gpt2" and not prefix:
            steps[0].known("type", "individual_digits")
            steps[0]["individual_digits"].only(True)
            pattern = "smollm"
        elif types == ["Split", "ByteLevel"] and pattern == "none" and not prefix:
            pattern = _split(steps[0])
        elif len(types) > 1:
            raise node.refused("this program can do ByteLevel after one Split (with use_regex false) or after Digits")
        return {"alphabet": "bytes", "pattern": pattern, "add_prefix_space": prefix, "splits": False}
    raise node.refused(
        "this program can do ByteLevel, alone or after Split or Digits; Metaspace; and none behind a normalizer that "
        "writes spaces as U+2581"
    )


def _byte_level(step: Node) -> tuple[bool, str]:
    step.known("type", "add_prefix_space", "trim_offsets", "use_regex")
    return step.get("add_prefix_space").flag(True), "gpt2" if step.get("use_regex").flag(True) else "none"


def _split(step: Node) -> str:
    step.known("type", "pattern", "behavior", "invert")
    step["pattern"].known("Regex", "String")
    regex = step["pattern"]["Regex"] if "Regex" in step["pattern"] else None
    if regex is None or regex.text() not in _REGEXES:
        names = ", ".join(sorted(set(_REGEXES.values())))
        raise step["pattern"].refused(f"this program can cut by the expressions it knows as {names}")
    # The expressions match everything, so that cutting at matches and keeping nothing but matches are the same.
    if (step["behavior"].value, step.get("invert").flag()) not in (("Isolated", False), ("Removed", True)):
        raise step["behavior"].refused('this program can do "Isolated", and "Removed" with invert true')
    return _REGEXES[regex.text()]


def _metaspace(step: Node) -> dict[str, Any]:
    step.known("type", "replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep")
    step["replacement"].only(SPACE_MARK)
    scheme = step.get("prepend_scheme") if "prepend_scheme" in step else Node("always", step.file)
    scheme.only("always", "first", "never")
    if step.get("add_prefix_space").value not in (None, scheme.value != "never"):
        raise step.get("add_prefix_space").refused(f"the prepend_scheme {scheme.shown()} says otherwise")
    return {"metaspace": scheme.value, "splits": step.get("split").flag(True)}


def _decoder(node: Node, over_bytes: bool) -> bool:
    """Whether a space at the very beginning goes."""
    steps = _steps(node, "decoders")
    types = _types(steps)
    if over_bytes:
        if types == ["ByteLevel"]:
            return False
        raise node.refused('this program can do {"type": "ByteLevel"}')
    if types not in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"]):
        raise node.refused("this program can do Replace, ByteFallback and Fuse, with Strip behind or without")
    _replaces(steps[0], SPACE_MARK, " ")
    if types[-1] == "Strip":
        steps[3].known("type", "content", "start", "stop")
        for key, value in (("content", " "), ("start", 1), ("stop", 0)):
            steps[3][key].only(value)
    return types[-1] == "Strip"


def _post_processor(node: Node, added: tuple[AddedToken, ...]) -> int | None:
    """The token it puts in front of a text."""
    steps = [step for step in _steps(node, "processors") if step["type"].value != "ByteLevel"]  # that is about offsets
    if not steps:
        return None
    if _types(steps) != ["TemplateProcessing"]:
        raise node.refused("this program can do ByteLevel, and TemplateProcessing that puts one token in front")
    template = steps[0]["single"]
    parts = [next(iter(part.object()), None) for part in template.items()]
    if parts == ["Sequence"]:
        return None
    if parts != ["SpecialToken", "Sequence"]:
        raise template.refused("this program can put one token in front of the text, and none behind")
    name = next(template.items())["SpecialToken"]["id"].text()
    token = next((token for token in added if token.content == name), None)
    if token is None:
        raise template.error(f"{name!r} is no added token")
    special = steps[0]["special_tokens"]
    if name in special:
        special[name]["ids"].only([token.id])
    else:
        raise special.error(f'"{name}" is missing')
    return token.id
