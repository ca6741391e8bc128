"""Tokens to batches: random windows to train on, fixed windows to evaluate on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NO_TARGET = -1  # a target the loss leaves out
EVALUATION_TOKENS = 2**18  # more predictions than this are not made in one evaluation


def check_long_enough(n_training: int, n_validation: int, block_size: int, unit: str = "token") -> None:
    """Refuse a corpus with less than one window of block_size + 1 tokens in either split; `unit` is what a token is.

    Raises ValueError naming the shorter split and what would do.
    """
    for name, n in (("training", n_training), ("validation", n_validation)):
        if n < block_size + 1:
            raise ValueError(
                f"data: the {name} split has {n:,} tokens; block_size {block_size} needs {block_size + 1:,} at least: "
                f"give a longer text (about {10 * (block_size + 1):,} {unit}s) or a smaller block_size"
            )


def random_windows(
    tokens: Tensor, batch_size: int, block_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A training batch: windows that start anywhere, each start equally likely.

    Args:
        tokens: (N,) ids on the CPU, N > block_size.
        batch_size: B. block_size: T.
        generator: draws the starts, and nothing else does: its state is the data cursor.

    Returns:
        ids, targets (B, T) int64; targets[b, t] follows ids[b, t].
    """
    starts = torch.randint(len(tokens) - block_size, (batch_size, 1), generator=generator)
    windows = tokens[starts + torch.arange(block_size + 1)].long()
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


@dataclass(frozen=True)
class EvaluationWindows:
    """Windows side by side over a split, so that every token but the first is predicted once.

    The last window is filled up with token 0 and targets that do not count; in front of them nothing changes, for the
    model looks backwards only. Where there would be more than EVALUATION_TOKENS predictions, evenly spaced windows
    stand for all: always the same ones.

    Attributes:
        ids, targets: (W, T) int64.
    """

    ids: Tensor
    targets: Tensor

    @classmethod
    def over(
        cls, tokens: Tensor, block_size: int, device: torch.device | str = "cpu", limit: int = EVALUATION_TOKENS
    ) -> EvaluationWindows:
        """Cut `tokens` (N,), N >= 2, into windows of T = block_size; `limit` predictions, or one window, at most."""
        n_predictions = len(tokens) - 1
        n_windows = -(-n_predictions // block_size)
        n_kept = min(n_windows, max(limit // block_size, 1))
        kept = torch.arange(n_kept) * n_windows // n_kept
        ids = torch.zeros(n_kept, block_size, dtype=torch.int64)
        targets = torch.full((n_kept, block_size), NO_TARGET, dtype=torch.int64)
        for row, window in enumerate(kept.tolist()):
            piece = tokens[window * block_size : (window + 1) * block_size + 1].long()
            ids[row, : len(piece) - 1] = piece[:-1]
            targets[row, : len(piece) - 1] = piece[1:]
        return cls(ids.to(device), targets.to(device))

    @property
    def n_predictions(self) -> int:
        return int((self.targets != NO_TARGET).sum())

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(ids, targets) of `batch_size` windows at a time, the last batch shorter where it must be."""
        yield from zip(self.ids.split(batch_size), self.targets.split(batch_size), strict=True)
