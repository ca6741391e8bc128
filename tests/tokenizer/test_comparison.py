"""The numbers of `minigpt tokenizer compare`, beside a mask, a model and its cache."""

import pytest
import torch

from minigpt_ext.model import GPT, GPTConfig
from minigpt_ext.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, comparison
from minigpt_ext.tokenizer.comparison import TokenizedText

TEXT = "low lower lowest, naïve 😀 low"


@pytest.mark.parametrize(
    ("n", "context", "window"), [(1, 8, None), (16, 8, None), (37, 8, None), (37, 8, 3), (5, 8, 9)]
)
def test_pairs_are_the_ones_of_a_mask(n, context, window):
    expected = 0
    for part in torch.arange(n).split(context):
        query, key = torch.meshgrid(part, part, indexing="ij")
        seen = key <= query
        if window is not None:
            seen &= key > query - window
        expected += int(seen.sum())
    assert comparison.attention_pairs(n, context, window) == expected


@pytest.mark.parametrize(
    "changes",
    [{}, dict(n_kv_head=2, activation="swiglu", head_dim=24, tied_head=False), dict(activation="relu_squared")],
)
def test_weights_and_cache_are_those_of_the_model(changes):
    config = GPTConfig(vocab_size=50, block_size=64, n_layer=3, n_head=4, n_embd=64, bias=False, **changes)
    model = GPT(config, seed=0)
    matrices = {name: p.numel() for name, p in model.named_parameters() if p.ndim == 2}
    outside = {name for name in matrices if name.startswith(("wte", "wpe", "lm_head"))}
    assert comparison.matrix_weights(config) == sum(n for name, n in matrices.items() if name not in outside)
    embeddings = sum(n for name, n in matrices.items() if name.startswith(("wte", "lm_head")))
    assert comparison.embedding_weights(config, 50) == embeddings
    assert comparison.matrix_flops(config, 10, 50) == 20 * (comparison.matrix_weights(config) + 50 * 64)
    cache = model.new_cache(1)
    assert comparison.kv_bytes(config, 64, 4) == sum(t.nbytes for t in (*cache.k, *cache.v))


def test_attention_flops_sum_over_layers_with_their_windows():
    config = GPTConfig(vocab_size=5, block_size=8, n_layer=2, n_head=3, n_embd=12, window=[2, None])
    assert comparison.attention_flops(config, 8, 8) == 4 * 3 * 4 * ((8 * 9 // 2) + (1 + 7 * 2))


def test_a_text_by_character_byte_and_pair():
    chars = TokenizedText.of(CharTokenizer.from_text(TEXT), TEXT)
    assert (chars.n_tokens, chars.n_characters, chars.n_bytes) == (len(TEXT), len(TEXT), len(TEXT.encode()))
    assert chars.lengths == (0, len(TEXT) - 2, 1, 0, 1) and chars.tokens_a_character == 1
    octets = TokenizedText.of(ByteTokenizer(), TEXT)
    assert octets.lengths == (0, len(TEXT.encode())) and octets.bytes_a_token == 1
    bpe = BPETokenizer.train(TEXT, 262, special_tokens=["low"])
    pairs = TokenizedText.of(bpe, TEXT)  # "low" in the text is text
    assert sum(i * n for i, n in enumerate(pairs.lengths)) == pairs.n_bytes
    assert sum(pairs.lengths) == pairs.n_tokens == len(bpe.encode(TEXT, special=False)) < octets.n_tokens
    rows = comparison.shares([chars, octets, pairs])
    assert [name for name, row in rows if row[0]] == ["1", "2", "4"]
    for column in range(3):
        assert sum(row[column] for _, row in rows) == pytest.approx(1)
    config = GPTConfig.preset("gpt2")
    assert comparison.characters_in_context(pairs, config) == pytest.approx(1024 * len(TEXT) / pairs.n_tokens)


def test_bars():
    assert [comparison.bar(share, 2) for share in (0, 1, 0.5, 9 / 16, 1 / 16)] == ["", "██", "█", "█▏", "▏"]
