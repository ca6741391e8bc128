"""What the decoder's tests share; and, run by test_decoder.py in a process of its own with MINIGPT_SIMD set, a short
check of every format. Prints the level in use."""

import numpy as np
import torch
from model.test_variants import BASE, VARIANTS

import minigpt_ext as mg
from minigpt_ext import _C
from minigpt_ext.decoder import FORMATS

# |ours - exact| / |exact| (norms over all logits), where exact are the Python model's logits
#   with the same weights; random models are as sensitive as can be (measured: 1e-7, 0.007, 0.026, 0.27)
#   with the weights that the packed ones stand for, so that activations alone are rounded (1e-7, 0.004, 0.016, 0.014)
BOUNDS = {"fp32": 1e-6, "bf16": 0.02, "int8": 0.07, "int4": 0.7}
BOUNDS_UNPACKED = {"fp32": 1e-6, "bf16": 0.012, "int8": 0.04, "int4": 0.04}


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


@torch.no_grad()
def check(variant: str, weights: str, threads: int = 1) -> None:
    model, ids = random_model(variant), random_ids(2, 40)
    ours = mg.Decoder(model, weights, threads).logits(ids)
    exact = model(ids)[0]
    if weights == "fp32":
        assert (ours - exact).abs().max() <= 1e-4 * exact.abs().max(), variant
    error, rounded = relative(ours, exact), relative(ours, unpacked(model, weights)(ids)[0])
    assert error <= BOUNDS[weights], (variant, weights, error)
    assert rounded <= BOUNDS_UNPACKED[weights], (variant, weights, rounded)


if __name__ == "__main__":
    torch.manual_seed(0)
    for variant in ("all modern", "soft-caps", "relu_squared"):
        for weights in FORMATS:
            check(variant, weights)
    print(_C.simd_level())
