"""model.generate and stream: against loops without a cache, past the context, and what they refuse."""

import pytest
import torch

from minigpt_ext.backend import backend
from minigpt_ext.decoder import Decoder
from minigpt_ext.generation import stream
from minigpt_ext.model import GPT, GPTConfig


def make(block_size=16, dropout=0.0):
    config = GPTConfig(vocab_size=23, block_size=block_size, n_layer=2, n_head=2, n_embd=32, dropout=dropout)
    model = GPT(config, seed=0)
    with torch.no_grad():  # weights large enough for a text that does not repeat itself at once
        for parameter in model.parameters():
            parameter.mul_(8)
    return model


def prompt(b=2, t=5, seed=0):
    return torch.randint(23, (b, t), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def greedy_without_cache(model, ids, max_new_tokens):
    """The policy of the docstring, written down as what the model sees at each step."""
    block = model.config.block_size
    context = ids[:, -block:]
    for _ in range(max_new_tokens):
        if context.shape[1] > block:
            context = context[:, -max(block // 2, 1) :]
        new = model(context)[0][:, -1].argmax(-1, keepdim=True)
        ids, context = torch.cat([ids, new], 1), torch.cat([context, new], 1)
    return ids


@pytest.mark.parametrize("name", ["kernels", "torch"])
@pytest.mark.parametrize("n", [0, 1, 2, 11, 12, 60])
def test_greedy_is_the_argmax_without_a_cache(n, name):
    model, ids = make().eval(), prompt()
    with backend(name):
        assert torch.equal(model.generate(ids, n, temperature=0), greedy_without_cache(model, ids, n))


@pytest.mark.parametrize("block_size", [1, 2, 3, 8])
@pytest.mark.parametrize("t", [1, 2, 8, 30])
def test_past_the_context(block_size, t):
    model, ids = make(block_size).eval(), prompt(t=t)
    assert torch.equal(model.generate(ids, 25, temperature=0), greedy_without_cache(model, ids, 25))


def test_backends_sample_the_same_text():
    model, texts = make(), []
    for name in ("kernels", "torch"):
        with backend(name):
            texts.append(model.generate(prompt(), 40, seed=1))
    assert torch.equal(*texts)


def test_seeds():
    model = make()
    first = model.generate(prompt(), 40, seed=1)
    torch.rand(3)
    assert torch.equal(first, model.generate(prompt(), 40, seed=1))
    assert not torch.equal(first, model.generate(prompt(), 40, seed=2))
    torch.manual_seed(1)
    assert torch.equal(first, model.generate(prompt(), 40))


def test_a_seed_leaves_the_default_generator_alone():
    before = torch.get_rng_state()
    make().generate(prompt(), 5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_prompt_comes_first_and_ids_may_be_int32():
    model = make()
    out = model.generate(prompt().int(), 7, seed=1)
    assert out.shape == (2, 12) and out.dtype == torch.int64
    assert torch.equal(out[:, :5], prompt())
    assert torch.equal(out, model.generate(prompt(), 7, seed=1))


def test_top_k_1_is_greedy():
    model = make()
    assert torch.equal(model.generate(prompt(), 20, top_k=1), model.generate(prompt(), 20, temperature=0))


def test_sequences_of_a_batch_do_not_touch_each_other():
    model, ids = make(), prompt(b=3)
    together = model.generate(ids, 30, temperature=0)
    for row in range(3):
        assert torch.equal(together[row : row + 1], model.generate(ids[row : row + 1], 30, temperature=0))


def test_stream_yields_what_generate_returns():
    model, ids = make(), prompt()
    steps = list(stream(model, ids, 30, seed=4))
    assert len(steps) == 30 and steps[0].shape == (2,)
    assert torch.equal(torch.stack(steps, 1), model.generate(ids, 30, seed=4)[:, 5:])


def test_a_cache_of_ones_own_is_emptied_and_its_size_counts():
    model, ids = make(), prompt()
    cache = model.new_cache(2)
    first = torch.stack(list(stream(model, ids, 30, seed=4, cache=cache)), 1)
    assert cache.length > 0
    again = torch.stack(list(stream(model, ids, 30, seed=4, cache=cache)), 1)
    assert torch.equal(first, again) and torch.equal(first, model.generate(ids, 30, seed=4)[:, 5:])
    small = torch.stack(list(stream(model, ids, 30, temperature=0, cache=model.new_cache(2, 6))), 1)
    assert small.shape == (2, 30)


@pytest.mark.parametrize("n", [4, 30])
def test_a_cache_in_bfloat16_has_the_engine_read_it(n):
    model, ids = make(), prompt()
    decoder = Decoder(model)
    cache = decoder.new_cache(2, dtype=torch.bfloat16)
    expected = decoder.generate(ids, n, temperature=0, cache=decoder.new_cache(2, dtype=torch.bfloat16))
    assert torch.equal(model.generate(ids, n, temperature=0, cache=cache), expected)


def test_a_wrong_cache():
    model, ids = make(), prompt()
    with pytest.raises(TypeError, match="cache must be a KVCache, as model.new_cache makes them, or None, not str"):
        stream(model, ids, 3, cache="int8")
    with pytest.raises(ValueError, match="cache is for 3 sequences, and ids holds 2"):
        stream(model, ids, 3, cache=model.new_cache(3))


def test_modes_are_put_back():
    model = make(dropout=0.5)
    model.h[1].eval()
    before = [module.training for module in model.modules()]
    first = model.generate(prompt(), 5, temperature=0)
    assert [module.training for module in model.modules()] == before
    assert torch.equal(first, model.eval().generate(prompt(), 5, temperature=0))

    model.train()
    steps = stream(model, prompt(), 5)
    next(steps)
    assert not model.training
    steps.close()
    assert model.training and all(module.training for module in model.modules())


def test_what_comes_back_can_be_trained_on():
    model = make()
    out = model.generate(prompt(), 5)
    model(out[:, :-1], out[:, 1:])[1].backward()
    assert not torch.is_inference_mode_enabled()


def test_half_precision_and_autocast():
    model = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.generate(prompt(), 30, seed=1).shape == (2, 35)
    assert model.to(torch.bfloat16).generate(prompt(), 30, seed=1).shape == (2, 35)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([1, 2], TypeError, "ids must be a tensor, not list"),
        (torch.zeros(1, 2), TypeError, "ids must be int64 or int32, not torch.float32"),
        (torch.zeros(2, dtype=torch.int64), ValueError, r"ids must be \(B, T\)"),
        (torch.zeros(1, 0, dtype=torch.int64), ValueError, r"one token at least to go on from, not \(1, 0\)"),
        (torch.tensor([[0, 23]]), ValueError, r"ids must lie in \[0, 23\), and holds 23"),
    ],
)
def test_wrong_ids(ids, error, message):
    model = make()
    with pytest.raises(error, match=message):
        model.generate(ids, 3)
    assert model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_new_tokens=-1), "max_new_tokens must be an integer of at least 0 .*, not -1"),
        (dict(max_new_tokens=1.5), "max_new_tokens must be"),
        (dict(max_new_tokens=None), "max_new_tokens must be"),
        (dict(temperature=-1.0), "temperature must be a finite number"),
        (dict(top_k=0), "top_k must be a positive integer"),
        (dict(seed=-1), "seed must be an integer of at least 0 .*, not -1"),
        (dict(seed="1"), "seed must be"),
        (dict(seed=2**64), r"seed must be an integer .* below 2\*\*63"),
    ],
)
def test_wrong_options_are_named_by_the_call_itself(options, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        stream(model, prompt(), **dict(max_new_tokens=3) | options)
    with pytest.raises(ValueError, match=message):
        model.generate(prompt(), **dict(max_new_tokens=3) | options)
