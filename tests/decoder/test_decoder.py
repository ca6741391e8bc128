"""The decode engine's numbers: beside the Python model and transformers, however the tokens come in."""

import pytest
import torch
from decoder.decoder_check import BOUNDS_OF_CACHES, assert_near, check, in_pieces, random_ids, random_model
from model.test_variants import VARIANTS
from test_simd import LEVELS, TESTS, cpu_levels, run

import minigpt_ext as mg
from minigpt_ext.decoder import CACHE_DTYPES, FORMATS, Decoder, perplexity
from minigpt_ext.ops.kv_append import quantised


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_the_models(variant, weights):
    check(variant, weights, threads=2)


@pytest.mark.parametrize("weights", FORMATS)
def test_a_wider_model(weights):
    check("all modern", weights, threads=2, n_embd=96)


@pytest.mark.parametrize("level", LEVELS)
def test_every_format_at_every_level(level):
    if level not in cpu_levels():
        pytest.skip(f"this CPU does not have {level}")
    result = run(level, str(TESTS / "decoder" / "decoder_check.py"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == level


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu"])
@pytest.mark.parametrize("bias", [True, False])
def test_gpt2s_block_at_its_width(activation, bias):
    model = random_model(vocab_size=1031, n_embd=768, n_head=12, n_layer=2, activation=activation, bias=bias)
    ids = torch.randint(1031, (1, 40))
    with torch.no_grad():
        exact = model(ids)[0]
    assert (Decoder(model, threads=2).logits(ids) - exact).abs().max() <= 1e-4 * exact.abs().max()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_logits_are_those_of_transformers(kind, tmp_path):
    pytest.importorskip("transformers", reason="the oracle of this test: pip install -e '.[test]'")
    from hf_models import random_ids as their_ids
    from hf_models import saved

    theirs = saved(tmp_path, kind, seed=5)
    ids = their_ids(theirs.config, 2, 40)
    with torch.no_grad():
        exact = theirs(ids).logits
    ours = Decoder(mg.GPT.from_pretrained(tmp_path)).logits(ids)
    assert (ours - exact).abs().max() <= 1e-4 * exact.abs().max()


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("variant", ["all modern", "alibi, window and soft-cap", "biases of qkv", "sinusoidal"])
@pytest.mark.parametrize("dtype", CACHE_DTYPES.values(), ids=CACHE_DTYPES)
def test_one_call_chunks_and_single_tokens_agree(variant, weights, dtype):
    """Attention adds up in another order in each; that rounds a few activations of 8 bits, and keys and values of an
    int8 cache, the other way. With a bf16 cache the kernel for many queries also rounds its probabilities to bf16. The
    first piece of an int8 cache sees its own keys unrounded: here it is one token."""
    bound = {"fp32": 1e-6, "bf16": 3e-3}.get(weights, 1e-2)
    if dtype == torch.bfloat16:  # measured: 0.003, 0.005, 0.014, 0.014
        bound = {"fp32": 8e-3, "bf16": 0.012}.get(weights, 0.035)
    if dtype == torch.int8:  # measured: 0.0004, 0.0025, 0.01, 0.008
        bound = {"fp32": 1e-3, "bf16": 6e-3}.get(weights, 0.025)
    first = [1] if dtype == torch.int8 else []
    model, ids = random_model(variant, block_size=41), random_ids(3, 40 + len(first))
    decoder = Decoder(model, weights, threads=2)
    exact = in_pieces(decoder, ids, [*first, 40], dtype)
    for rest in ([1] * 40, [11, 9, *[1] * 20], [39, 1], [1, 39]):
        pieces = [*first, *rest]
        cache = decoder.new_cache(3, dtype=dtype)
        parts = [decoder.logits(part, cache) for part in ids.split(pieces, dim=1)]
        assert_near(torch.cat(parts, dim=1), exact, bound)
        cache.reset()
        last = [decoder.next_logits(part, cache) for part in ids.split(pieces, dim=1)]
        for part, logits in zip(parts, last, strict=True):
            assert torch.equal(part[:, -1], logits)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.int8, BOUNDS_OF_CACHES[torch.int8])])
def test_a_prompt_longer_than_the_buffers(dtype, bound):
    """More rows than a chunk has: by tokens, by sequences, and both; where blocks of the cache lie apart, too."""
    model = random_model("gqa", block_size=700)
    decoder = Decoder(model, threads=2)
    for b, t in ((1, 700), (3, 300), (300, 3), (257, 1)):
        ids = random_ids(b, t)
        with torch.no_grad():
            exact = model(ids)[0]
        cache = decoder.new_cache(b, t, dtype=dtype)
        assert_near(decoder.logits(ids, cache), exact, bound)
        cache.reset()
        assert_near(decoder.next_logits(ids, cache), exact[:, -1], bound)
    scattered = decoder.new_cache(3, 300, dtype=dtype)
    scattered.block_table = scattered.block_table.flip(0, 1).contiguous()
    ids = random_ids(3, 300)
    with torch.no_grad():
        assert_near(decoder.next_logits(ids, scattered), model(ids)[0][:, -1], bound)


