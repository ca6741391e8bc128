"""The key/value cache: the same logits as without it, however the tokens arrive."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt_ext import Decoder
from minigpt_ext.backend import backend
from minigpt_ext.generation.generate import generate
from minigpt_ext.model import GPT, GPTConfig, KVCache

CONFIG = GPTConfig(vocab_size=31, block_size=40, n_layer=3, n_head=2, n_embd=32)


def make(dtype=torch.float32, seed=0, b=2, t=40):
    model = GPT(CONFIG, seed=seed).eval().to(dtype)
    with torch.no_grad():  # weights large enough for tokens to matter to each other
        for parameter in model.parameters():
            parameter.mul_(4)
    return model, torch.randint(31, (b, t), generator=torch.Generator().manual_seed(seed))


CHUNKS = {
    "token by token": [1] * 40,
    "prefill, then tokens": [17] + [1] * 23,
    "in chunks": [5, 1, 9, 16, 2, 7],
    "at once": [40],
}


@pytest.mark.parametrize("name", ["kernels", "torch"])
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS.keys())
@pytest.mark.parametrize("cache_block", [1, 7, 16, 64])
@torch.no_grad()
def test_logits_equal_those_without_it(name, chunks, cache_block):
    model, ids = make()
    with backend(name):
        expected, _ = model(ids)
        cache = KVCache(CONFIG, 2, 40, cache_block=cache_block)
        pieces = [model(part, cache=cache)[0] for part in ids.split(chunks, dim=1)]
    assert cache.length == 40 and cache.seq_lens.tolist() == [40, 40]
    assert (torch.cat(pieces, dim=1) - expected).abs().max() <= 1e-5 * expected.abs().max()


@settings(max_examples=40, deadline=None)
@given(
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=10).filter(lambda sizes: sum(sizes) <= 40),
    b=st.integers(1, 3),
    n_head=st.integers(1, 3),
    head_dim=st.integers(1, 20),
    cache_block=st.integers(1, 50),
)
@torch.no_grad()
def test_logits_equal_those_without_it_for_any_shape(chunks, b, n_head, head_dim, cache_block):
    model = GPT(GPTConfig(31, 40, n_layer=1, n_head=n_head, n_embd=12, head_dim=head_dim), seed=0)
    ids = torch.randint(31, (b, sum(chunks)), generator=torch.Generator().manual_seed(len(chunks)))
    expected, _ = model(ids)
    cache = KVCache(model.config, b, sum(chunks), cache_block=cache_block)
    pieces = [model(part, cache=cache)[0] for part in ids.split(chunks, dim=1)]
    assert (torch.cat(pieces, dim=1) - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def test_half_precision():
    model, ids = make(torch.bfloat16)
    expected, _ = model(ids)
    cache = model.new_cache(2)
    assert cache.k[0].dtype == torch.bfloat16
    pieces = [model(part, cache=cache)[0] for part in ids.split([20] + [1] * 20, dim=1)]
    assert (torch.cat(pieces, dim=1) - expected).abs().max() <= 0.05 * expected.abs().max()


@torch.no_grad()
def test_autocast():
    model, ids = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, _ = model(ids)
        cache = model.new_cache(2)
        pieces = [model(part, cache=cache)[0] for part in ids.split([20] + [1] * 20, dim=1)]
    assert cache.v[0].dtype == torch.bfloat16
    assert (torch.cat(pieces, dim=1) - expected).abs().max() <= 0.05 * expected.abs().max()


@pytest.mark.parametrize("name", ["kernels", "torch"])
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS.keys())
@torch.no_grad()
def test_int8(name, chunks):
    model, ids = make()
    with backend(name):
        expected, _ = model(ids)
        cache = model.new_cache(2, dtype=torch.int8)
        pieces = [model(part, cache=cache)[0] for part in ids.split(chunks, dim=1)]
    assert {t.dtype for t in (*cache.k, *cache.v)} == {torch.int8}
    error = (torch.cat(pieces, dim=1) - expected).abs().max() / expected.abs().max()
    assert error <= 0.05  # 0.034 at most was measured, over eight models; a model in bfloat16 is as far from this one
    if chunks != [40]:  # rounding is there to be seen where the cache is read
        assert error > 1e-5


@torch.no_grad()
def test_int8_under_autocast():
    model, ids = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, _ = model(ids)
        cache = model.new_cache(2, dtype=torch.int8)
        pieces = [model(part, cache=cache)[0] for part in ids.split([20] + [1] * 20, dim=1)]
    assert (torch.cat(pieces, dim=1) - expected).abs().max() <= 0.05 * expected.abs().max()


@torch.no_grad()
def test_generation_with_an_int8_cache():
    model, ids = make(b=1, t=5)
    cache = model.new_cache(1, dtype=torch.int8)
    made = model.generate(ids, 3, temperature=0)
    assert torch.equal(generate(model, ids, 3, temperature=0, cache=cache), made)
    assert cache.length == 7 and cache.k[0].dtype == torch.int8
    assert torch.equal(generate(Decoder(model), ids, 3, temperature=0, cache=cache), made)


def test_int8_layout_and_size():
    cache = KVCache(CONFIG, 3, 40, cache_block=16, dtype=torch.int8)
    assert len(cache.k_scales) == len(cache.v_scales) == 3
    assert cache.k_scales[0].shape == (9, 16, 2) and cache.k_scales[0].dtype == torch.float32
    assert cache.nbytes == 2 * 3 * 9 * 16 * 2 * (16 + 4)


def test_a_cache_of_another_type_is_refused():
    with pytest.raises(ValueError, match=r"dtype must be .* torch.float32, or torch.int8, not torch.float16"):
        make()[0].new_cache(2, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"dtype must be a floating one or torch.int8, not torch.int16"):
        KVCache(make()[0].config, 1, 8, dtype=torch.int16)


@torch.no_grad()
def test_loss_of_a_chunk():
    model, ids = make()
    cache = model.new_cache(2)
    model(ids[:, :10], cache=cache)
    _, loss = model(ids[:, 10:20], targets=ids[:, 11:21], cache=cache)
    targets = torch.full((2, 20), -1)
    targets[:, 10:] = ids[:, 11:21]
    torch.testing.assert_close(loss, model(ids[:, :20], targets)[1])


@torch.no_grad()
def test_reset_forgets():
    model, ids = make()
    cache = model.new_cache(2)
    model(ids, cache=cache)
    cache.reset()
    torch.testing.assert_close(model(ids[:, :9], cache=cache)[0], model(ids[:, :9])[0])


@torch.inference_mode()
def test_made_in_inference_mode_it_serves_outside():
    model, ids = make()
    cache = model.new_cache(2)
    model(ids[:, :5], cache=cache)
    with torch.inference_mode(False), torch.no_grad():
        logits, _ = model(ids[:, 5:6].clone(), cache=cache)
    torch.testing.assert_close(logits, model(ids[:, :6])[0][:, 5:])


def test_layout_and_size():
    cache = KVCache(CONFIG, 3, 40, cache_block=16, dtype=torch.float16)
    assert len(cache.k) == len(cache.v) == 3
    assert cache.k[0].shape == (9, 16, 2, 16)
    assert cache.block_table.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert cache.block_table.dtype == cache.seq_lens.dtype == torch.int32
    assert cache.nbytes == 2 * 3 * 9 * 16 * 2 * 16 * 2


@torch.no_grad()
def test_full():
    model, ids = make()
    cache = model.new_cache(2, 10)
    model(ids[:, :9], cache=cache)
    with pytest.raises(ValueError, match="cache is full: it holds 9 of 10 tokens a sequence, and 2 more do not fit"):
        model(ids[:, :2], cache=cache)
    model(ids[:, 9:10], cache=cache)  # nothing was counted by the call that failed
    assert cache.length == 10


@pytest.mark.parametrize("name", ["batch_size", "max_tokens", "cache_block"])
@pytest.mark.parametrize("value", [0, -3, 1.5, True, None])
def test_sizes_must_be_positive_integers(name, value):
    sizes = dict(batch_size=2, max_tokens=8, cache_block=4) | {name: value}
    with pytest.raises(ValueError, match=f"{name} must be a positive integer, not {value!r}"):
        KVCache(CONFIG, **sizes)


def test_longer_than_the_positions():
    with pytest.raises(ValueError, match=r"max_tokens must be block_size \(40\) at most, not 41"):
        KVCache(CONFIG, 1, 41)


def test_misuse_is_refused():
    model, ids = make()
    with pytest.raises(ValueError, match="cache keeps no gradients"):
        model(ids, cache=model.new_cache(2))
    with torch.no_grad():
        with pytest.raises(ValueError, match="cache is for 3 sequences, and ids holds 2"):
            model(ids, cache=model.new_cache(3))
        dropping = GPT(GPTConfig.preset("medium", block_size=8, n_layer=1))
        with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
            dropping(ids[:, :4], cache=dropping.new_cache(2))
