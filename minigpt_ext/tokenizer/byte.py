"""A token a byte: 256 of them, and no text that lacks one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from minigpt_ext.tokenizer.base import Ids, Tokenizer, check_id, check_no_surrogate, check_text, listed
from minigpt_ext.tokenizer.json_node import read_json


class ByteTokenizer(Tokenizer):
    """The bytes of a text's UTF-8 as ids 0 ... 255."""

    FORMAT = "minigpt-byte"
    UNIT = "byte"

    @property
    def vocab_size(self) -> int:
        return 256

    def encode_to_tensor(self, text: str, *, special: bool | Iterable[str] = True) -> torch.Tensor:
        check_text(text)
        self._wanted(special)
        check_no_surrogate(text)
        return torch.from_numpy(np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32))

    def token_bytes(self, id: int) -> bytes:
        check_id(id, 256)
        return bytes([id])

    def decode_bytes(self, ids: Ids) -> bytes:
        numbers = listed(ids)
        for number in numbers:
            check_id(number, 256)
        return bytes(numbers)

    def file_content(self) -> str:
        return json.dumps({"format": self.FORMAT, "version": 1}, indent=1) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> ByteTokenizer:
        """Read what `save` wrote. Raises ValueError where the file holds anything else."""
        content = read_json(Path(path))
        content["format"].only(cls.FORMAT)
        content["version"].only(1)
        content.known("format", "version")
        return cls()

    def __repr__(self) -> str:
        return "ByteTokenizer()"
