"""The learning rate of each step."""

from __future__ import annotations

import math


def learning_rate_at(
    iteration: int, *, learning_rate: float, min_lr: float, warmup_iters: int, lr_decay_iters: int
) -> float:
    """Linear warmup, half a cosine down, then level; nanoGPT's formula.

        i < warmup_iters:                     learning_rate (i + 1) / (warmup_iters + 1)
        warmup_iters <= i < lr_decay_iters:   min_lr + (learning_rate - min_lr) (1 + cos(pi r)) / 2,
                                              r = (i - warmup_iters) / (lr_decay_iters - warmup_iters)
        otherwise:                            min_lr

    Args:
        iteration: i, updates made before this one.
    """
    if iteration < warmup_iters:
        return learning_rate * (iteration + 1) / (warmup_iters + 1)
    if iteration >= lr_decay_iters:
        return min_lr
    way = (iteration - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * way)) * (learning_rate - min_lr)
