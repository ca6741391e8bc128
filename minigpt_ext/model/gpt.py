"""GPT: the decoder-only transformer, GPT-2's or one of its modern descendants as the config says, on our ops."""

import math
import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from minigpt_ext import ops
from minigpt_ext.generation.generate import generate
from minigpt_ext.profiling.ranges import part

from .checks import check_ids
from .config import GPTConfig
from .kv_cache import KVCache
from .layers import Block, Dropout, norm_of
from .linear import Linear, linear
from .positions import PositionTables

INIT_STD = 0.02


class GPT(nn.Module):
    """A GPT of the shape ``config`` gives. Parameter names are GPT-2's: wte, wpe, h.N.attn.c_attn, ..., ln_f; and
    lm_head where the head is not tied to wte. wpe is there where positions are learned.

    The weights are drawn on the CPU in the order of ``named_parameters`` and then moved, so that one seed gives the
    same model on every device: N(0, 0.02) for matrices and embeddings, 0.02 / sqrt(2 n_layer) for the projections that
    write into the residual stream (2 n_layer of them are summed there), 0 for biases, 1 for LayerNorm weights
    (Radford et al., "Language Models are Unsupervised Multitask Learners", 2.3).

    Args:
        config: the shape.
        seed: of the initial weights; by default they come from torch's default CPU generator.
    """

    def __init__(self, config: GPTConfig, seed: int | None = None) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        # Built without memory first: torch's layers draw weights of their own on the default device, and that would
        # advance a generator that ours is to come from.
        with torch.device("meta"):
            self.wte = nn.Embedding(config.vocab_size, config.n_embd)
            self.wpe = nn.Embedding(config.block_size, config.n_embd) if config.positions == "learned" else None
            self.drop = Dropout(config.dropout)
            self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
            self.ln_f = norm_of(config)
            self.lm_head = None if config.tied_head else Linear(config.n_embd, config.vocab_size, bias=False)
        self.tables = PositionTables(config)
        if device.type != "meta":
            self.to_empty(device=device)
            self._draw_weights(seed)

    @torch.no_grad()
    def _draw_weights(self, seed: int | None) -> None:
        generator = None if seed is None else torch.Generator("cpu").manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1:  # of a norm
                parameter.fill_(1.0)
            else:
                residual = name.endswith("c_proj.weight")
                std = INIT_STD / math.sqrt(2 * self.config.n_layer) if residual else INIT_STD
                drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
                parameter.copy_(drawn.normal_(0.0, std, generator=generator))

    def forward(
        self, ids: Tensor, targets: Tensor | None = None, cache: KVCache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits for what follows each token, and with targets their mean cross-entropy.

        Args:
            ids: (B, T) int64 or int32, each in [0, V); T at most block_size.
            targets: (B, T) of the same kind; targets[b, t] is the id that follows ids[b, t], -1 where it does not
                count (where none counts the loss is nan).
            cache: ids follow the tokens it holds and are added to it (without gradients).

        Returns:
            logits (B, T, V) and the loss in nats a token (fp32 at least), or None without targets.

        Raises:
            TypeError: ids or targets are not int64 or int32.
            ValueError: wrong shape or device, T too long, or (seen on the CPU only) an id that is out of range.
        """
        if targets is not None:
            check_ids("ids", ids, self.config.vocab_size, self.wte.weight.device)
            check_ids("targets", targets, self.config.vocab_size, self.wte.weight.device, lowest=-1)
            if targets.shape != ids.shape:
                raise ValueError(f"targets must have the shape of ids {tuple(ids.shape)}, not {tuple(targets.shape)}")
        logits = self.head(self.trunk(ids, cache))
        if targets is None:
            return logits, None
        with part("loss"):
            return logits, ops.cross_entropy(logits, targets)

    def trunk(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """All but the head: ids (B, T) -> hidden states (B, T, C), after the last norm. See :meth:`forward`."""
        check_ids("ids", ids, self.config.vocab_size, self.wte.weight.device)
        n_tokens = ids.shape[1]
        if cache is None:
            start = 0
            if n_tokens > self.config.block_size:
                raise ValueError(f"ids must have block_size ({self.config.block_size}) columns at most, not {n_tokens}")
        else:
            self._check_cache(cache, ids)
            start = cache.length
            cache.begin(n_tokens)
        with part("embedding"):
            x = self.wte(ids)
            if self.wpe is not None:
                x = x + self.wpe.weight[start : start + n_tokens]
            elif self.config.positions == "sinusoidal":
                x = x + self.tables.sinusoids(start, n_tokens, like=x)
            x = self.drop(x)
        place = self.tables.place(start, n_tokens, like=x)
        branch = None
        for block in self.h:
            with part(block.name):
                x, branch = block(x, branch, place, cache)
        if cache is not None:
            cache.advance(n_tokens)
        with part("ln_f"):
            return self.ln_f(x) if branch is None else self.ln_f.add(branch, x)[0]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., C), by the token embedding's weights or, untied, the head's own."""
        with part("head"):
            logits = linear(hidden, self.wte.weight if self.lm_head is None else self.lm_head.weight)
            cap = self.config.logit_softcap
            return logits if cap is None else cap * torch.tanh(logits / cap)

    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
        weights: str | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Continue ids (B, T) by max_new_tokens: (B, T + max_new_tokens). See :func:`generation.generate.generate`."""
        options = dict(temperature=temperature, top_k=top_k, seed=seed, weights=weights, cache=cache)
        return generate(self, ids, max_new_tokens, **options)

    def next_logits(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, V) for what follows the last of ids (B, T), which follow the tokens that the cache holds."""
        return self.head(self.trunk(ids, cache)[:, -1])

    def new_cache(self, batch_size: int, max_tokens: int | None = None, *, dtype: torch.dtype | None = None) -> KVCache:
        """An empty cache for this model, on its device, for block_size tokens by default.

        dtype: that which the model computes in now, by default; torch.int8 for a cache of little over a quarter of
            float32's, rounded to 1/254 of the largest key or value of each token and head.

        Raises:
            ValueError: dtype is another one.
        """
        weight = self.wte.weight
        autocast = torch.is_autocast_enabled(weight.device.type)
        own = torch.get_autocast_dtype(weight.device.type) if autocast else weight.dtype
        if dtype not in (None, own, torch.int8):
            raise ValueError(f"dtype must be what the model computes in, {own}, or torch.int8, not {dtype}")
        dtype = own if dtype is None else dtype
        max_tokens = self.config.block_size if max_tokens is None else max_tokens
        return KVCache(self.config, batch_size, max_tokens, dtype=dtype, device=weight.device)

    def num_parameters(self) -> int:
        """How many numbers the model learned; the tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy ``tensors``, one for each parameter, into the model's own, whatever their device and floating dtype.

        Raises:
            ValueError: a tensor is missing, unknown, or of another shape (the message names them); nothing was copied.
        """
        own = self.state_dict()
        wrong = [f"{name} is missing" for name in own if name not in tensors]
        wrong += [f"{name} is unknown" for name in tensors if name not in own]
        for name in own:
            if name in tensors and tensors[name].shape != own[name].shape:
                wrong.append(f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}")
        if wrong:
            more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
            raise ValueError(f"these tensors are not this model's: {'; '.join(wrong[:8])}{more}")
        for name, parameter in own.items():
            parameter.copy_(tensors[name])

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> "GPT":
        """The model of a directory: the best one of a run, or GPT-2, Llama, Mistral, Qwen2, Qwen3 and their like.

        Names, shapes and dtypes of all tensors are compared with the config before memory is taken. Then they are read
        one by one from the mapped file and cast on the way: the most memory needed is the model and one tensor.

        Args:
            path: a run directory that ``minigpt train`` wrote; a Hugging Face directory (``config.json`` and
                ``model.safetensors``, or shards and their index); or a model's name on the hub, ``OWNER/NAME``, where
                there is no such directory.
            device: where the model goes; torch's default device by default.
            dtype: of the weights: torch's default dtype by default; "auto" for that of the files (the widest, where
                they are of several).

        Returns:
            The model in evaluation mode.

        Raises:
            FileNotFoundError: it is no directory of a model, or the run has saved no model yet.
            ValueError: a file in it cannot be read, does not fit, or asks for what this model does not compute; the
                message names the file and the field or tensor.
        """
        from minigpt_ext.interop.pretrained import load

        return load(path, device, dtype)

    def _check_cache(self, cache: KVCache, ids: Tensor) -> None:
        if torch.is_grad_enabled() and self.wte.weight.requires_grad:
            raise ValueError("cache keeps no gradients: call the model in torch.no_grad() or torch.inference_mode()")
        if self.training and self.config.dropout > 0:
            raise ValueError("cache is for inference, and this model drops values at random: call model.eval() first")
        if cache.batch_size != ids.shape[0]:
            raise ValueError(f"cache is for {cache.batch_size} sequences, and ids holds {ids.shape[0]}")
