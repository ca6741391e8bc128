"""The accuracy rule itself: it must pass what is right and fail what is subtly wrong."""

import pytest
import torch
from accuracy import assert_accurate, largest, scale_of
from tensors import normal
from torch.nn.functional import layer_norm


def layer_norm_with_statistics_in(dtype, x):
    mean = x.float().mean(-1, keepdim=True).to(dtype).float()
    rstd = (1 / (x.float() - mean).square().mean(-1, keepdim=True).add(1e-5).sqrt()).to(dtype).float()
    return ((x.float() - mean) * rstd).to(x.dtype)


@pytest.mark.parametrize("statistics", [torch.float32, torch.bfloat16])
def test_statistics_kept_in_bfloat16_do_not_pass(statistics):
    x = (normal(64, 768) + 100).bfloat16()
    reference = layer_norm(x.double(), (768,))
    scale = scale_of(x.dtype, largest(reference), largest(x) * 2)
    ours, torchs = layer_norm_with_statistics_in(statistics, x), layer_norm(x, (768,))
    if statistics == torch.float32:
        assert_accurate("layer_norm", ours, torchs, reference, scale)
    else:
        with pytest.raises(AssertionError, match="worst element"):
            assert_accurate("layer_norm", ours, torchs, reference, scale)


def test_the_message_names_op_place_values_and_limit():
    reference = torch.zeros(2, 3, dtype=torch.float64)
    ours = torch.zeros(2, 3)
    ours[1, 2] = 0.5
    with pytest.raises(AssertionError, match=r"gelu out .*\(1, 2\) is 0.5, reference 0, error 0.5; allowed"):
        assert_accurate("gelu out", ours, torch.zeros(2, 3), reference, scale=1.0)


def test_nan_never_passes():
    zeros = torch.zeros(3)
    with pytest.raises(AssertionError, match="nan"):
        assert_accurate("x", torch.tensor([0.0, float("nan"), 0.0]), zeros, zeros.double(), scale=1e9)
    with pytest.raises(AssertionError, match="judge nothing"):
        assert_accurate("x", zeros, torch.tensor([0.0, float("nan"), 0.0]), zeros.double(), scale=1.0)
