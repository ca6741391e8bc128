"""The C++ core beside tiktoken and tokenizers: the same pieces, the same ids, the same vocabularies."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt_ext import _C

pytest.importorskip("tiktoken", reason="tiktoken is not installed: there is nothing to compare with")
pytest.importorskip("tokenizers", reason="tokenizers is not installed: there is nothing to compare with")

import bpe_peers  # noqa: E402
from bpe_peers import PATTERNS, REGEXES  # noqa: E402

CORPORA = bpe_peers.corpora()
TEXTS = st.one_of(bpe_peers.any_text, bpe_peers.edge_text)


@pytest.fixture(scope="module")
def trained() -> dict[str, tuple[list[bytes], list[tuple[int, int]]]]:
    return {pattern: _C.train_bpe(list(CORPORA.values()), 3000, pattern) for pattern in PATTERNS}


@pytest.mark.parametrize(
    "pattern",
    ["smollm", "llama3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "cl100k", "qwen2"))],
)
def test_pieces_of_every_character(pattern):
    """Every code point of every plane, in changing company: this compares the Unicode classes too."""
    text = bpe_peers.every_character()
    ours, theirs = _C.split(text, pattern), bpe_peers.split(text, pattern)
    different = [pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]]
    assert not different[:1], "if tokenizers has a newer Unicode, run csrc/tokenizer/make_unicode_ranges.py"
    assert ours == theirs


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pieces_of_corpora(pattern):
    for text in CORPORA.values():
        assert _C.split(text, pattern) == bpe_peers.split(text, pattern)


@settings(max_examples=200)
@given(text=TEXTS)
def test_pieces_of_any_text(text):
    for pattern in PATTERNS:
        assert _C.split(text, pattern) == bpe_peers.split(text, pattern), pattern
        assert "".join(_C.split(text, pattern)) == text


def test_pieces_that_patterns_disagree_on():
    """Derived by hand from the patterns."""
    text = "It'S  12345 x\n \n "
    assert _C.split(text, "gpt2") == ["It", "'", "S", " ", " 12345", " x", "\n \n "]
    assert _C.split(text, "llama3") == ["It", "'S", " ", " ", "123", "45", " x", "\n \n", " "]
    assert _C.split(text, "cl100k") == ["It", "'S", " ", " ", "123", "45", " x", "\n \n "]
    assert _C.split(text, "qwen2") == ["It", "'S", " ", " ", *"12345", " x", "\n \n", " "]
    assert _C.split(text, "smollm") == ["It", "'", "S", "  ", *"12345", " x", "\n \n "]
    assert _C.split(text, "none") == [text]
    assert _C.split("", "gpt2") == _C.split("", "none") == []


@pytest.mark.parametrize(
    "pattern", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in REGEXES if name != "gpt2")]
)
def test_tiktoken_cuts_every_character_alike(pattern):
    """tiktoken tells no pieces. Its ids do where every two bytes are a token: a cut keeps two from merging."""
    pairs = [bytes([a, b]) for a in range(256) for b in range(256)]
    random.Random(1).shuffle(pairs)
    tokens = [bytes([b]) for b in range(256)] + pairs
    theirs = bpe_peers.tiktoken_encoding(tokens, REGEXES[pattern])
    ours = _C.Bpe(tokens, [(a, b) for a, b in pairs], pattern)
    text = bpe_peers.every_character()
    assert ours.encode(text).tolist() == theirs.encode_ordinary(text)


def test_cl100k_is_what_tiktoken_defines(trained):
    ours, theirs = (
        _C.Bpe(*trained["cl100k"], "cl100k"),
        bpe_peers.tiktoken_encoding(trained["cl100k"][0], bpe_peers.CL100K_OF_TIKTOKEN),
    )
    for text in [*CORPORA.values(), "a\n \n  ", "\n\n", "\r\n ", "'S'LL'\u017f'vE"]:
        assert ours.encode(text).tolist() == theirs.encode_ordinary(text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ids_of_corpora_and_any_text(pattern, trained):
    tokens, merges = trained[pattern]
    ours = _C.Bpe(tokens, merges, pattern)
    hf = bpe_peers.hf_tokenizer(tokens, merges, pattern)
    tik = None if pattern == "smollm" else bpe_peers.tiktoken_encoding(tokens, REGEXES[pattern])

    def check(text: str) -> None:
        ids = ours.encode(text).tolist()
        assert ids == bpe_peers.hf_encode(hf, text)
        assert tik is None or ids == tik.encode_ordinary(text)
        assert ours.decode(ids) == text.encode()

    for text in CORPORA.values():
        check(text)
    settings(max_examples=200)(given(text=TEXTS)(check))()


def test_every_byte_decodes(trained):
    ours = _C.Bpe(*trained["gpt2"], "gpt2")
    assert ours.decode(list(range(256))) == bytes(range(256))
    latin = "".join(map(chr, range(256)))
    assert ours.decode(ours.encode(latin)) == latin.encode()
    for token, id in zip(trained["gpt2"][0], range(3000), strict=True):
        assert ours.decode([id]) == token


@st.composite
def vocabularies(draw) -> tuple[list[bytes], list[tuple[int, int]]]:
    """Merges in no order that training would give: of any tokens so far, and in any rank."""
    tokens = [bytes([b]) for b in range(256)]
    merges: list[tuple[int, int]] = []
    letters = st.sampled_from([ord(c) for c in "ab c"])
    for _ in range(draw(st.integers(1, 25))):
        later = st.integers(256, len(tokens) - 1) if len(tokens) > 256 else letters
        pair = (draw(st.one_of(letters, later)), draw(st.one_of(letters, later)))
        if pair in merges:
            continue
        merges.append(pair)
        merged = tokens[pair[0]] + tokens[pair[1]]
        if merged not in tokens:
            tokens.append(merged)
    return tokens, draw(st.permutations(merges))


@settings(max_examples=200)
@given(vocabulary=vocabularies(), text=st.text("abc ", min_size=1, max_size=120), ignore=st.booleans())
def test_ids_of_any_vocabulary(vocabulary, text, ignore):
    """Short pieces are scanned and long ones go through a heap; both must do as tokenizers does."""
    tokens, merges = vocabulary
    for pattern in ("none", "gpt2"):
        ours = _C.Bpe(tokens, merges, pattern, ignore_merges=ignore)
        hf = bpe_peers.hf_tokenizer(tokens, merges, pattern, ignore_merges=ignore)
        assert ours.encode(text).tolist() == bpe_peers.hf_encode(hf, text)
        assert ours.encode(text).tolist() == bpe_peers.hf_encode(hf, text)  # now from the cache


def test_ignore_merges_takes_a_piece_that_is_a_token():
    tokens = [bytes([b]) for b in range(256)] + [b"hello", b"a rather long token indeed", b"a" * 20]
    for ignore, expected in ((False, list(b"hello")), (True, [256])):
        assert _C.Bpe(tokens, [], "gpt2", ignore_merges=ignore).encode("hello").tolist() == expected
        assert _C.Bpe(tokens, [], "gpt2", ignore_merges=ignore).encode("a" * 20).tolist() == (
            [258] if ignore else list(b"a" * 20)
        )
    whole = _C.Bpe(tokens, [], "none", ignore_merges=True)
    assert whole.encode("a rather long token indeed").tolist() == [257]
    assert whole.encode("hello!").tolist() == list(b"hello!")  # only a piece that is the token, and no part of one


@pytest.mark.parametrize("unit", ["^", "a", " ", "\n", "ab", "a ", " \n", "'s", "\u6f22", "\u017f'", "\t ^"])
def test_long_runs_take_linear_time(unit, trained):
    """A million characters of one unit, beside a tenth of that, so that a quadratic step shows: a hundred times."""
    from time import perf_counter

    ours = _C.Bpe(*trained["llama3"], "llama3")
    seconds = {}
    for size in (100_000, 1_000_000):
        text = (unit * size)[:size]
        best = 9e9
        for _ in range(3):
            began = perf_counter()
            ids = ours.encode(text)
            best = min(best, perf_counter() - began)
        seconds[size] = best
        assert ours.decode(ids) == text.encode()
    assert seconds[1_000_000] < 3, "under a second where nothing else runs"
    assert seconds[1_000_000] < 50 * seconds[100_000] + 0.1
