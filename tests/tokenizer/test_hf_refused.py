"""Files that are wrong, hostile, or ask for what cannot be done exactly: a ValueError that names file and field."""

import copy
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_cases import family

from minigpt_ext.tokenizer import load_tokenizer

BYTES = json.loads(family("gpt2").to_str())
LLAMA = json.loads(family("mistral").to_str())
LLAMA2 = json.loads(family("llama2").to_str())
LLAMA3 = json.loads(family("llama3").to_str())


def changed(content, **changes):
    """A copy with values put at paths such as model__merges__0; `...` deletes."""
    content = copy.deepcopy(content)
    for path, value in changes.items():
        *parents, last = [int(part) if part.isdecimal() else part for part in path.split("__")]
        place = content
        for part in parents:
            place = place[part]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return content


REFUSED = {
    # what this program cannot do exactly
    "model__type": (BYTES, "WordPiece", 'model.type: got "WordPiece"'),
    "model__dropout": (BYTES, 0.1, "model.dropout: got 0.1"),
    "model__continuing_subword_prefix": (BYTES, "##", 'model.continuing_subword_prefix: got "##"'),
    "model__end_of_word_suffix": (BYTES, "</w>", 'model.end_of_word_suffix: got "</w>"'),
    "model__byte_fallback": (LLAMA, False, "model.byte_fallback: got false"),
    "model__novelty": (BYTES, 1, "model.novelty: got 1; this program knows no such field"),
    "novelty": (BYTES, 1, "novelty: got 1"),
    "normalizer": (BYTES, {"type": "Lowercase"}, 'normalizer: got {"type": "Lowercase"}'),
    "normalizer__normalizers": (LLAMA2, [{"type": "Prepend", "prepend": "_"}], "normalizer: got"),
    "normalizer__normalizers__0__prepend": (LLAMA2, "_", 'prepend: got "_"'),
    "normalizer__normalizers__1__pattern": (LLAMA2, {"Regex": " "}, 'pattern: got {"Regex": " "}'),
    "normalizer__normalizers__1__content": (LLAMA2, "_", 'content: got "_"'),
    "pre_tokenizer": (BYTES, {"type": "Whitespace"}, 'pre_tokenizer: got {"type": "Whitespace"}'),
    "pre_tokenizer__use_regexp": (BYTES, True, "pre_tokenizer.use_regexp: got true"),
    "pre_tokenizer__replacement": (LLAMA, "_", 'pre_tokenizer.replacement: got "_"'),
    "pre_tokenizer__prepend_scheme": (LLAMA, "last", 'got "last"'),
    "pre_tokenizer__split": (LLAMA, True, 'pre_tokenizer: "split" is true'),
    "pre_tokenizer__add_prefix_space": (LLAMA, False, "add_prefix_space: got false"),
    "pre_tokenizer__pretokenizers__0__pattern": (LLAMA3, {"Regex": r"\w+"}, r'pattern: got {"Regex": "\\w+"}'),
    "pre_tokenizer__pretokenizers__0__behavior": (LLAMA3, "Removed", 'behavior: got "Removed"'),
    "pre_tokenizer__pretokenizers__1__use_regex": (LLAMA3, True, "pre_tokenizer: got"),
    "pre_tokenizer__pretokenizers__1__add_prefix_space": (LLAMA3, True, "pre_tokenizer: got"),
    "decoder": (BYTES, {"type": "WordPiece", "prefix": "##"}, 'decoder: got {"type": "WordPiece"'),
    "decoder__decoders__3__start": (LLAMA, 2, "start: got 2"),
    "post_processor": (BYTES, {"type": "BertProcessing"}, 'post_processor: got {"type": "BertProcessing"}'),
    "post_processor__single": (
        LLAMA,
        [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "post_processor.single: got",
    ),
    "post_processor__single__0__SpecialToken__id": (LLAMA, "<t>", "'<t>' is no added token"),
    "post_processor__special_tokens": (LLAMA, {}, '"<s>" is missing'),
    "post_processor__special_tokens__<s>__ids": (LLAMA, [2], "ids: got [2]"),
    # what is wrong
    "added_tokens": (BYTES, {}, "added_tokens: expected a list, got {}"),
    "added_tokens__0": (BYTES, "<s>", 'added_tokens[0]: expected an object, got "<s>"'),
    "added_tokens__0__id": (BYTES, "0", 'added_tokens[0].id: expected an integer from 0 to 4194304, got "0"'),
    "added_tokens__1__id": (LLAMA, 0, "the added token '<s>' has the id 0, and here '<s>' has 1"),
    "added_tokens__1__content": (LLAMA, "<unk>", "the added token '<unk>' has the id 1"),
    "added_tokens__0__content": (BYTES, "", "added tokens: one has no content"),
    "added_tokens__0__lstrip": (BYTES, 1, "added_tokens[0].lstrip: expected true or false, got 1"),
    "model": (BYTES, [], "model: expected an object, got []"),
    "model__vocab": (BYTES, [["a", 0.5]], "model.vocab: expected an object"),
    "model__vocab__a": (BYTES, 3, "model.vocab: the id 3 belongs to"),
    "model__vocab__b": (BYTES, -1, "model.vocab.b: expected an integer from 0"),
    "model__vocab__c": (BYTES, 1.0, "model.vocab.c: expected an integer"),
    "model__vocab__d": (BYTES, True, "model.vocab.d: expected an integer"),
    "model__vocab__e": (BYTES, 2**31, "model.vocab.e: expected an integer"),
    "model__vocab__f": (BYTES, ..., "model.vocab: the byte 0x66 has no token: 'f' is missing"),
    "model__vocab__<0x0A>": (LLAMA, ..., "model.vocab: the byte 0x0A has no token"),
    "model__vocab__": (LLAMA, 100000, "the token '' is empty"),
    "model__vocab__\u2581\u2581\u2581\u2581x": (BYTES, 5000, "GPT-2's alphabet of bytes lacks"),
    "model__vocab__\ud800": (LLAMA, 100000, "lone surrogate"),
    "model__merges": (BYTES, ..., 'model: "merges" is missing'),
    "model__merges__0": (BYTES, "a b c", 'model.merges[0]: expected two tokens, got "a b c"'),
    "model__merges__1": (BYTES, ["a"], 'model.merges[1]: expected two tokens, got ["a"]'),
    "model__merges__2": (BYTES, ["a", 1], 'model.merges[2]: expected two tokens, got ["a", 1]'),
    "model__merges__3": (BYTES, ["a", "qqq"], "model.merges[3]: 'a' + 'qqq': 'qqq' is not in the vocabulary"),
    "model__merges__4": (BYTES, ["!", "~"], "model.merges[4]: '!' + '~': '!~' is not in the vocabulary"),
}


@pytest.mark.parametrize("path", REFUSED)
def test_it_is_named(tmp_path, path):
    base, value, message = REFUSED[path]
    _refused(tmp_path, json.dumps(changed(base, **{path: value})), message)


def _refused(folder, text, message):
    file = folder / "tokenizer.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: .*{re.escape(message)}"):
        load_tokenizer(folder)


