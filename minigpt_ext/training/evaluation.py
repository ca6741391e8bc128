"""How well a model predicts a text."""

from __future__ import annotations

import torch

from minigpt_ext.data.batches import NO_TARGET, EvaluationWindows
from minigpt_ext.model import GPT


@torch.no_grad()
def evaluate(model: GPT, windows: EvaluationWindows, batch_size: int) -> float:
    """The mean loss over all predictions of `windows`, in nats a token, dropout off; the model's mode is kept."""
    training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    for ids, targets in windows.batches(batch_size):
        _, loss = model(ids, targets)
        total += loss.cpu().double() * int((targets != NO_TARGET).sum())
    model.train(training)
    return float(total) / windows.n_predictions
