"""What an export begins with: a model, its tokenizer and what else lies in its directory."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from minigpt_ext.model import GPT
from minigpt_ext.tokenizer import Tokenizer, load_tokenizer
from minigpt_ext.tokenizer.chat import ChatTemplate

from .ends import end_ids
from .families import RUN, family_of, read_config
from .pretrained import load, locate


class Source:
    """A model and its company.

    Args:
        directory: where they lie.
        model: on the CPU, in the dtype in which it is to be written.
        values: the directory's config.json; nothing for a run of ours.
        name: for people; the directory's by default.

    Attributes:
        notes: what a person should know about the export; filled on the way.
    """

    def __init__(self, directory: Path, model: GPT, values: Mapping[str, Any] | None = None, name: str = "") -> None:
        self.directory = directory
        self.model = model
        self.values = dict(values or {})
        self.name = name or directory.resolve().name
        self.notes: list[str] = []

    @classmethod
    def open(cls, path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Source:
        """Load a run directory, a Hugging Face directory or a hub id; in the dtype of its files by default.

        Raises:
            ValueError, OSError: see `GPT.from_pretrained`; or a value is beyond the range of dtype.
        """
        directory = locate(path)
        model = load(directory, device="cpu", dtype=dtype or "auto")
        if dtype == torch.float16:
            for name, parameter in model.named_parameters():
                if not parameter.isfinite().all():
                    raise ValueError(f"{name} has values beyond the range of f16 (65504): write bf16 or f32")
        values = read_config(directory)
        return cls(directory, model, None if family_of(values) is RUN else values, Path(path).name)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, None where there is none. Raises ValueError where it has more tokens than the model."""
        try:
            tokenizer = load_tokenizer(self.directory)
        except FileNotFoundError:
            return None
        vocab_size = self.model.config.vocab_size
        if tokenizer.vocab_size > vocab_size:
            raise ValueError(
                f"{self.directory}: the tokenizer has {tokenizer.vocab_size} tokens and the model {vocab_size}"
            )
        return tokenizer

    @functools.cached_property
    def end_ids(self) -> list[int]:
        """The tokens that end a text: the tokenizer's first, then what the files beside it say."""
        eos_id = None if self.tokenizer is None else self.tokenizer.eos_id
        ids = dict.fromkeys(([] if eos_id is None else [eos_id]) + end_ids(self.directory))
        # A config like GPT-2's may name GPT-2's token, where the model has a smaller vocabulary of its own.
        return [id for id in ids if id < self.model.config.vocab_size]

    @functools.cached_property
    def chat(self) -> ChatTemplate | None:
        """The chat templates, None where the directory has none."""
        try:
            return ChatTemplate.load(self.directory)
        except FileNotFoundError:
            return None
