"""What the model and the decode engine ask of token ids."""

import torch
from torch import Tensor


def check_ids(name: str, ids: Tensor, vocab_size: int, device: torch.device, lowest: int = 0) -> None:
    """Raise TypeError or ValueError unless ids are (B, T), int64 or int32, on the device, in [lowest, vocab_size)."""
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(ids).__name__}")
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be int64 or int32, not {ids.dtype}")
    if ids.ndim != 2 or ids.numel() == 0:
        raise ValueError(f"{name} must be (B, T) with one token at least, not {tuple(ids.shape)}")
    if ids.device != device:
        raise ValueError(f"{name} must be on the model's device {device}, not {ids.device}")
    # On a device the values cannot be seen without waiting for it, and in a compiled graph they do not exist yet.
    if ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    low, high = (int(value) for value in ids.aminmax())
    if low < lowest or high >= vocab_size:
        wrong = low if low < lowest else high
        raise ValueError(f"{name} must lie in [{lowest}, {vocab_size}), and holds {wrong}")
