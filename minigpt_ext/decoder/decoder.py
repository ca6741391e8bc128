"""Decoder: a GPT packed for reading on a CPU, one C++ call a step."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minigpt_ext import _C
from minigpt_ext.model.checks import check_ids
from minigpt_ext.model.kv_cache import KVCache
from minigpt_ext.model.positions import alibi_slopes, rope_tables, sinusoids

if TYPE_CHECKING:
    from minigpt_ext.model import GPT

FORMATS = ("fp32", "bf16", "int8", "int4")
CACHE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
_PARAMETERS_A_THREAD = 1_000_000
_CACHE_NAMES = {dtype: name for name, dtype in CACHE_DTYPES.items()}


class Decoder:
    """A GPT whose weights were packed once for the CPU, in a format of one's choice; it reads and generates.

    It keeps a copy: what the model learns later does not reach it, and the model may be deleted. Nothing grows while it
    works: its buffers are made here, a cache by :meth:`new_cache`.

    Accuracy: fp32 gives the model's logits within 1e-4 of the largest (measured: 1e-6). Otherwise activations are
    rounded too, to bf16, or to int8 where weights are int8 or int4, and the cache is bf16 (see :meth:`new_cache`); sums
    are float. |difference| / |logits| was, at worst, 0.015 with bf16, 0.047 with int8 and 0.51 with int4, on some 250
    random models of all variants up to n_embd 128, whose logits are more sensitive than a trained one's (median: 0.006,
    0.021, 0.22); 0.007 with fp32 weights and a bf16 cache, 0.012 with an int8 one, which with other weights adds little
    to what these cost (0.017, 0.044 and 0.45 at worst). tests/decoder/decoder_check.py has the bounds. What a format
    costs on a text is told by :func:`perplexity`.

    Calls from several threads are served one after the other. A forked process must make a decoder of its own.

    Attributes:
        config: the model's.
        weights: the format.
        threads: how many work on a call, the caller's included.
        weight_bytes: of all weights: packed matrices, norms, biases, tables.
        buffer_bytes: of what a call works in. This, the weights and a cache's nbytes are all the memory there is.

    Args:
        model: a GPT, on the CPU, of any floating dtype.
        weights: "fp32"; "bf16"; "int8" or "int4", with a scale for every 32 weights of a row.
        threads: by default ``torch.get_num_threads()``, or fewer where the model is small: one for every million
            parameters. Below, a token costs threads more in waiting for each other than they save.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range, the model is not on the CPU, or it has
            other parameters than its config says; a matrix holds inf or NaN and the format is int8 or int4 (fp32 and
            bf16 carry them).
    """

    def __init__(self, model: GPT, weights: str = "fp32", threads: int | None = None) -> None:
        from minigpt_ext.model import GPT

        if not isinstance(model, GPT):
            raise TypeError(f"model must be a GPT, not {type(model).__name__}")
        if weights not in FORMATS:
            raise ValueError(f"weights must be one of {', '.join(FORMATS)}, not {weights!r}")
        if threads is None:
            threads = max(1, min(torch.get_num_threads(), model.num_parameters() // _PARAMETERS_A_THREAD))
        if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= 1024:
            raise ValueError(f"threads must be an integer from 1 to 1024, not {threads!r}")
        self.config, self.weights = model.config, weights
        if (device := model.wte.weight.device).type != "cpu":
            raise ValueError(f"the decoder runs on the CPU, and the model is on {device}: model.cpu() is a copy there")
        self._engine = _C.Decoder(_shape_of(model), weights, threads)
        self._lock = threading.Lock()
        self._n_positions = 0
        for name, tensor in model.state_dict().items():
            if name == "wpe.weight":
                name, self._n_positions = "added", self.config.block_size
            self._load(name, tensor)
        if self.config.positions == "alibi":
            self._load("alibi_slopes", torch.tensor(alibi_slopes(self.config.n_head), device="cpu"))
        self._reach(1)
        if missing := self._engine.missing():
            raise ValueError(f"the model lacks {', '.join(missing)}")

    @property
    def threads(self) -> int:
        return self._engine.threads

    @property
    def weight_bytes(self) -> int:
        return self._engine.weight_bytes

    @property
    def buffer_bytes(self) -> int:
        return self._engine.buffer_bytes

    def new_cache(self, batch_size: int, max_tokens: int | None = None, *, dtype: torch.dtype | None = None) -> KVCache:
        """An empty cache, for block_size tokens a sequence by default.

        Args:
            dtype: of keys and values. torch.float32; torch.bfloat16: half the memory and, where the context is long,
                less time, for what rounding queries, keys, values and the attention's output to 8 bits costs;
                torch.int8: little over a quarter of the memory, keys and values rounded to 1/254 of the largest of each
                token and head, queries and the attention's output not at all. (The tokens read at once into an empty
                int8 cache, up to 256 of all sequences together, attend to each other unrounded, as in the model.) By
                default float32 with fp32 weights and bfloat16 with the others, which round the activations as much.

        Raises:
            ValueError: as :class:`KVCache`; or dtype is another.
        """
        if dtype is None:
            dtype = torch.float32 if self.weights == "fp32" else torch.bfloat16
        if dtype not in _CACHE_NAMES:
            raise ValueError(f"dtype must be {_or(CACHE_DTYPES.values())}, or None, not {dtype!r}")
        max_tokens = self.config.block_size if max_tokens is None else max_tokens
        return KVCache(self.config, batch_size, max_tokens, dtype=dtype, device="cpu")

    def next_logits(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, V), fp32, for what follows the last of ids (B, T), which follow the tokens the cache holds.

        Raises:
            TypeError, ValueError: as :meth:`GPT.forward`; or the cache is not one of :meth:`new_cache`'s kind.
        """
        return self._read(ids, cache, every=False)

    def logits(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V), fp32, for what follows each of ids (B, T). Without a cache, ids stand at the beginning.

        Raises:
            TypeError, ValueError: as :meth:`next_logits`.
        """
        return self._read(ids, cache, every=True)

    def generate(self, ids: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
        """Continue ids (B, T) by max_new_tokens: (B, T + max_new_tokens). See :func:`generation.generate.generate`."""
        from minigpt_ext.generation.generate import generate

        return generate(self, ids, max_new_tokens, **options)

    def _read(self, ids: Tensor, cache: KVCache | None, every: bool) -> Tensor:
        check_ids("ids", ids, self.config.vocab_size, torch.device("cpu"))
        batch_size, n_tokens = ids.shape
        if cache is None:
            cache = self.new_cache(batch_size, n_tokens)
        self._check_cache(cache, ids)
        cache.begin(n_tokens)
        self._reach(cache.length + n_tokens)
        view = _C.DecoderCache(
            _CACHE_NAMES[cache.k[0].dtype],
            [k.data_ptr() for k in cache.k],
            [v.data_ptr() for v in cache.v],
            [scales.data_ptr() for scales in cache.k_scales if scales is not None],
            [scales.data_ptr() for scales in cache.v_scales if scales is not None],
            cache.block_table.data_ptr(),
            batch_size,
            cache.block_table.shape[1],
            *cache.k[0].shape[1::-1],
        )
        shape = (*(ids.shape if every else (batch_size,)), self.config.vocab_size)
        logits = torch.empty(shape, dtype=torch.float32, device="cpu")
        self._engine.read(ids.long().contiguous().numpy(), view, cache.length, logits.numpy(), every)
        cache.advance(n_tokens)
        return logits

    def _check_cache(self, cache: KVCache, ids: Tensor) -> None:
        if not isinstance(cache, KVCache):
            raise TypeError(f"cache must be a KVCache, not {type(cache).__name__}")
        k, config = cache.k[0], self.config
        shape = config.n_layer, config.n_kv_head, config.head_dim
        if (len(cache.k), *k.shape[2:]) != shape or k.dtype not in _CACHE_NAMES or k.device.type != "cpu":
            raise ValueError(
                f"cache must hold {shape[0]} layers of {shape[1]} heads of {shape[2]}, {_or(CACHE_DTYPES.values())} "
                f"on the CPU, not {len(cache.k)} of {k.shape[2]} of {k.shape[3]}, {k.dtype} on {k.device}; new_cache "
                "makes one"
            )
        if any(t.shape != k.shape or t.dtype != k.dtype or t.device != k.device for t in (*cache.k, *cache.v)):
            raise ValueError("cache must hold keys and values of one shape, dtype and device in all layers")
        if cache.max_tokens > config.block_size:
            raise ValueError(
                f"cache must be for block_size ({config.block_size}) tokens at most, not {cache.max_tokens}: it is "
                "another model's; new_cache makes one"
            )
        if cache.batch_size != ids.shape[0]:
            raise ValueError(f"cache is for {cache.batch_size} sequences, and ids holds {ids.shape[0]}")

    def _reach(self, n_positions: int) -> None:
        """Have tables for so many positions: at least doubled when they grow, as the model's own."""
        if n_positions <= self._n_positions or self.config.positions not in ("rope", "sinusoidal"):
            return
        with self._lock:
            n = min(max(4096, 2 * self._n_positions, n_positions), self.config.block_size)
            if self.config.positions == "rope":
                for name, table in zip(("cos", "sin"), rope_tables(self.config, torch.float32, "cpu", n), strict=True):
                    self._load(name, table)
            else:
                self._load("added", sinusoids(self.config, torch.float32, "cpu", n))
            self._n_positions = n

    def _load(self, name: str, tensor: Tensor) -> None:
        self._engine.load(name, tensor.detach().float().contiguous().numpy())


def _or(choices: Iterable[Any]) -> str:
    *first, last = map(str, choices)
    return f"{', '.join(first)} or {last}"


def _shape_of(model: GPT) -> dict[str, Any]:
    """What the engine wants to know of the config."""
    config = model.config
    return config.to_dict() | dict(
        windows=[config.window_of(layer) or 0 for layer in range(config.n_layer)],
        norm_bias=config.norm == "layer_norm" and config.bias is True,
        qkv_bias=config.bias in (True, "attention", "qkv"),
        attention_bias=config.bias in (True, "attention"),
        mlp_bias=config.bias in (True, "mlp"),
        attention_softcap=config.attention_softcap or 0.0,
        logit_softcap=config.logit_softcap or 0.0,
    )
