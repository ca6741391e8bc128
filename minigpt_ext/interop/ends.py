"""Which tokens end a text, by the files beside a model. Chat models have several: of a text, a turn, a message."""

from __future__ import annotations

from pathlib import Path

from minigpt_ext.tokenizer.json_node import read_json
from minigpt_ext.tokenizer.spec import LARGEST_ID


def end_ids(directory: Path) -> list[int]:
    """What eos_token_id of generation_config.json, or else of config.json, says: one id, a list of them, or none.

    Raises:
        ValueError: a file is not JSON, or holds there what is no id; the message names it.
    """
    for name in ("generation_config.json", "config.json"):
        file = directory / name
        if not file.is_file():
            continue
        config = read_json(file)
        ids = config.get("eos_token_id")
        if ids.value is not None:
            return [id.integer(0, LARGEST_ID) for id in (ids.items() if isinstance(ids.value, list) else [ids])]
    return []
