"""The readable BPE: its example by hand, and beside `tokenizers`, `tiktoken` and the core."""

import doctest
import json
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tiktoken_ext import openai_public
from tokenizer_cases import TEXTS, corpus
from tokenizers import Regex, models, pre_tokenizers, trainers

from minigpt_ext.tokenizer import BPETokenizer, bpe_python
from minigpt_ext.tokenizer.bpe_python import BYTE_ORDER, ReadableBPE
from minigpt_ext.tokenizer.patterns import PATTERNS

SMALL = corpus()[:6000] + "naïve 東京 😀 12345 aaaa aaaaaaa"


def test_the_example_derived_by_hand():
    assert doctest.testmod(bpe_python) == (0, 8)


def test_it_is_short():
    assert len(Path(bpe_python.__file__).read_text().splitlines()) < 200


def theirs(pattern, vocab_size, text):
    """Merges as pairs of bytes, learned by `tokenizers`."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[pattern]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    byte_of = dict(zip(alphabet, BYTE_ORDER, strict=True))
    merges = [m.split(" ") if isinstance(m, str) else m for m in json.loads(tokenizer.to_str())["model"]["merges"]]
    return [tuple(bytes(byte_of[c] for c in part) for part in merge) for merge in merges]


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "qwen2"])
def test_training_learns_what_tokenizers_and_the_core_learn(pattern):
    readable = ReadableBPE.train(SMALL, 400, pattern)
    assert [(readable.tokens[a], readable.tokens[b]) for a, b in readable.merges] == theirs(pattern, 400, SMALL)
    core = BPETokenizer.train(SMALL, 400, pattern)
    assert list(core.spec.merges) == readable.merges and list(core.spec.tokens) == readable.tokens


@given(text=st.text(alphabet="ab ", max_size=60), vocab_size=st.integers(256, 275))
def test_runs_of_few_letters(text, vocab_size):
    """Ties, overlaps, and tokens that two pairs make."""
    merges = ReadableBPE.train(text, vocab_size).merges
    assert merges == list(BPETokenizer.train(text, vocab_size).spec.merges)
    readable = ReadableBPE(merges)
    assert [(readable.tokens[a], readable.tokens[b]) for a, b in merges] == theirs("gpt2", vocab_size, text)


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k"])
@given(text=TEXTS)
def test_ids_and_text(pattern, text):
    readable, core, oracle = _trained(pattern)
    ids = readable.encode(text)
    assert ids == core.encode(text) == oracle.encode(text, allowed_special="all")
    assert readable.decode(ids) == core.decode(ids) == text
    plain = readable.encode(text, special=False)
    assert plain == core.encode(text, special=False) == oracle.encode(text, disallowed_special=())
    assert readable.decode(plain) == text


_cache = {}


def _trained(pattern):
    if pattern not in _cache:
        core = BPETokenizer.train(corpus(), 700, pattern, ["<|endoftext|>", "<s>"])
        readable = ReadableBPE(core.spec.merges, pattern, ["<|endoftext|>", "<s>"])
        theirs = {"gpt2": openai_public.r50k_pat_str, "cl100k": _cl100k()}[pattern]
        ranks = {token: id for id, token in enumerate(readable.tokens[:698])}
        oracle = tiktoken.Encoding(
            "test", pat_str=theirs, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 698, "<s>": 699}
        )
        _cache[pattern] = readable, core, oracle
    return _cache[pattern]


def _cl100k():
    """The pattern as tiktoken has it today, without its vocabulary, which would have to be downloaded."""
    source = Path(openai_public.__file__).read_text()
    start = source.index('r"""', source.index("def cl100k_base")) + 4
    return source[start : source.index('"""', start)]


def test_unknown_specials_and_patterns():
    bpe = ReadableBPE([], special_tokens=["<s>"])
    with pytest.raises(ValueError, match="<nope>.* no special tokens"):
        bpe.encode("x", special={"<s>", "<nope>"})
    for wrong in (-1, 257):
        with pytest.raises(ValueError, match=f"ids: got {wrong}, allowed are 0 to 256"):
            bpe.decode([wrong])
    with pytest.raises(ValueError, match="pattern: expected one of gpt2, cl100k"):
        ReadableBPE.train("x", 300, pattern="gpt5")
    assert bpe.encode("<s>", special={"<s>"}) == [256] and bpe.encode("<s>", special=()) == [60, 115, 62]
