"""Paged caches for tests: shuffled blocks, and poison wherever no token lies."""

import torch
from torch import Tensor

POISON = -777_777  # in table entries that no sequence has come to


def int32(values, device="cpu") -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def shuffled_table(
    lens: list[int], block_size: int, max_blocks: int, spare: int = 2, device="cpu"
) -> tuple[Tensor, int]:
    """(B, max_blocks) block table for sequences of these lengths, in blocks dealt out at random; and the number of
    blocks, of which `spare` belong to nobody."""
    needed = [-(-n // block_size) for n in lens]
    order = torch.randperm(sum(needed) + spare).tolist()
    table = torch.full((len(lens), max_blocks), POISON, dtype=torch.int32)
    for row, n in zip(table, needed, strict=True):
        row[:n] = int32([order.pop() for _ in range(n)])
    return table.to(device), sum(needed) + spare


def poisoned_caches(n_blocks: int, block_size: int, H_kv: int, D: int, dtype, device) -> tuple[Tensor, Tensor]:
    """k_cache and v_cache full of NaN."""
    return tuple(
        torch.full((n_blocks, block_size, H_kv, D), float("nan"), dtype=dtype, device=device) for _ in range(2)
    )


def write(cache: Tensor, table: Tensor, b: int, tokens: Tensor, start: int = 0) -> None:
    """tokens (n, H_kv, D) go to positions start ... of sequence b, as the layout is defined."""
    position = torch.arange(start, start + tokens.shape[0], device=cache.device)
    block_size = cache.shape[1]
    cache[table[b, position // block_size].long(), position % block_size] = tokens
