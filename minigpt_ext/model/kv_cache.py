"""KVCache: the keys and values of the tokens a model has already read, so that each new token costs one token."""

import math

import numpy as np
import torch
from torch import Tensor

from .config import GPTConfig


class KVCache:
    """A paged key/value cache for ``batch_size`` sequences of up to ``max_tokens`` tokens each.

    A sequence's tokens lie in blocks of ``cache_block`` tokens; ``block_table`` says which block of the pool holds
    tokens ``n * cache_block`` and on. Here every sequence owns its blocks from the start (the identity table), and all
    sequences have the same length. A model call appends to it: ``model(ids, cache=cache)``.

    Attributes:
        k, v: a tensor a layer, (n_blocks, cache_block, H_kv, D).
        k_scales, v_scales: a tensor a layer, (n_blocks, cache_block, H_kv) float32, where dtype is int8; else None.
        block_table: (B, max_blocks) int32.
        seq_lens: (B,) int32, tokens each sequence holds; ``length`` is the same as a host integer.
        seq_lens_after: (B,) int32, within a model call: tokens with those of the call.

    Args:
        config: the model's config (layers, heads, head_dim, and block_size, the most that max_tokens may be).
        cache_block: tokens a block.
        dtype, device: of the keys and values; torch's defaults where not given. They must be what the model computes
            in: ``GPT.new_cache`` sees to that. Or dtype is int8: each token's keys and values are then quantised, with
            a scale a head (``ops.kv_append``).

    Raises:
        ValueError: an argument is not a positive integer, max_tokens is more than config.block_size, or dtype is
            another one.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        max_tokens: int,
        *,
        cache_block: int = 64,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens), ("cache_block", cache_block)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer, not {value!r}")
        if max_tokens > config.block_size:
            raise ValueError(f"max_tokens must be block_size ({config.block_size}) at most, not {max_tokens}")
        if dtype is not None and not (dtype.is_floating_point or dtype == torch.int8):
            raise ValueError(f"dtype must be a floating one or torch.int8, not {dtype}")
        max_blocks = -(-max_tokens // cache_block)
        shape = (batch_size * max_blocks, cache_block, config.n_kv_head, config.head_dim)
        self.batch_size, self.max_tokens = batch_size, max_tokens
        self.length = 0
        # Tensors made in inference mode could not be written outside it.
        with torch.inference_mode(False):
            keys, values = ([_zeros(shape, dtype, device) for _ in range(config.n_layer)] for _ in range(2))
            self.k: list[Tensor] = keys
            self.v: list[Tensor] = values
            self.k_scales, self.v_scales = (
                [_zeros(shape[:3], torch.float32, device) if dtype == torch.int8 else None for _ in keys]
                for _ in range(2)
            )
            blocks = torch.arange(batch_size * max_blocks, dtype=torch.int32, device=device)
            self.block_table = blocks.view(batch_size, max_blocks)
            self.seq_lens = torch.zeros(batch_size, dtype=torch.int32, device=device)
        self.seq_lens_after = self.seq_lens

    def begin(self, n_tokens: int) -> None:
        """Make ready for n_tokens more a sequence. Nothing counts as held before :meth:`advance`.

        Raises:
            ValueError: they do not fit.
        """
        if self.length + n_tokens > self.max_tokens:
            raise ValueError(
                f"the cache is full: it holds {self.length} of {self.max_tokens} tokens a sequence, "
                f"and {n_tokens} more do not fit"
            )
        self.seq_lens_after = self.seq_lens + n_tokens

    def advance(self, n_tokens: int) -> None:
        """Count the n_tokens that :meth:`begin` announced, now that every layer has written them."""
        self.seq_lens = self.seq_lens_after
        self.length += n_tokens

    def reset(self) -> None:
        """Forget all tokens; the memory stays for the next ones."""
        self.seq_lens = self.seq_lens_after = torch.zeros_like(self.seq_lens)
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and their scales, all layers together, used or not."""
        tensors = (*self.k, *self.v, *self.k_scales, *self.v_scales)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype | None, device: torch.device | str | None) -> Tensor:
    """torch.zeros. On a CPU the memory comes from calloc: the system clears a page when it is first written.

    torch would clear it by its threads, and these then spin for milliseconds on the cores that are to read the prompt.
    """
    device = torch.get_default_device() if device is None else torch.device(device)
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    nbytes = math.prod(shape) * dtype.itemsize
    memory = np.zeros(nbytes + 63, dtype=np.uint8)
    begin = -memory.ctypes.data % 64  # a cache line's beginning, as torch's own tensors have
    return torch.from_numpy(memory[begin : begin + nbytes]).view(dtype).view(shape)
