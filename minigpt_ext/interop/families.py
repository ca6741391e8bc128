"""The kinds of models that can be loaded, and which of them a config.json is of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigpt_ext.model import GPTConfig

from .gpt2 import GPT2
from .llama import LLAMA
from .rules import Family
from .safetensors_header import shown, unique_keys

# By "model_type".
FAMILIES: dict[str, Family] = {"gpt2": GPT2, "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA}
MAX_CONFIG = 10_000_000  # bytes; real ones are a few thousand


def _run_config(values: Mapping[str, Any]) -> GPTConfig:
    if values.get("version") != 1:
        raise ValueError(f'"version" is {shown(values.get("version"))}; this program reads runs of version 1')
    return GPTConfig.from_dict(values.get("model"))


RUN = Family(name="minigpt", prefix="", rules=None, config_of=_run_config)


def read_config(directory: Path) -> dict[str, Any]:
    """The object in the ``config.json`` of a directory.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON object. Both name the file.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory} is no model: it holds no config.json. A Hugging Face directory has one beside its safetensors"
            " files, and so has a run directory of `minigpt train`, beside model.safetensors and tokenizer.json"
        )
    if (size := path.stat().st_size) > MAX_CONFIG:
        raise ValueError(f"{path}: a config of {size} bytes; {MAX_CONFIG} are the limit")
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
    except RecursionError:
        raise ValueError(f"{path} nests too deep for a config") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a config: it must hold an object, and holds {shown(values)}")
    return values


def family_of(values: Mapping[str, Any]) -> Family:
    """The family of a config: a run of ours, or by its "model_type".

    Raises:
        ValueError: it is of none; the message lists those there are.
    """
    if values.get("format") == "minigpt-run":
        return RUN
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(
            f'"model_type" is {shown(kind)}; supported are {", ".join(FAMILIES)} (and, with "format": "minigpt-run", '
            "the runs of `minigpt train`)"
        )
    return FAMILIES[kind]
