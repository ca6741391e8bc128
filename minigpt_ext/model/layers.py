"""The parts of a GPT block: LayerNorm, attention, MLP, each on an op of ours and torch's matrix products."""

import torch
from torch import Tensor, nn

from minigpt_ext import ops
from minigpt_ext.profiling.ranges import part

from .config import GPTConfig
from .kv_cache import KVCache


class LayerNorm(nn.Module):
    """LayerNorm over the last dimension, by ``ops.layer_norm``. x (..., C) -> (..., C)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if config.bias else None
        self.eps = config.layer_norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class Attention(nn.Module):
    """Causal self-attention. x (B, T, C) -> (B, T, C), before the residual is added.

    With a cache the T tokens of x follow the ones it holds: their keys and values are written behind, and each query
    sees all that stands before it.
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head, self.head_dim = config.n_head, config.head_dim
        self.c_attn = nn.Linear(config.n_embd, 3 * self.n_head * self.head_dim, bias=config.bias)
        self.c_proj = nn.Linear(self.n_head * self.head_dim, config.n_embd, bias=config.bias)
        self.dropout_p = config.dropout
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        # q, k, v: (B, T, H, D), strided views of one projection (B, T, 3, H, D); nothing is copied
        q, k, v = self.c_attn(x).unflatten(-1, (3, self.n_head, self.head_dim)).unbind(2)
        if cache is None:
            y = ops.attention(q, k, v, causal=True, dropout_p=self.dropout_p if self.training else 0.0)
        else:
            y = self._attend_with(cache, q, k, v)
        return self.dropout(self.c_proj(y.flatten(2)))

    def _attend_with(self, cache: KVCache, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k_cache, v_cache = cache.k[self.layer], cache.v[self.layer]
        ops.kv_append(k_cache, v_cache, k, v, cache.block_table, cache.seq_lens)
        if cache.length == 0:  # a prompt: what it attends to is all here, and the tiled kernel reads it faster
            return ops.attention(q, k, v, causal=True)
        return ops.decode_attention(q, k_cache, v_cache, cache.block_table, cache.seq_lens_after)


class MLP(nn.Module):
    """Two matrix products with GELU between them. x (B, T, C) -> (B, T, 4C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(ops.gelu(self.c_fc(x), approximate=self.approximate)))


class Block(nn.Module):
    """One pre-norm transformer block: x + attention(ln_1(x)), then x + mlp(ln_2(x))."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.name = f"block {layer}"  # in profiles
        self.ln_1 = LayerNorm(config)
        self.attn = Attention(config, layer)
        self.ln_2 = LayerNorm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        with part("attention"):
            x = x + self.attn(self.ln_1(x), cache)
        with part("mlp"):
            return x + self.mlp(self.ln_2(x))
