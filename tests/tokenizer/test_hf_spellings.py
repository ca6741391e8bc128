"""Other ways to write the same fields of tokenizer.json, as older files and other programs have them."""

import copy
import json

import pytest
import tokenizers
from tokenizer_cases import FRAGMENTS, LLAMA3, corpus, family

from minigpt_ext.tokenizer import load_tokenizer

GPT2_REGEX = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def split(regex, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def without_type(content):
    del content["model"]["type"]
    content["model"] |= {"unk_token": "", "continuing_subword_prefix": "", "end_of_word_suffix": ""}


def harmless_split(content):
    """Pieces at every U+2581, where no token has one inside."""
    mark = "\u2581"
    model = content["model"]
    model["merges"] = [m for m in model["merges"] if mark not in (m if isinstance(m, list) else m.split(" "))[1]]
    model["merges"] = [m for m in model["merges"] if mark not in "".join(m).lstrip(mark)]
    content["pre_tokenizer"]["split"] = True


def older_metaspace(content):
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "add_prefix_space": True, "split": False}


def whole_words(content):
    """A token that no merge makes, in the place of one that nothing is merged with."""
    vocab = content["model"]["vocab"]
    merges = [merge if isinstance(merge, list) else merge.split(" ") for merge in content["model"]["merges"]]
    parts = {part for merge in merges for part in merge}
    unused = next(left + right for left, right in merges[::-1] if left + right not in parts)
    content["model"]["merges"] = [merge for merge in merges if "".join(merge) != unused]
    vocab["zebra"] = vocab.pop(unused)


SPELLINGS = {
    "no type": ("gpt2", without_type),
    "gpt2 by its expression": ("gpt2", {"pre_tokenizer": sequence(split(GPT2_REGEX), BYTE_LEVEL)}),
    "no expression": ("gpt2", {"pre_tokenizer": BYTE_LEVEL}),
    "ByteLevel of old": (
        "gpt2",
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}},
    ),
    "kept matches": ("llama3", {"pre_tokenizer": sequence(split(LLAMA3, "Removed", True), BYTE_LEVEL)}),
    "sequence in sequence": ("llama3", {"pre_tokenizer": sequence(sequence(split(LLAMA3)), BYTE_LEVEL)}),
    "normalizer in a sequence": ("qwen2", {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}}),
    "empty normalizers": ("gpt2", {"normalizer": {"type": "Sequence", "normalizers": []}}),
    "batches": ("gpt2", {"truncation": None, "padding": None}),
    "older Metaspace": ("always", older_metaspace),
    "harmless split": ("mistral", harmless_split),
    "whole words": ("llama3", whole_words),
    "whole words by merges only": ("gpt2", whole_words),
    "no post_processor": ("llama2", {"post_processor": None}),
    "template without bos": (
        "llama2",
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {},
            }
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_it_is_what_tokenizers_makes_of_it(tmp_path, name):
    base, change = SPELLINGS[name]
    content = copy.deepcopy(json.loads(family(base).to_str()))
    if callable(change):
        change(content)
    else:
        content |= change
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    ours, theirs = load_tokenizer(file), tokenizers.Tokenizer.from_file(str(file))
    texts = [corpus(), *FRAGMENTS, "".join(FRAGMENTS), " ".join(FRAGMENTS), "zebra", "a zebra", "zebra zebra\nzebra"]
    for text in texts:
        assert ours.encode_prompt(text) == theirs.encode(text).ids, text
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    if name.startswith("whole words"):
        assert (content["model"]["vocab"]["zebra"] in ours.encode("zebra")) == (base == "llama3")


def test_ids_that_tokenizers_would_not_keep_are_refused(tmp_path):
    content = json.loads(family("gpt2").to_str())
    content["added_tokens"][0]["id"] = 905
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    assert tokenizers.Tokenizer.from_file(str(file)).encode("<|endoftext|>").ids == [900]
    with pytest.raises(
        ValueError, match=r"added_tokens\[0\].id: '<\|endoftext\|>' is not in the vocabulary and has.*905"
    ):
        load_tokenizer(file)


def test_truncation_and_padding_do_not_change_what_a_text_is(tmp_path):
    content = json.loads(family("gpt2").to_str())
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    ids = load_tokenizer(tmp_path).encode(corpus()[:500])
    assert ids == family("gpt2").encode(corpus()[:500]).ids
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode(corpus()[:500]).ids == ids[:3]
    theirs.no_truncation()  # as transformers does before every text
    assert theirs.encode(corpus()[:500]).ids == ids


def test_the_expression_of_tiktoken_means_something_else_to_tokenizers(tmp_path):
    """Oniguruma reads {1,3}+ as repeated, not as possessive: such a file is refused, not read as tiktoken means it."""
    content = json.loads(family("llama3").to_str())
    regex = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}{1,3}+")
    content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = regex
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).pre_tokenizer.pre_tokenize_str("12345") == [
        ("12345", (0, 5))
    ]
    with pytest.raises(ValueError, match="pattern: got .*this program can cut by the expressions it knows"):
        load_tokenizer(tmp_path)