def test_a_merge_there_twice(tmp_path):
    merges = BYTES["model"]["merges"]
    _refused(tmp_path, json.dumps(changed(BYTES, model__merges=[*merges, merges[5]])), "is there twice")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[]", '"format" is None'),
        (b"3", '"format" is None'),
        (b'{"model": {"type": "BPE"}, "version": "1.0", "model": {}}', 'the key "model" stands in one object more'),
        (b'{"model": NaN}', "NaN is no number in JSON"),
        (b'{"model": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"model":' * 1_000_000, "its lists and objects are nested too deep"),
        (b'{"model": ' + b"[" * 10_000_000, "nested too deep"),
    ],
    ids=["empty", "utf-16", "list", "number", "twice", "nan", "digits", "objects", "lists"],
)
def test_hostile_json(tmp_path, text, message):
    _refused(tmp_path, text, message)


PATHS = [
    ("added_tokens",), ("added_tokens", 0), ("added_tokens", 0, "id"), ("added_tokens", 0, "content"), ("normalizer",),
    ("pre_tokenizer",), ("pre_tokenizer", "type"), ("decoder",), ("decoder", "type"), ("post_processor",),
    ("post_processor", "type"), ("post_processor", "single"), ("post_processor", "special_tokens"), ("model",),
    ("model", "type"), ("model", "vocab"), ("model", "merges"), ("model", "merges", 0), ("model", "unk_token"),
    ("model", "vocab", "a"), ("model", "byte_fallback"), ("model", "ignore_merges"),
]  # fmt: skip
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 2**40), st.floats(), st.text(max_size=4), st.just("\ud800")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=5,
)


@pytest.mark.parametrize("base", [BYTES, LLAMA, LLAMA3], ids=["bytes", "llama", "llama3"])
@given(path=st.sampled_from(PATHS), value=VALUES)
def test_any_value_anywhere_is_taken_or_refused(tmp_path_factory, base, path, value):
    content = copy.deepcopy(base)
    place = content
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    file = tmp_path_factory.getbasetemp() / "tokenizer.json"
    file.write_text(json.dumps(content))
    try:
        tokenizer = load_tokenizer(file)
    except ValueError as error:
        assert str(error).startswith(str(file))
    else:
        assert tokenizer.decode(tokenizer.encode("some text")) == "some text"
