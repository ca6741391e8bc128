"""What characters, bytes and byte pairs have in common."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_cases import TEXTS, corpus

from minigpt_ext.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, load_tokenizer, open_tokenizer

BPE = BPETokenizer.train(corpus(), 600, "gpt2", ["<|endoftext|>", "<s>"])


def tokenizers_for(text):
    return [CharTokenizer.from_text(text + "\n"), ByteTokenizer(), BPE]


@given(text=TEXTS)
def test_round_trip_and_streams(text):
    for tokenizer in tokenizers_for(text):
        ids = tokenizer.encode(text)
        tensor = tokenizer.encode_to_tensor(text)
        assert tensor.dtype == torch.int32 and tensor.tolist() == ids == tokenizer.encode_prompt(text)
        assert tokenizer.decode(ids) == tokenizer.decode(tensor) == text
        assert tokenizer.decode(np.array(ids, dtype=np.int64)) == text
        assert tokenizer.decode_bytes(ids) == text.encode() == b"".join(map(tokenizer.token_bytes, ids))
        assert tokenizer.written(tensor) == (len(text.encode()), len(text))
        stream = tokenizer.stream_decoder()
        assert "".join(map(stream.push, ids)) == text and stream.finish() == ""
        half = len(ids) // 2
        start = tokenizer.decode_bytes(ids[:half]).decode(errors="ignore")
        assert start + tokenizer.decode_continuation(ids[:half], ids[half:]) == text


@given(st.binary(max_size=30))
def test_bytes_that_are_no_text(data):
    ids = list(data)
    expected = data.decode("utf-8", errors="replace")
    for tokenizer in (ByteTokenizer(), BPE):
        assert tokenizer.decode_bytes(ids) == data and tokenizer.decode(ids) == expected
        stream = tokenizer.stream_decoder()
        assert "".join(map(stream.push, ids)) + stream.finish() == expected
        assert stream.push(65) == "A"  # it can be used anew


def test_a_character_comes_when_it_is_whole():
    stream = ByteTokenizer().stream_decoder()
    assert [stream.push(byte) for byte in "a😀é".encode()] == ["a", "", "", "", "😀", "", "é"]
    assert stream.push(0xF0) == "" and stream.push(0x9F) == "" and stream.finish() == "\ufffd"


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPE], ids=["byte", "bpe"])
def test_a_lone_surrogate_is_named(tokenizer):
    with pytest.raises(ValueError, match=r"text\[4\] is U\+D83D, a lone surrogate"):
        tokenizer.encode("abcd\ud83d")


@pytest.mark.parametrize("tokenizer", [CharTokenizer("abx"), ByteTokenizer(), BPE], ids=["char", "byte", "bpe"])
class TestRefusals:
    def test_special_tokens_that_are_not_there(self, tokenizer):
        with pytest.raises(ValueError, match=r"special: '<\|nope\|>' is no special token; there are "):
            tokenizer.encode("x", special={"<|nope|>"})
        with pytest.raises(TypeError, match="special: expected True, False or a set"):
            tokenizer.encode("x", special="<|nope|>")

    def test_what_is_no_text(self, tokenizer):
        with pytest.raises(TypeError, match="text: expected a string, got bytes"):
            tokenizer.encode(b"x")

    @pytest.mark.parametrize("wrong", [-1, 2**31, 2**70])
    def test_ids_out_of_range(self, tokenizer, wrong):
        for call in (tokenizer.decode, tokenizer.decode_bytes):
            with pytest.raises(ValueError, match=f"ids: got {wrong}, allowed are 0 to {tokenizer.vocab_size - 1}"):
                call([0, wrong])
        with pytest.raises(ValueError, match=f"ids: got {wrong}"):
            tokenizer.stream_decoder().push(wrong)

    def test_what_are_no_ids(self, tokenizer):
        with pytest.raises(TypeError):
            tokenizer.decode([1.0])
        with pytest.raises(TypeError):
            tokenizer.decode("12")
        for tensor in (torch.zeros(2, 2, dtype=torch.int32), torch.zeros(2), torch.zeros(2, dtype=torch.bool)):
            with pytest.raises(ValueError, match="ids: expected a 1-d tensor of integers"):
                tokenizer.decode(tensor)


def test_some_special_tokens_and_not_others():
    end, start = (BPE.special_tokens[name] for name in ("<|endoftext|>", "<s>"))
    assert BPE.eos_id == end and BPE.bos_id is None
    text = "<s>a<|endoftext|>"
    assert BPE.encode(text) == [start, 97, end]
    assert BPE.encode(text, special={"<s>"})[:2] == [start, 97] and end not in BPE.encode(text, special=["<s>"])
    assert not {start, end} & set(BPE.encode(text, special=False))
    assert BPE.decode(BPE.encode(text, special=False)) == text


def test_where_a_text_without_a_prompt_begins():
    assert CharTokenizer("xy\n").start_ids() == [2] and CharTokenizer("xy").start_ids() == [0]
    assert ByteTokenizer().start_ids() == [10] and BPE.start_ids() == [10]


@pytest.mark.parametrize("tokenizer", [CharTokenizer("ab"), ByteTokenizer(), BPE], ids=["char", "byte", "bpe"])
def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    for loaded in (
        load_tokenizer(tmp_path),
        load_tokenizer(tmp_path / "tokenizer.json"),
        open_tokenizer(str(tmp_path)),
    ):
        assert type(loaded) is type(tokenizer) and loaded.sha256 == tokenizer.sha256
        assert loaded.encode("ab") == tokenizer.encode("ab") and loaded.eos_id == tokenizer.eos_id


def test_tokenizers_that_differ_have_another_sha256():
    others = [CharTokenizer("ab"), CharTokenizer("ba"), ByteTokenizer(), BPE, BPETokenizer.train(corpus(), 601)]
    assert len({tokenizer.sha256 for tokenizer in others}) == len(others)


def test_training_arguments():
    with pytest.raises(ValueError, match="vocab_size: expected an integer of 258 at least"):
        BPETokenizer.train("abc", 257, special_tokens=["<a>", "<b>"])
    with pytest.raises(ValueError, match="pattern: expected one of gpt2.*got 'gpt5'"):
        BPETokenizer.train("abc", 300, "gpt5")
    with pytest.raises(ValueError, match="the content '<a>' occurs twice"):
        BPETokenizer.train("abc", 300, special_tokens=["<a>", "<a>"])
    with pytest.raises(ValueError, match="lone surrogate"):
        BPETokenizer.train(["abc", "\udc00"], 300)
    with pytest.raises(TypeError, match="text: expected a string"):
        BPETokenizer.train([b"abc"], 300)
    assert BPETokenizer.train("", 300).vocab_size == 256
    with pytest.raises(ValueError, match=r"merges\[1\]: got \(97, 257\); so far there are ids 0 to 256"):
        BPETokenizer.from_merges([(97, 98), (97, 257)])


def test_texts_are_learned_from_one_by_one():
    assert BPETokenizer.train(["ab", "ab", "c"], 300).spec.merges == ((97, 98),)
    assert len(BPETokenizer.train("ababc", 300, "none").spec.merges) > 1
