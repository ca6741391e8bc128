"""Special tokens, and vocabularies and texts that must be refused."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt_ext import _C

ALPHABET = [bytes([b]) for b in range(256)]


def make(tokens=(), merges=(), pattern="gpt2", **options):
    return _C.Bpe([*ALPHABET, *tokens], list(merges), pattern, **options)


def test_special_tokens_are_cut_out_longest_first():
    bpe = make(specials={"<s>": 300, "<s>>": 301, "<|end|>": 256, "s": 257})
    assert bpe.encode("a<s>>b<s><|end|>").tolist() == [97, 301, 98, 300, 256]
    assert bpe.encode("a<s>s", {"<s>"}).tolist() == [97, 300, 115]
    assert bpe.encode("a<s>", False).tolist() == list(b"a<s>")
    assert bpe.encode("a<s>", set()).tolist() == list(b"a<s>")
    assert bpe.decode([300, 97, 301, 256]) == b"<s>a<s>><|end|>"


def test_a_special_token_ends_a_piece():
    """What lies before it is encoded as a text of its own: two spaces there are one piece."""
    bpe = make([b"  "], [(32, 32)], specials={"<s>": 300})
    assert bpe.encode("a  <s> b").tolist() == [97, 256, 300, 32, 98]
    assert bpe.encode("a  <s> b", False).tolist() == [97, *b"  <s> b"]


@given(text=st.text("<s|>ab", max_size=60), names=st.sets(st.text("<s|>a", min_size=1, max_size=4), max_size=6))
@settings(max_examples=200)
def test_special_tokens_as_a_regex_finds_them(text, names):
    import re

    ids = {name: 1000 + i for i, name in enumerate(sorted(names))}
    alternatives = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    parts = re.split(f"({alternatives})", text) if names else [text]
    expected = [id for part in parts for id in ([ids[part]] if part in ids else part.encode())]
    assert make(specials=ids).encode(text).tolist() == expected


def test_ids_may_have_holes():
    bpe = _C.Bpe([*ALPHABET, None, b"ab", None], [(97, 98)], "gpt2", specials={"<s>": 256})
    assert bpe.encode("ab<s>").tolist() == [257, 256]
    with pytest.raises(ValueError, match=r"ids\[1\] = 258 is no token; there are 259 ids"):
        bpe.decode([257, 258])


def test_encode_gives_int32_and_decode_takes_what_holds_integers():
    bpe = make([b"ab"], [(97, 98)])
    ids = bpe.encode("abc")
    assert ids.dtype == np.int32 and ids.tolist() == [256, 99]
    for given_ids in (ids, ids.astype(np.int64), [256, 99], (256, 99), ids[::1], np.array([0, 256, 0, 99])[1::2]):
        assert bpe.decode(given_ids) == b"abc"
    assert bpe.decode([]) == b"" and bpe.encode("").shape == (0,)


@pytest.mark.parametrize("ids", [[-1], [256], [2**31], [2**32 + 97], [-(2**63)], [2**63 - 1]])
def test_ids_that_are_no_tokens(ids):
    with pytest.raises(ValueError, match=rf"ids\[0\] = {ids[0]} is no token; there are 256 ids"):
        make(specials={"<s>": 1000}).decode(ids)


@pytest.mark.parametrize("ids", [[1.5], ["a"], [[1, 2]], 7, [2**70], np.array([97.0]), None])
def test_what_is_no_list_of_ids(ids):
    with pytest.raises((ValueError, TypeError)):
        make().decode(ids)


@pytest.mark.parametrize("before", ["", "a", "\u6f22\U0001f600"])
@pytest.mark.parametrize("surrogate", ["\ud800", "\udfff", "\ud83d"])
def test_lone_surrogates(before, surrogate):
    message = rf"text\[{len(before)}\] is U\+{ord(surrogate):04X}, a lone surrogate"
    for call in (make().encode, lambda text: _C.split(text, "gpt2")):
        with pytest.raises(ValueError, match=message):
            call(f"{before}{surrogate}b\ud801")


@pytest.mark.parametrize(
    "tokens, merges, message",
    [
        ([b"ab", b"ab"], [], r'tokens\[256\] and tokens\[257\] are the same: "ab"'),
        ([b"a"], [], r'tokens\[97\] and tokens\[256\] are the same: "a"'),
        ([b""], [], r"tokens\[256\] is empty"),
        ([], [(97, 98)], r'merges\[0\]: "a" \+ "b" is no token'),
        ([b"ab"], [(97, 256), (97, 98)], r'merges\[0\]: "a" \+ "ab" is no token'),
        ([b"ab"], [(97, 98), (97, 98)], r'merges\[1\]: "a" \+ "b" is there before, as merges\[0\]'),
        ([b"ab"], [(97, 98), (97, 257)], r"merges\[1\]: there is no token 257; there are 257 ids"),
        ([b"ab"], [(-1, 98)], r"merges\[0\]: there is no token -1"),
        ([b"ab"], [(97, 2**31)], r"merges\[0\]: 2147483648 is no id"),
        ([None], [(256, 98)], r"merges\[0\]: there is no token 256"),
        ([b'"\xff\\' + b"x" * 99] * 2, [], r'are the same: "\\"\\xFF\\\\x{37}\.\.\."'),
    ],
)
def test_hostile_vocabularies(tokens, merges, message):
    with pytest.raises(ValueError, match=message):
        make(tokens, merges)


def test_a_byte_without_a_token():
    with pytest.raises(ValueError, match=r'tokens: the byte 7 has none; there must be "\\x07"'):
        _C.Bpe([t for t in ALPHABET if t != b"\x07"], [], "gpt2")
    with pytest.raises(ValueError, match="tokens: the byte 0 has none"):
        _C.Bpe([], [], "gpt2")


@pytest.mark.parametrize(
    "specials, message",
    [
        ({"": 256}, "specials: a name is empty"),
        ({"<s>": -1}, 'specials: the id of "<s>" is -1'),
        ({"<s>": 2**31}, 'specials: "<s>": 2147483648 is no id; ids have 31 bits'),
        ({"<s>": 97}, 'specials: "<s>" has the id 97, which is the token "a"'),
        ({"<s>": 300, "</s>": 300}, r'specials: "<\/?s>" and "<\/?s>" have the same id, 300'),
    ],
)
def test_hostile_special_tokens(specials, message):
    with pytest.raises(ValueError, match=message):
        make(specials=specials)


def test_a_large_id_costs_no_memory():
    bpe = make(specials={"<s>": 2**31 - 1})
    assert bpe.decode(bpe.encode("<s>")) == b"<s>"


def test_unknown_names():
    with pytest.raises(ValueError, match='allowed: "<t>" is no special token'):
        make(specials={"<s>": 300}).encode("a", {"<s>", "<t>"})
    with pytest.raises(ValueError, match="pattern must be gpt2, smollm, llama3, cl100k, qwen2 or none, got"):
        make(pattern="gpt9")
    with pytest.raises(ValueError, match="pattern must be"):
        _C.split("a", "")


@pytest.mark.parametrize("arguments", [(None,), (3,), (b"bytes",), ("a", 3)])
def test_what_is_no_text(arguments):
    with pytest.raises(TypeError):
        make().encode(*arguments)


def test_threads_share_a_tokenizer():
    tokens, merges = _C.train_bpe("some words and more words, and some more " * 50, 300, "gpt2")
    bpe = _C.Bpe(tokens, merges, "gpt2")
    texts = [" ".join(f"words{i * j % 97} more" for j in range(3000)) for i in range(8)]
    expected = [_C.Bpe(tokens, merges, "gpt2").encode(text).tolist() for text in texts]
    found: list[list[int] | None] = [None] * len(texts)

    def work(i: int) -> None:
        for _ in range(5):
            found[i] = bpe.encode(texts[i]).tolist()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
