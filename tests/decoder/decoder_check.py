"""What the decoder's tests share; and, run by test_decoder.py in a process of its own with MINIGPT_SIMD set, a short
check of every format. Prints the level in use."""

import numpy as np
import torch
from model.test_variants import BASE, VARIANTS

import minigpt_ext as mg
from minigpt_ext import _C
from minigpt_ext.decoder import FORMATS

# |ours - exact| / |exact| (norms over all logits), where exact are the Python model's logits
#   with the same weights; random models are as sensitive as can be
#   with the weights that the packed ones stand for, so that activations alone are rounded
# Worst of 249 models of all variants, n_embd 24 to 128, with the default caches:
#   7.6e-7, 0.015, 0.047, 0.48 and 7.6e-7, 0.011, 0.032, 0.031.
# Where all but the first token read an int8 cache (252 models): 0.012, 0.017, 0.044, 0.45.
# fp32 weights with a bf16 cache: 0.0071.
BOUNDS = {"fp32": 2e-6, "bf16": 0.03, "int8": 0.09, "int4": 0.9}
BOUNDS_UNPACKED = {"fp32": 2e-6, "bf16": 0.02, "int8": 0.06, "int4": 0.06}
BOUNDS_OF_CACHES = {torch.bfloat16: 0.014, torch.int8: 0.024}  # with fp32 weights


def random_model(variant: str | None = None, seed: int = 0, **fields) -> mg.GPT:
    """With something in biases and norms, and scores that differ."""
    model = mg.GPT(mg.GPTConfig(**BASE | (VARIANTS[variant] if variant else {}) | fields), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def random_ids(b: int, t: int) -> torch.Tensor:
    return torch.randint(23, (b, t))


def relative(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


def assert_near(ours: torch.Tensor, exact: torch.Tensor, bound: float) -> None:
    error = relative(ours, exact)
    assert error <= bound, f"|difference| / |logits| is {error:.2g}, and {bound:g} is allowed"


@torch.no_grad()
def unpacked(model: mg.GPT, weights: str) -> mg.GPT:
    """A model with the numbers that packed weights stand for."""
    other = mg.GPT(model.config)
    other.load_tensors(model.state_dict())
    for name, parameter in other.named_parameters():
        if parameter.ndim == 2 and name != "wpe.weight":
            packed = _C.decoder_kernels.PackedMatrix(weights, parameter.detach().numpy())
            parameter.copy_(torch.from_numpy(np.asarray(packed.unpack())))
    return other.eval()


def in_pieces(reader: mg.Decoder | mg.GPT, ids: torch.Tensor, pieces: list[int], dtype: torch.dtype) -> torch.Tensor:
    """Logits of ids, so many of them read at a time into a cache of that type."""
    cache = reader.new_cache(len(ids), dtype=dtype)
    step = reader.logits if isinstance(reader, mg.Decoder) else lambda part, cache: reader(part, cache=cache)[0]
    return torch.cat([step(part, cache) for part in ids.split(pieces, dim=1)], dim=1)


@torch.no_grad()
def check(variant: str, weights: str, threads: int = 1, **fields) -> None:
    model, ids = random_model(variant, **fields), random_ids(2, 40)
    decoder = mg.Decoder(model, weights, threads)
    ours = decoder.logits(ids)
    exact = model(ids)[0]
    if weights == "fp32":
        assert (ours - exact).abs().max() <= 1e-4 * exact.abs().max(), variant
    caches = BOUNDS_OF_CACHES if weights == "fp32" else {torch.int8: BOUNDS[weights]}
    for dtype, bound in caches.items():
        error = relative(in_pieces(decoder, ids, [1, 39], dtype), exact)
        assert 1e-5 < error <= bound, (variant, weights, dtype, error)
    error, rounded = relative(ours, exact), relative(ours, unpacked(model, weights)(ids)[0])
    assert error <= BOUNDS[weights], (variant, weights, error)
    assert rounded <= BOUNDS_UNPACKED[weights], (variant, weights, rounded)


if __name__ == "__main__":
    torch.manual_seed(0)
    for variant in ("all modern", "soft-caps", "relu_squared"):
        for weights in FORMATS:
            check(variant, weights)
    print(_C.simd_level())
