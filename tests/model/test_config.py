"""GPTConfig: presets, defaults, and a clear error for each wrong field."""

import json
from dataclasses import FrozenInstanceError

import pytest

from minigpt_ext.model import GPTConfig
from minigpt_ext.model.config import PRESETS

GOOD = dict(vocab_size=65, block_size=16, n_layer=2, n_head=2, n_embd=8)


def test_defaults():
    config = GPTConfig(65, 16, 2, 2, 8)
    assert config == GPTConfig(**GOOD)
    assert config.head_dim == 4
    assert (config.bias, config.dropout, config.norm_epsilon, config.activation) == (True, 0.0, 1e-5, "gelu_tanh")


def test_head_dim_of_ones_own_need_not_divide():
    assert GPTConfig(**GOOD | dict(n_head=3, head_dim=5)).head_dim == 5


def test_presets():
    shapes = {name: (c["n_layer"], c["n_head"], c["n_embd"]) for name, c in PRESETS.items()}
    sizes = {"tiny": (2, 2, 128), "small": (4, 4, 256), "medium": (6, 6, 384)}
    modern = {f"modern-{name}": size for name, size in sizes.items()}
    gpt2s = {"": (12, 12, 768), "-medium": (24, 16, 1024), "-large": (36, 20, 1280), "-xl": (48, 25, 1600)}
    assert shapes == sizes | modern | {f"gpt2{name}": size for name, size in gpt2s.items()}
    for name in sizes | modern:
        config = GPTConfig.preset(name)
        dropout = 0.2 if name.endswith("medium") else 0.0
        assert (config.vocab_size, config.block_size, config.dropout) == (65, 256, dropout)
    gpt2 = GPTConfig.preset("gpt2")
    assert (gpt2.vocab_size, gpt2.block_size, gpt2.head_dim) == (50257, 1024, 64)


def test_preset_takes_overrides():
    config = GPTConfig.preset("medium", vocab_size=100, n_embd=96, dropout=0.0)
    assert (config.vocab_size, config.n_embd, config.head_dim, config.dropout, config.n_layer) == (100, 96, 16, 0.0, 6)


def test_preset_unknown():
    with pytest.raises(ValueError, match="preset must be one of tiny, small, .*, gpt2-xl, not 'large'"):
        GPTConfig.preset("large")
    with pytest.raises(ValueError, match="unknown model field n_heads"):
        GPTConfig.preset("tiny", n_heads=4)


def test_dict_round_trip():
    config = GPTConfig(**GOOD, bias=False, dropout=0.1, activation="gelu")
    assert GPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        GPTConfig(**GOOD).n_layer = 3


@pytest.mark.parametrize("field", list(GOOD))
@pytest.mark.parametrize("value", [0, -1, 2.0, "2", True, None])
def test_sizes_must_be_positive_integers(field, value):
    with pytest.raises(ValueError, match=f"{field} must be a positive integer, not {value!r}"):
        GPTConfig(**GOOD | {field: value})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(n_head=3), r"n_embd must be a multiple of n_head .* 8 / n_head 3 leaves a remainder of 2"),
        (dict(head_dim=0), "head_dim must be a positive integer, not 0"),
        (dict(head_dim=4.0), "head_dim must be a positive integer, not 4.0"),
        (dict(head_dim=257), "head_dim must be 256 at most, not 257"),
        (dict(n_embd=1024, n_head=2), "head_dim must be 256 at most, not 512"),
        (dict(bias=1), "bias must be one of True, False, qkv, attention, mlp, not 1"),
        (dict(dropout=1.0), r"dropout must be a number in \[0, 1\), not 1.0"),
        (dict(dropout=-0.1), "dropout must be"),
        (dict(dropout=float("nan")), "dropout must be"),
        (dict(dropout="0.1"), "dropout must be"),
        (dict(dropout=False), "dropout must be"),
        (dict(norm_epsilon=0.0), "norm_epsilon must be a positive number, not 0.0"),
        (dict(norm_epsilon=float("inf")), "norm_epsilon must be"),
        (dict(norm_epsilon=float("nan")), "norm_epsilon must be"),
        (dict(norm_epsilon=None), "norm_epsilon must be"),
        (dict(activation="relu"), "activation must be one of gelu_tanh, gelu, relu_squared, swiglu, not 'relu'"),
        (dict(activation=["gelu"]), "activation must be one of"),
    ],
)
def test_wrong_field_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**GOOD | wrong)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (GOOD | dict(n_heads=2, width=3), "unknown model field n_heads, width; the fields are vocab_size, "),
        ({"vocab_size": 65, "n_head": 2}, "lacks block_size, n_layer, n_embd"),
        (None, "must be a mapping of fields, not NoneType"),
        ([1, 2], "must be a mapping of fields, not list"),
    ],
)
def test_from_dict_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig.from_dict(values)
