"""Added tokens of every kind, beside `tokenizers`: white space at their sides, single words, normalized ones."""

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_cases import PREPEND, byte_level, metaspace, sentencepiece
from tokenizers import AddedToken, normalizers, pre_tokenizers

from minigpt_ext.tokenizer import load_tokenizer

TOKENS = [
    AddedToken("<left>", lstrip=True, special=True, normalized=False),
    AddedToken("<right>", rstrip=True, special=True, normalized=False),
    AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
    AddedToken("word", single_word=True, normalized=False),
    AddedToken("<a>", normalized=False, special=True),
    AddedToken("<a><a>", normalized=False),
    AddedToken("two words", normalized=True),
    AddedToken("  ", normalized=False),
    AddedToken("Ω", normalized=True),
]
FRAGMENTS = [
    *(token.content for token in TOKENS), " ", "\t", "\u00a0", "\x1c", "\u3000", "x", "words", "_word", "word.", "é",
    "٣",    "\u200d", "two", "\n", "\u2126", "A\u030a", "\u2581two\u2581words",
]  # fmt: skip

BASES = {
    "bytes": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), 500),
    "prefix": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), 500),
    "nfc": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), 500, normalizer=normalizers.NFC()),
    "prepend": lambda: sentencepiece(normalizer=PREPEND),
    "first": lambda: sentencepiece(pre_tokenizer=metaspace("first")),
    "always": lambda: sentencepiece(pre_tokenizer=metaspace("always")),
}


@pytest.fixture(scope="module", params=BASES)
def pair(request, tmp_path_factory):
    theirs = BASES[request.param]()
    theirs.add_special_tokens([token for token in TOKENS if token.special])
    theirs.add_tokens([token for token in TOKENS if not token.special])
    path = tmp_path_factory.mktemp("added") / "tokenizer.json"
    theirs.save(str(path))
    return load_tokenizer(path), theirs


@given(text=st.lists(st.sampled_from(FRAGMENTS), max_size=9).map("".join))
def test_ids(pair, text):
    ours, theirs = pair
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


@given(text=st.lists(st.sampled_from(FRAGMENTS), max_size=9).map("".join))
def test_what_is_written_has_the_same_ids(pair, text, tmp_path_factory):
    ours, theirs = pair
    assert _written_again(ours, tmp_path_factory).encode(text).ids == theirs.encode(text).ids


_again = {}


def _written_again(ours, tmp_path_factory):
    if ours not in _again:
        path = tmp_path_factory.mktemp("again") / "tokenizer.json"
        ours.save(path)
        _again[ours] = tokenizers.Tokenizer.from_file(str(path))
    return _again[ours]


def test_added_tokens_that_are_no_special_ones_always_count(pair):
    ours, _ = pair
    id = next(token.id for token in ours.spec.added if token.content == "word")
    assert "word" not in ours.special_tokens
    assert id in ours.encode("a word", special=False) and id in ours.encode("a word", special={"<a>"})
    assert ours.special_tokens["<a>"] not in ours.encode("<a>", special=False)
    with pytest.raises(ValueError, match="'word' is no special token"):
        ours.encode("a word", special={"word"})


def test_ids_with_holes_are_kept(tmp_path):
    """`tokenizers` numbers added tokens itself; only those in the vocabulary keep ids of their own."""
    theirs = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), 300)
    content = json.loads(theirs.to_str())
    content["added_tokens"][0]["id"] = content["model"]["vocab"]["<|endoftext|>"] = 400
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    ours = load_tokenizer(tmp_path)
    assert ours.vocab_size == 401 and ours.encode("<|endoftext|>") == [400]
    assert ours.decode([400]) == "<|endoftext|>"
    with pytest.raises(ValueError, match="350"):
        ours.decode([350])
    ours.save(tmp_path / "tokenizer.json")
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("a<|endoftext|>").ids[1:] == [400]
