"""attention's dropout: the mask is a function of seed and place alone, and what is made from it is right."""

import math

import pytest
import torch
from accuracy import DTYPES, name_of
from attention_cases import Case, check
from tensors import normal

import minigpt_ext as mg
from minigpt_ext.ops.philox import attention_keep_mask


def mask_of(seed, B, H, T, S, p, device="cpu", dtype=torch.float32) -> torch.Tensor:
    """(B, H, T, S): what the kernel keeps. All keys weigh the same; value j is the j-th unit vector, 256 at a time."""
    q, k = (torch.zeros(B, n, H, 256, device=device, dtype=dtype) for n in (T, S))
    parts = []
    for j0 in range(0, S, 256):
        v = torch.zeros_like(k)
        v[:, j0 : j0 + 256] = torch.eye(256, device=device, dtype=dtype)[: S - j0, None]
        out = mg.ops.attention(q, k, v, causal=False, dropout_p=p, seed=seed)
        parts.append(out.permute(0, 2, 1, 3)[..., : S - j0])
    kept = torch.cat(parts, -1)
    assert torch.isin((kept.double() * S * (1 - p)).round(decimals=2), torch.tensor([0.0, 1.0], device=device)).all()
    return kept > 0


SEEDS = [0, 1, 2**31, 2**40 + 1, -1, -(2**63), 2**63 - 1]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mask_is_philox(seed, device):
    expected = attention_keep_mask(seed, 2, 3, 35, 300, 0.3, device)
    assert torch.equal(mask_of(seed, 2, 3, 35, 300, 0.3, device), expected)


def test_the_mask_depends_on_seed_and_place_alone(device):
    small, large = mask_of(9, 1, 2, 5, 7, 0.5, device), mask_of(9, 1, 2, 40, 200, 0.5, device)
    assert torch.equal(small, large[:, :, :5, :7])
    assert torch.equal(mask_of(9, 1, 2, 40, 200, 0.5, device, torch.float64), large)
    assert torch.equal(mask_of(torch.tensor([9], device=device), 1, 2, 5, 7, 0.5, device), small)
    assert torch.equal(mask_of(torch.tensor(9, device=device), 1, 2, 5, 7, 0.5, device), small)


def test_masks_of_different_seeds_differ(device):
    masks = [mask_of(seed, 1, 1, 8, 64, 0.5, device) for seed in SEEDS]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert 0.3 < (a == b).float().mean() < 0.7


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9])
def test_the_share_that_is_kept(p, device):
    """Within 4.5 standard deviations, over all and over every key; neighbours do not go together."""
    mask = mask_of(17, 4, 8, 64, 64, p, device).double()
    deviation = math.sqrt(p * (1 - p) / mask.numel())
    assert abs(mask.mean() - (1 - p)) < 4.5 * deviation
    assert ((mask.mean((0, 1, 2)) - (1 - p)).abs() < 4.5 * deviation * 8).all()
    noise = (mask - (1 - p)) / math.sqrt(p * (1 - p))
    for dim in range(4):
        together = (noise.narrow(dim, 1, mask.shape[dim] - 1) * noise.narrow(dim, 0, mask.shape[dim] - 1)).mean()
        assert abs(together) < 6 / math.sqrt(mask.numel()), dim


def test_without_a_seed_torchs_generator_decides(device):
    q, k, v = (normal(1, 16, 2, 8, device=device) for _ in range(3))
    torch.manual_seed(5)
    first, second = (mg.ops.attention(q, k, v, dropout_p=0.5) for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(mg.ops.attention(q, k, v, dropout_p=0.5), first)
    assert not torch.equal(first, second)


def test_without_dropout_no_random_number_is_drawn():
    q = normal(1, 4, 1, 4)
    before = torch.get_rng_state()
    mg.ops.attention(q, q, q)
    mg.ops.attention(q, q, q, dropout_p=0.5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(mg.ops.attention(q, q, q, dropout_p=0.0, seed=4), mg.ops.attention(q, q, q))


CASES = [
    Case(2, 65, 65, 2, 2, 16),
    Case(1, 33, 130, 4, 2, 17, causal=False),
    Case(2, 70, 20, 2, 1, 8),
    Case(1, 100, 130, 2, 1, 8, window=9),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("p", [0.1, 0.75])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_accuracy(case, p, dtype, device):
    inputs, g = case.inputs(dtype, device)
    check(inputs, g, dropout_p=p, seed=11, **case.options)


def test_the_torch_backend_uses_the_same_mask_for_the_same_seed(device):
    inputs, _ = CASES[0].inputs(device=device)
    ours = mg.ops.attention(**inputs, dropout_p=0.5, seed=11)
    with mg.backend("torch"):
        torch.testing.assert_close(mg.ops.attention(**inputs, dropout_p=0.5, seed=11), ours)
