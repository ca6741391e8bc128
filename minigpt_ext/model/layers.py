"""The parts of a GPT block: norms, attention, MLP, each on an op of ours and torch's matrix products."""

import torch
from torch import Tensor, nn

from minigpt_ext import ops
from minigpt_ext.profiling.ranges import part

from .config import GPTConfig
from .kv_cache import KVCache
from .linear import Linear, linear
from .positions import Place

_GELUS = {"gelu": "none", "gelu_tanh": "tanh"}  # the config's names -> torch's


class LayerNorm(nn.Module):
    """LayerNorm over the last dimension, by ``ops.layer_norm``. x (..., C) -> (..., C).

    :meth:`add` first adds what a block's part computed to the residual stream.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if config.bias is True else None
        self.eps = config.norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, branch: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of stream + branch, and that sum."""
        return ops.residual_layer_norm(branch, stream, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """RMSNorm over the last dimension, by ``ops.rms_norm``. x (..., size) -> (..., size)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)

    def add(self, branch: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of stream + branch, and that sum."""
        return ops.residual_rms_norm(branch, stream, self.weight, self.eps)


class Dropout(nn.Dropout):
    """torch's module, by ``ops.dropout``."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p) if self.training and self.p > 0 else x


def norm_of(config: GPTConfig) -> LayerNorm | RMSNorm:
    """The norm of the residual stream that the config asks for."""
    return LayerNorm(config) if config.norm == "layer_norm" else RMSNorm(config.n_embd, config.norm_epsilon)


class Attention(nn.Module):
    """Causal self-attention. x (B, T, C) -> (B, T, C), before the residual is added.

    With a cache the T tokens of x follow the ones it holds: their keys and values are written behind, and each query
    sees all that stands before it.
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads = [config.n_head, config.n_kv_head, config.n_kv_head]  # of q, k and v
        self.head_dim = config.head_dim
        self.c_attn = Linear(
            config.n_embd, sum(self.heads) * config.head_dim, bias=config.bias in (True, "attention", "qkv")
        )
        self.c_proj = Linear(config.n_head * config.head_dim, config.n_embd, bias=config.bias in (True, "attention"))
        self.q_norm = RMSNorm(config.head_dim, config.norm_epsilon) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_epsilon) if config.qk_norm else None
        self.window, self.softcap = config.window_of(layer), config.attention_softcap
        self.dropout_p = config.dropout
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, place: Place, cache: KVCache | None = None) -> Tensor:
        # q (B, T, H, D), k, v (B, T, H_kv, D): strided views of one projection (B, T, H + 2 H_kv, D); nothing is copied
        q, k, v = self.c_attn(x).unflatten(-1, (sum(self.heads), self.head_dim)).split(self.heads, dim=2)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if place.cos is not None:
            q, k = ops.rope(q, place.cos, place.sin), ops.rope(k, place.cos, place.sin)
        scores = dict(window=self.window, alibi_slopes=place.alibi_slopes, softcap=self.softcap)
        if cache is None:
            y = ops.attention(q, k, v, causal=True, dropout_p=self.dropout_p if self.training else 0.0, **scores)
        else:
            y = self._attend_with(cache, q, k, v, **scores)
        return self.dropout(self.c_proj(y.flatten(2)))

    def _attend_with(self, cache: KVCache, q: Tensor, k: Tensor, v: Tensor, **scores) -> Tensor:
        k_cache, v_cache = cache.k[self.layer], cache.v[self.layer]
        scales = dict(k_scales=cache.k_scales[self.layer], v_scales=cache.v_scales[self.layer])
        ops.kv_append(k_cache, v_cache, k, v, cache.block_table, cache.seq_lens, **scales)
        if cache.length == 0:  # a prompt: what it attends to is all here, and the tiled kernel reads it faster
            return ops.attention(q, k, v, causal=True, **scores)
        return ops.decode_attention(q, k_cache, v_cache, cache.block_table, cache.seq_lens_after, **scores, **scales)


class MLP(nn.Module):
    """Two matrix products with an activation between them. x (B, T, C) -> (B, T, F) -> (B, T, C).

    For swiglu the first one makes gate and up side by side, (B, T, 2F), of which the activation makes (B, T, F).
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        inner = config.mlp_width * (2 if config.activation == "swiglu" else 1)
        self.c_fc = Linear(config.n_embd, inner, bias=config.bias in (True, "mlp"))
        self.c_proj = Linear(config.mlp_width, config.n_embd, bias=config.bias in (True, "mlp"))
        self.activation = config.activation
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation in _GELUS and self.c_fc.bias is not None:
            x = linear(x, self.c_fc.weight)
            x = ops.bias_gelu(x, self.c_fc.bias, approximate=_GELUS[self.activation])
        else:
            x = self.activate(self.c_fc(x))
        return self.dropout(self.c_proj(x))

    def activate(self, x: Tensor) -> Tensor:
        """The config's activation: (..., F), or (..., 2F) for swiglu, -> (..., F)."""
        if self.activation == "swiglu":
            return ops.swiglu(x)
        if self.activation == "relu_squared":
            return ops.relu_squared(x)
        return ops.gelu(x, approximate=_GELUS[self.activation])


class Block(nn.Module):
    """One pre-norm transformer block: x + attention(ln_1(x)), then x + mlp(ln_2(x)).

    The last sum is left to the norm behind, which makes it in its own pass: a block is handed the stream and what the
    block before it would add (None where it is the first), and hands on the like.
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.name = f"block {layer}"  # in profiles
        self.ln_1 = norm_of(config)
        self.attn = Attention(config, layer)
        self.ln_2 = norm_of(config)
        self.mlp = MLP(config)

    def forward(
        self, stream: Tensor, branch: Tensor | None, place: Place, cache: KVCache | None = None
    ) -> tuple[Tensor, Tensor]:
        with part("attention"):
            x, stream = (self.ln_1(stream), stream) if branch is None else self.ln_1.add(branch, stream)
            branch = self.attn(x, place, cache)
        with part("mlp"):
            x, stream = self.ln_2.add(branch, stream)
            return stream, self.mlp(x)