# An activation that differs in its last bit may round a key or value of an int8 cache the other way, which cost 0.0004
# at most in 252 models.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.int8, 1e-3)])
@pytest.mark.parametrize("variant", ["all modern", "alibi, window and soft-cap", "gqa"])
def test_the_cache_is_the_models_own(variant, dtype, bound):
    """What the decoder has written, the model goes on from, and the other way round."""
    model, ids, pieces = random_model(variant), random_ids(2, 40), [9, 7, 1, 1, 5, 1, 12, 2, 1, 1]
    decoder, cache = Decoder(model), model.new_cache(2, dtype=dtype)
    with torch.no_grad():
        expected = in_pieces(model, ids, pieces, dtype)
        parts = [
            decoder.logits(part, cache) if i % 2 else model(part, cache=cache)[0]
            for i, part in enumerate(ids.split(pieces, dim=1))
        ]
        assert_near(torch.cat(parts, dim=1), expected, bound)
        assert_near(in_pieces(decoder, ids, pieces, dtype), expected, bound)


@pytest.mark.parametrize("variant", ["all modern", "gqa"])
def test_a_bf16_cache_holds_the_keys_and_values_rounded(variant):
    decoder, ids = Decoder(random_model(variant), threads=2), random_ids(2, 40)
    exact, rounded = (decoder.new_cache(2, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    for part in ids.split([17, 1, 22], dim=1):
        for cache in (exact, rounded):
            decoder.next_logits(part, cache)
    assert rounded.nbytes == exact.nbytes // 2
    assert torch.equal(rounded.k[0], exact.k[0].bfloat16()) and torch.equal(rounded.v[0], exact.v[0].bfloat16())


@pytest.mark.parametrize("variant", ["all modern", "gqa"])
def test_an_int8_cache_holds_the_keys_and_values_quantised(variant):
    decoder, ids = Decoder(random_model(variant), threads=2), random_ids(2, 40)
    exact, rounded = (decoder.new_cache(2, dtype=dtype) for dtype in (torch.float32, torch.int8))
    for part in ids.split([17, 1, 22], dim=1):
        for cache in (exact, rounded):
            decoder.next_logits(part, cache)
    for name in "kv":
        values, scales = quantised(getattr(exact, name)[0])
        assert torch.equal(getattr(rounded, name)[0], values)
        assert torch.equal(getattr(rounded, f"{name}_scales")[0], scales)


def test_default_caches():
    for weights in FORMATS:
        cache = Decoder(random_model(), weights).new_cache(1)
        assert cache.k[0].dtype == cache.v[2].dtype == (torch.float32 if weights == "fp32" else torch.bfloat16)


@pytest.mark.parametrize("weights", FORMATS)
def test_the_number_of_threads_changes_no_bit(weights):
    for variant in ("all modern", "windows of some layers"):
        model, ids = random_model(variant, block_size=300, vocab_size=211), random_ids(2, 300)
        results = []
        for threads in (1, 2, 7):
            decoder = Decoder(model, weights, threads)
            caches = decoder.new_cache(2), decoder.new_cache(2, dtype=torch.int8)
            pieces = ids.split([200, 97, 1, 1, 1], dim=1)
            results.append([decoder.logits(part, cache) for cache in caches for part in pieces])
        for other in results[1:]:
            assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_of_another_dtype(dtype):
    model, ids = random_model().to(dtype), random_ids(1, 9)
    with torch.no_grad():
        exact = model.float()(ids)[0]
    assert_near(Decoder(model.to(dtype)).logits(ids), exact, 1e-6)


def test_perplexity_is_that_of_the_cross_entropy():
    model = random_model(block_size=70)
    ids = random_ids(1, 200)[0]
    with torch.no_grad():
        losses = [model(ids[None, at : at + 70], ids[None, at + 1 : at + 71])[1] * 70 for at in (0, 70)]
        losses.append(model(ids[None, 140:199], ids[None, 141:200])[1] * 59)
    expected = float(torch.stack(losses).sum() / 199).__rpow__(torch.e)
    assert perplexity(Decoder(model), ids) == pytest.approx(expected, rel=1e-5)
    few = [perplexity(Decoder(model), ids[:9], cache_dtype=dtype) for dtype in CACHE_DTYPES.values()]
    assert len(set(few)) == 3 and few == pytest.approx(few[:1] * 3, rel=0.02)  # what a cache costs shows at once
    for wrong in (ids[:1], ids[None], [1, 2]):
        with pytest.raises(ValueError, match=r"ids must be a tensor \(n,\) of two tokens at least"):
            perplexity(Decoder(model), wrong)
