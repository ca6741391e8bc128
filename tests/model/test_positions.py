"""Rotations, slopes and sinusoids beside transformers' own, and what RopeScaling refuses."""

import pytest
import torch

from minigpt_ext.model import GPT, GPTConfig, RopeScaling
from minigpt_ext.model.positions import PositionTables, alibi_slopes, rope_tables, sinusoids

transformers = pytest.importorskip("transformers", reason="the oracle of this test: pip install -e '.[test]'")

CPU = torch.device("cpu")


def rope_config(**fields):
    return GPTConfig(19, 96, 1, 2, 48, **dict(positions="rope", head_dim=24) | fields)


@pytest.mark.parametrize(
    ("fields", "theirs"),
    [
        (dict(), dict(rope_type="default")),
        (dict(rope_theta=5e5), dict(rope_type="default")),
        (dict(rope_scaling=dict(kind="linear", factor=2.5)), dict(rope_type="linear", factor=2.5)),
        (
            dict(rope_scaling=dict(kind="yarn", factor=4, original_block_size=24)),
            dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=24),
        ),
        (
            dict(
                rope_theta=1e6,
                rope_scaling=dict(
                    kind="yarn",
                    factor=3,
                    original_block_size=32,
                    beta_fast=8,
                    beta_slow=2,
                    attention_factor=0.7,
                    truncate=False,
                ),
            ),
            dict(
                rope_type="yarn",
                factor=3.0,
                original_max_position_embeddings=32,
                beta_fast=8.0,
                beta_slow=2.0,
                attention_factor=0.7,
                truncate=False,
            ),
        ),
        (
            dict(rope_theta=5e5, rope_scaling=dict(kind="llama3", factor=8, original_block_size=24)),
            dict(
                rope_type="llama3",
                factor=8.0,
                original_max_position_embeddings=24,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
            ),
        ),
    ],
)
def test_tables_equal_llamas(fields, theirs):
    config = rope_config(**fields)
    llama = transformers.LlamaConfig(
        hidden_size=48,
        num_attention_heads=2,
        head_dim=24,
        max_position_embeddings=96,
        rope_parameters=theirs | dict(rope_theta=config.rope_theta),
    )
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(llama)
    their_cos, their_sin = rotary(torch.zeros(1), torch.arange(96)[None])
    cos, sin = rope_tables(config, torch.float32, CPU)
    half = cos.shape[1]
    assert cos.shape == (96, config.rope_dim // 2) and 2 * half == their_cos.shape[-1]
    # an angle of 96 has a rounding of 4e-6 in float32
    torch.testing.assert_close(cos, their_cos[0, :, :half], rtol=0, atol=2e-5)
    torch.testing.assert_close(sin, their_sin[0, :, half:], rtol=0, atol=2e-5)


def test_a_part_that_rotates_equals_phis():
    phi = transformers.PhiConfig(
        hidden_size=48,
        num_attention_heads=2,
        max_position_embeddings=96,
        rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5),
    )
    their_cos, _ = transformers.models.phi.modeling_phi.PhiRotaryEmbedding(phi)(torch.zeros(1), torch.arange(96)[None])
    cos, _ = rope_tables(rope_config(rope_dim=12), torch.float32, CPU)
    torch.testing.assert_close(cos, their_cos[0, :, : their_cos.shape[-1] // 2], rtol=0, atol=2e-5)


@pytest.mark.parametrize("n_head", [1, 2, 3, 6, 8, 12, 20])
def test_slopes_equal_blooms(n_head):
    bloom = transformers.models.bloom.modeling_bloom.build_alibi_tensor
    theirs = bloom(torch.ones(1, 2), n_head, torch.float32)[:, 0, 1]  # of key 1: slope * 1
    torch.testing.assert_close(torch.tensor(alibi_slopes(n_head)), theirs)


@pytest.mark.parametrize("width", [6, 7])
def test_sinusoids_turn_like_a_clock_and_equal_marians(width):
    config = GPTConfig(19, 50, 1, 1, width, positions="sinusoidal")
    table = sinusoids(config, torch.float64, CPU)
    assert table.shape == (50, width)
    # theirs holds all sines first, then all cosines
    marian = transformers.models.marian.modeling_marian.MarianSinusoidalPositionalEmbedding(50, width)
    theirs = marian.create_weight() if hasattr(marian, "create_weight") else marian._init_weight()
    theirs = (marian.weight if theirs is None else theirs).detach().double()
    sines = (width + 1) // 2
    torch.testing.assert_close(table[:, 0::2], theirs[:, :sines], rtol=0, atol=1e-6)
    torch.testing.assert_close(table[:, 1::2], theirs[:, sines:], rtol=0, atol=1e-6)


def test_tables_stay_exact_in_a_rounded_model():
    model = GPT(rope_config(), seed=0).to(torch.bfloat16)
    with torch.inference_mode():
        place = model.tables.place(3, 5, model.wte.weight)
    assert place.cos.dtype == torch.float32 and not place.cos.is_inference()
    torch.testing.assert_close(place.cos, rope_tables(model.config, torch.float32, CPU)[0][3:8], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(kind="dynamic", factor=2), "kind must be one of linear, yarn, llama3, not 'dynamic'"),
        (dict(kind="linear", factor=0.5), "factor must be at least 1, not 0.5"),
        (dict(kind="linear", factor="2"), "factor must be a positive number, not '2'"),
        (dict(kind="yarn", factor=2), "yarn needs original_block_size"),
        (dict(kind="llama3", factor=2, original_block_size=0), "original_block_size must be a positive integer, not 0"),
        (dict(kind="yarn", factor=2, original_block_size=8, beta_fast=1), "beta_fast must be above beta_slow"),
        (dict(kind="yarn", factor=2, original_block_size=8, truncate=1), "truncate must be True or False, not 1"),
        (
            dict(kind="yarn", factor=2, original_block_size=8, attention_factor=-1),
            "attention_factor must be a positive",
        ),
        (
            dict(kind="llama3", factor=2, original_block_size=8, low_freq_factor=4),
            "high_freq_factor must be above low_freq_factor, not 4.0 and 4",
        ),
    ],
)
def test_a_wrong_scaling_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        RopeScaling(**fields)
    with pytest.raises(ValueError, match=message):
        rope_config(rope_scaling=fields)


@pytest.mark.parametrize("positions", ["rope", "sinusoidal"])
def test_tables_of_a_long_context_grow_as_they_are_asked_for(positions):
    config = GPTConfig(19, 20000, 1, 2, 24, positions=positions)
    whole = rope_tables(config, torch.float32, CPU)[0] if positions == "rope" else sinusoids(config, torch.float32, CPU)
    tables, like = PositionTables(config), torch.zeros(1)

    def asked(start, n_tokens):
        return (
            tables.place(start, n_tokens, like).cos if positions == "rope" else tables.sinusoids(start, n_tokens, like)
        )

    for start, n_tokens, made in (
        (0, 5, 4096),
        (4000, 96, 4096),
        (4096, 1, 8192),
        (3, 15000, 16384),
        (19999, 1, 20000),
    ):
        assert torch.equal(asked(start, n_tokens), whole[start : start + n_tokens])
        assert tables._made[CPU, torch.float32][0] == made
