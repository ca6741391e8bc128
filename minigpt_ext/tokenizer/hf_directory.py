"""A tokenizer's directory as `transformers` keeps it: beside the vocabulary, which tokens begin and end a text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from minigpt_ext.data.files import write_atomically
from minigpt_ext.tokenizer.added_tokens import AddedToken
from minigpt_ext.tokenizer.hf_json import read_tokenizer_json
from minigpt_ext.tokenizer.hf_write import tokenizer_text
from minigpt_ext.tokenizer.json_node import Node, read_json
from minigpt_ext.tokenizer.spec import END_OF_TEXT, BPESpec
from minigpt_ext.tokenizer.vocab_files import read_vocab_files, write_vocab_files

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
VOCAB, MERGES = "vocab.json", "merges.txt"
FILES = (TOKENIZER, CONFIG, VOCAB, MERGES)  # what `write_directory` writes
_TOKEN_MAP = "special_tokens_map.json"
# What to make of vocab.json and merges.txt, by the class that tokenizer_config.json names: pattern and nfc.
_CLASSES = {None: ("gpt2", False), "GPT2Tokenizer": ("gpt2", False), "Qwen2Tokenizer": ("qwen2", True)}


def read_file(path: Path) -> BPESpec:
    """A tokenizer.json with the tokenizer_config.json and special_tokens_map.json beside it, if they are there.

    Raises ValueError naming file and field, OSError as the system does.
    """
    spec = _with_config(read_tokenizer_json(path), path.parent)
    # This class of transformers sets it anew, whatever tokenizer.json says.
    if _class_name(spec.config) == "GPT2Tokenizer" and spec.pattern == "gpt2" and spec.alphabet == "bytes":
        spec = replace(spec, add_prefix_space=_config(path.parent).get("add_prefix_space").flag())
    return spec


def read_vocab_directory(directory: Path) -> BPESpec:
    """A directory of vocab.json and merges.txt without a tokenizer.json. Raises as `read_file` does."""
    config = _config(directory)
    name = _class_name(config.value)
    if not isinstance(name, str | None) or name not in _CLASSES:
        raise config["tokenizer_class"].refused(
            f"without {TOKENIZER} this program can do {', '.join(filter(None, _CLASSES))}"
        )
    pattern, nfc = _CLASSES[name]
    spec = read_vocab_files(directory / VOCAB, directory / MERGES, pattern)
    added = {token.id: token for token in spec.added}
    decoder = config.get("added_tokens_decoder")
    for key in decoder.object() if decoder.value is not None else ():
        entry = decoder[key]
        if not re.fullmatch("[0-9]{1,9}", key):
            raise entry.error("expected an id as key")
        flags = {flag: entry.get(flag).flag() for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        added[int(key)] = AddedToken(entry["content"].text(), int(key), **flags)
    try:
        spec = replace(spec, nfc=nfc, added=tuple(added[id] for id in sorted(added)))
    except ValueError as error:
        raise config.error(str(error)) from None
    spec = _with_config(spec, directory)
    add_bos = config.get("add_bos_token").flag() and spec.bos_id is not None  # as transformers does
    if config.get("add_eos_token").flag() and spec.eos_id is not None:
        raise config["add_eos_token"].refused("this program puts nothing behind a text")
    prefix = config.get("add_prefix_space").flag()
    return replace(spec, add_bos=add_bos, add_prefix_space=prefix)


def write_file(spec: BPESpec, path: Path) -> list[Path]:
    """Write a tokenizer.json and, beside it, tokenizer_config.json. Returns both paths.

    Raises ValueError where the files cannot hold `spec`, before anything is written.
    """
    text = tokenizer_text(spec)
    config = path.parent / CONFIG
    write_atomically(config, json.dumps(tokenizer_config(spec), ensure_ascii=False, indent=2) + "\n")
    write_atomically(path, text)
    return [path, config]


def write_directory(spec: BPESpec, directory: Path) -> list[Path]:
    """Write tokenizer.json and tokenizer_config.json, and for byte-level tokenizers vocab.json and merges.txt too.

    Makes the folder where it is missing. Raises ValueError where the files cannot hold `spec`; nothing is written then.
    """
    tokenizer_text(spec)
    directory.mkdir(parents=True, exist_ok=True)
    paths = write_file(spec, directory / TOKENIZER)
    if spec.alphabet == "bytes":
        paths += [directory / VOCAB, directory / MERGES]
        write_vocab_files(spec, *paths[2:])
    return paths


def tokenizer_config(spec: BPESpec) -> dict[str, Any]:
    """The content of tokenizer_config.json: what came with the tokenizer, and what it says now."""
    contents = {token.id: token.content for token in spec.added}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **spec.config}
    for key, id in (("bos_token", spec.bos_id), ("eos_token", spec.eos_id)):
        if not _same_token(config.get(key), contents.get(id)):
            config[key] = contents.get(id)
    if spec.add_bos or "add_bos_token" in config:
        config["add_bos_token"] = spec.add_bos
    return config


def _same_token(entry: Any, content: str | None) -> bool:
    return (entry.get("content") if isinstance(entry, dict) else entry) == content


def _class_name(config: Mapping[str, Any]) -> Any:
    name = config.get("tokenizer_class")
    return name.removesuffix("Fast") if isinstance(name, str) else name


def _config(directory: Path, name: str = CONFIG) -> Node:
    path = directory / name
    config = read_json(path) if path.is_file() else Node({}, path)
    config.object()
    return config


def _with_config(spec: BPESpec, directory: Path) -> BPESpec:
    """`spec` with the tokens that begin and end a text.

    They stand in tokenizer_config.json, else in special_tokens_map.json. Where neither says how a text ends, the
    special token <|endoftext|> does, if there is one. Whether prompts begin with a token is what tokenizer.json says,
    as in `transformers` 5 and `tokenizers`; `add_bos_token` counts where there is no tokenizer.json.
    """
    config, token_map = _config(directory), _config(directory, _TOKEN_MAP)
    spec = replace(spec, config=config.value)
    named = {}
    for key in ("bos_token", "eos_token"):
        source = config if key in config else token_map
        named[key] = None
        if source.get(key).value is not None:
            spec, named[key] = _special(spec, source[key])
    bos_id, eos_id = named["bos_token"], named["eos_token"]
    if "eos_token" not in config and "eos_token" not in token_map:
        eos_id = next((token.id for token in spec.added if token.special and token.content == END_OF_TEXT), None)
    if spec.add_bos and bos_id not in (None, spec.bos_id):
        front = f"and the post_processor of {TOKENIZER} puts the token {spec.bos_id} in front"
        raise (config if "bos_token" in config else token_map)["bos_token"].refused(front)
    return replace(spec, bos_id=spec.bos_id if bos_id is None else bos_id, eos_id=eos_id)


def _special(spec: BPESpec, node: Node) -> tuple[BPESpec, int]:
    """`spec` and the id of the token that `node` names, by its text or by an object with its "content".

    One that is no added token but an ordinary one becomes special, as in `transformers`.
    """
    content = (node["content"] if isinstance(node.value, dict) else node).text()
    for token in spec.added:
        if token.content == content:
            return spec, token.id
    try:
        id = spec.tokens.index(content.encode())
    except ValueError:
        raise node.error(f"{content!r} is no token of this vocabulary") from None
    return replace(spec, added=(*spec.added, AddedToken(content, id))), id
