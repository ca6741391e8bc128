"""Training gives the vocabulary that tokenizers' BpeTrainer gives."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minigpt_ext import _C

pytest.importorskip("tokenizers", reason="tokenizers is not installed: there is nothing to compare with")
pytest.importorskip("tiktoken", reason="tiktoken is not installed, which the peers' module imports")

import bpe_peers  # noqa: E402

CORPORA = bpe_peers.corpora()


def assert_same_as_tokenizers(texts: list[str], size: int, pattern: str, min_frequency: int = 0, **ours) -> None:
    tokens, merges = _C.train_bpe(texts, size, pattern, min_frequency=min_frequency, **ours)
    their_tokens, their_merges = bpe_peers.hf_train(texts, size, pattern, min_frequency)
    assert tokens[:256] == [bytes([b]) for b in range(256)]
    assert tokens[256:] == their_tokens[256:]
    assert [(tokens[a], tokens[b]) for a, b in merges] == their_merges


@pytest.mark.parametrize("pattern", bpe_peers.PATTERNS)
def test_corpora(pattern):
    assert_same_as_tokenizers(list(CORPORA.values()), 2000, pattern)


@pytest.mark.parametrize("min_frequency", [1, 3, 1000])
def test_min_frequency_ends_training_early(min_frequency):
    assert_same_as_tokenizers([CORPORA["prose"][:20_000]], 30_000, "gpt2", min_frequency)


@settings(max_examples=150)
@given(
    texts=st.lists(st.one_of(st.text("ab", max_size=40), bpe_peers.edge_text), min_size=1, max_size=6),
    extra=st.integers(0, 60),
    pattern=st.sampled_from(["gpt2", "llama3", "none"]),
)
@example(texts=["aaaaaaa", "aaaa aaaaa", "aaa"], extra=20, pattern="gpt2")  # one token made in two ways
@example(texts=["abcabcab bcbcabc", "cabcabab"], extra=20, pattern="none")
def test_ties_runs_and_tokens_made_twice(texts, extra, pattern):
    assert_same_as_tokenizers(texts, 256 + extra, pattern)


@pytest.mark.parametrize("pattern", ["llama3", "gpt2", "none"])
def test_threads_change_nothing(pattern):
    """The text is long enough to be cut for several threads, at places where the pattern cuts it too."""
    text = (CORPORA["code"][:3000] + "\n\nx\n \ny  \n" + CORPORA["prose"][:3000] + "\n\n") * (
        3 if pattern == "none" else 600
    )
    expected = bpe_peers.hf_train([text], 300, pattern)[0][256:]
    for n_threads in (1, 2, 7, 2**31 - 1):
        assert _C.train_bpe(text, 300, pattern, n_threads=n_threads)[0][256:] == expected


def test_trained_vocabulary_encodes_every_token_as_itself():
    tokens, merges = _C.train_bpe(CORPORA["prose"], 1500, "gpt2")
    bpe = _C.Bpe(tokens, merges, "none")
    for id, token in enumerate(tokens):
        try:
            text = token.decode()
        except UnicodeDecodeError:
            continue
        assert bpe.encode(text).tolist() == [id]


def test_nothing_to_train_on():
    alphabet = [bytes([b]) for b in range(256)]
    for texts in ("", [], ["", ""], "a", ["a", "b"]):
        assert _C.train_bpe(texts, 300, "gpt2") == (alphabet, [])
    assert _C.train_bpe("abc abc", 256, "gpt2") == (alphabet, [])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"vocab_size": 255}, "vocab_size must be 256 or more"),
        ({"vocab_size": -1}, "vocab_size must be 256 or more"),
        ({"pattern": "gpt5"}, "pattern must be gpt2"),
        ({"n_threads": 0}, "n_threads must be positive, got 0"),
        ({"min_frequency": -2}, "min_frequency must not be negative, got -2"),
        ({"texts": ["ok", "a\ud800"]}, r"texts\[1\]\[1\] is U\+D800, a lone surrogate"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        _C.train_bpe(**{"texts": "some text", "vocab_size": 300, "pattern": "gpt2", **arguments})
