import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigpt_ext.tokenizer import CharTokenizer, load_tokenizer


@given(st.text(min_size=1, alphabet=st.characters()))  # surrogates are excluded by default
def test_round_trip(text):
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    tensor = tokenizer.encode_to_tensor(text)
    assert tensor.dtype == torch.int32 and tensor.tolist() == ids
    assert tokenizer.decode(tensor) == text


@given(st.text(min_size=1))
def test_a_saved_vocabulary_comes_back(tmp_path_factory, text):
    tokenizer = CharTokenizer.from_text(text)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(path)
    assert load_tokenizer(path).characters == tokenizer.characters
    assert load_tokenizer(path.parent).encode(text) == tokenizer.encode(text)


def test_ids_follow_the_given_order():
    tokenizer = CharTokenizer("cab\n")
    assert tokenizer.encode("abc\n") == [1, 2, 0, 3]
    assert tokenizer.decode([3, 0]) == "\nc"
    assert CharTokenizer.from_text("hello").characters == "ehlo"


def test_nothing_encodes_to_nothing():
    tokenizer = CharTokenizer("ab")
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


@pytest.mark.parametrize("text", ["abcé", "ab\U0001f600", "ab\ud800"])
def test_an_unknown_character_is_named_with_its_place(text):
    tokenizer = CharTokenizer("abc")
    with pytest.raises(ValueError, match=rf"U\+{ord(text[-1]):04X}.* at position {len(text) - 1} .*'abc'"):
        tokenizer.encode(text)


@pytest.mark.parametrize("wrong", [-1, 3, 10**9])
def test_an_id_out_of_range_is_named(wrong):
    with pytest.raises(ValueError, match=f"ids: got {wrong}, allowed are 0 to 2"):
        CharTokenizer("abc").decode([0, wrong])


@pytest.mark.parametrize(
    ("characters", "error", "message"),
    [("", ValueError, "empty"), ("abca", ValueError, "'a'.*more than once"), (["a"], TypeError, "list")],
)
def test_a_wrong_vocabulary_is_refused(characters, error, message):
    with pytest.raises(error, match=message):
        CharTokenizer(characters)


def test_text_must_be_text():
    with pytest.raises(TypeError, match="text: expected a string, got bytes"):
        CharTokenizer("abc").encode(b"abc")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", '"format" is None'),
        ('{"format": "other"}', "minigpt-char"),
        (json.dumps({"format": "minigpt-char", "version": 2, "characters": "a"}), "version 2"),
        (json.dumps({"format": "minigpt-char", "version": 1}), "expected a string"),
        (json.dumps({"format": "minigpt-char", "version": 1, "characters": "aa"}), "more than once"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(path)


def test_no_tokenizer_is_an_error_that_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer.json"):
        load_tokenizer(tmp_path)
