"""tokenizer.json of every family: what `tokenizers` writes has the same ids here, and the other way round."""

import json
from dataclasses import replace

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_cases import FAMILIES, FRAGMENTS, TEXTS, corpus, family

from minigpt_ext.tokenizer import BPETokenizer, load_tokenizer


@pytest.fixture(scope="module", params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def theirs(name):
    return family(name)


@pytest.fixture(scope="module")
def ours(name, theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp(name) / "tokenizer.json"
    theirs.save(str(path))
    return load_tokenizer(path)


@given(text=TEXTS)
def test_ids_and_text(ours, theirs, text):
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    assert ours.encode_prompt(text) == theirs.encode(text).ids


@given(text=TEXTS)
def test_special_tokens_as_text(ours, theirs, text):
    theirs.encode_special_tokens = True
    try:
        assert ours.encode(text, special=False) == theirs.encode(text, add_special_tokens=False).ids
    finally:
        theirs.encode_special_tokens = False


def test_a_corpus(ours, theirs):
    tensor = ours.encode_to_tensor(corpus())
    assert tensor.tolist() == theirs.encode(corpus(), add_special_tokens=False).ids
    assert ours.decode(tensor) == theirs.decode(tensor.tolist(), skip_special_tokens=False)


@given(data=st.data())
def test_any_ids_stream_to_what_they_decode_to(ours, data):
    ids = st.integers(0, ours.vocab_size - 1).filter(lambda id: id not in _holes(ours))
    chosen = data.draw(st.lists(ids, max_size=20))
    stream = ours.stream_decoder()
    pieces = [stream.push(id) for id in chosen]
    assert "".join(pieces) + stream.finish() == ours.decode(chosen)


def _holes(tokenizer):
    there = {id for id, token in enumerate(tokenizer.spec.tokens) if token is not None}
    return set(range(tokenizer.vocab_size)) - there - {token.id for token in tokenizer.spec.added}


def test_what_is_written_is_read(ours, theirs, tmp_path):
    """By `tokenizers`, to the same ids; and by us, to the same tokenizer."""
    path = tmp_path / "tokenizer.json"
    ours.save(path)
    again, there = load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    assert replace(again.spec, config={}) == ours.spec
    for text in [corpus()[:5000], *FRAGMENTS, "".join(FRAGMENTS), " ".join(FRAGMENTS)]:
        ids = theirs.encode(text).ids
        assert there.encode(text).ids == again.encode_prompt(text) == ids
        assert there.decode(ids) == theirs.decode(ids)
    assert there.get_vocab_size() == theirs.get_vocab_size()


def test_merges_as_strings_and_as_pairs(ours, theirs, tmp_path):
    content = json.loads(theirs.to_str())
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in content["model"]["merges"]]
    for number, merges in enumerate((pairs, [" ".join(pair) for pair in pairs])):
        content["model"]["merges"] = merges
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
        assert BPETokenizer.load(tmp_path / f"{number}.json").spec == ours.spec
