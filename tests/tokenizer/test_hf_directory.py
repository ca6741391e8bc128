"""Directories as `transformers` keeps them: vocab.json and merges.txt, and which tokens begin and end a text."""

import json
import re
import shutil

import pytest
import tiktoken
import transformers
from hypothesis import given
from tiktoken_ext import openai_public
from tokenizer_cases import FAMILIES, FRAGMENTS, TEXTS, corpus, family
from tokenizers import ByteLevelBPETokenizer, normalizers, pre_tokenizers
from tokenizers import Tokenizer as TheirTokenizer

from minigpt_ext.tokenizer import BPETokenizer, load_tokenizer
from minigpt_ext.tokenizer.patterns import NAMES

TEXT = "".join(FRAGMENTS) + corpus()[:3000]


def write_json(path, content):
    path.write_text(json.dumps(content))
    return path.parent


@pytest.fixture
def vocab_files(tmp_path):
    """vocab.json and merges.txt as `tokenizers` writes them, with GPT-2's token put in as GPT-2 has it."""
    family("gpt2").model.save(str(tmp_path))
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    write_json(tmp_path / "vocab.json", vocab | {"<|endoftext|>": len(vocab)})
    return tmp_path


def test_vocab_files(vocab_files):
    merges = vocab_files / "merges.txt"
    assert merges.read_text().startswith("#version")
    ours = BPETokenizer.from_files(vocab_files / "vocab.json", merges)
    ids = family("gpt2").encode(TEXT).ids
    assert ours.encode(TEXT) == ids and ours.special_tokens == {"<|endoftext|>": 900}
    merges.write_text(merges.read_text().split("\n", 1)[1].replace("\n", "\r\n"))  # without the first line
    again = load_tokenizer(vocab_files)
    assert again.spec.merges == ours.spec.merges and again.eos_id == 900


def test_a_merge_that_looks_like_the_version_line(tmp_path):
    trained = BPETokenizer.train("#version: ##", 300, "none")
    trained.save_directory(tmp_path)
    lines = (tmp_path / "merges.txt").read_text().split("\n")
    (tmp_path / "merges.txt").write_text("\n".join(lines[1:]))
    assert lines[1].startswith("#") and not lines[1].startswith("#version")
    assert BPETokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt", "none").spec == trained.spec


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", b"[]", "expected an object"),
        ("vocab.json", b'{"a": 0, "b": 0}', "the id 0 belongs to 'a' and to 'b'"),
        ("vocab.json", b'{"a": 0, "a": 1}', 'the key "a" stands in one object more than once'),
        ("vocab.json", b'{"!": 0}', "'!' \\+ 'n'|is not in the vocabulary"),
        ("vocab.json", b"{", "not valid JSON"),
        ("merges.txt", b"a b c\n", "line 1: expected two tokens with a space between"),
        ("merges.txt", b"#version: 0.2\n\na qqq\n", "line 3: 'a' \\+ 'qqq': 'qqq' is not in the vocabulary"),
        ("merges.txt", b"\xff\n", "not UTF-8: invalid start byte at byte offset 0"),
    ],
)
def test_wrong_vocab_files(vocab_files, name, content, message):
    (vocab_files / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(vocab_files))}.*{message}"):
        load_tokenizer(vocab_files)


@pytest.mark.parametrize("pattern", NAMES)
def test_what_we_write_is_read_by_everyone(tmp_path, pattern):
    specials = ["<|endoftext|>", "<|im_start|>"]
    ours = BPETokenizer.train(corpus(), 500, pattern, specials)
    paths = ours.save_directory(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    ids = ours.encode(TEXT)
    theirs = TheirTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode(TEXT).ids == ids and theirs.decode(ids, skip_special_tokens=False) == TEXT
    auto = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert auto.encode(TEXT) == ids and auto.decode(ids) == TEXT
    assert (auto.eos_token_id, auto.bos_token_id) == (ours.eos_id, None) and len(auto) == ours.vocab_size
    again = load_tokenizer(tmp_path)
    assert again.sha256 == ours.sha256 and again.eos_id == ours.eos_id == 498
    if pattern == "gpt2":
        old = ByteLevelBPETokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
        assert old.encode(corpus()).ids == ours.encode(corpus(), special=False)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name).unlink()
        assert load_tokenizer(tmp_path).encode(TEXT) == ids


@given(text=TEXTS)
def test_tiktoken_reads_our_vocabulary(text):
    ours = _trained()
    ranks = {token: id for id, token in enumerate(ours.spec.tokens)}
    theirs = tiktoken.Encoding(
        "ours", pat_str=openai_public.r50k_pat_str, mergeable_ranks=ranks, special_tokens=ours.special_tokens
    )
    assert ours.encode(text) == theirs.encode(text, allowed_special="all")


_cache = []


def _trained():
    if not _cache:
        _cache.append(BPETokenizer.train(corpus(), 800, special_tokens=["<|endoftext|>"]))
    return _cache[0]


@pytest.mark.parametrize("name", ["gpt2", "llama3", "qwen2", "smollm", "llama2", "mistral"])
def test_transformers_has_the_same_ids(tmp_path, name):
    """What we read of `tokenizers` and write anew, read by `transformers`."""
    source = tmp_path / "source"
    source.mkdir()
    family(name).save(str(source / "tokenizer.json"))
    ours = load_tokenizer(source)
    ours.save_directory(tmp_path)
    auto = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert auto.encode(TEXT) == ours.encode_prompt(TEXT) == family(name).encode(TEXT).ids
    assert auto.bos_token_id == ours.bos_id and (tmp_path / "vocab.json").exists() == (ours.spec.alphabet == "bytes")


@pytest.fixture
def llama(tmp_path):
    family("mistral").save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def _token(content):
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    return {"__type": "AddedToken", "content": content} | flags


CONFIGS = {
    "nothing": ({}, {}, (1, None, True)),
    "strings": ({"bos_token": "<s>", "eos_token": "</s>"}, {}, (1, 2, True)),
    "objects": ({"bos_token": _token("<s>"), "eos_token": _token("</s>")}, {}, (1, 2, True)),
    "nulls": ({"bos_token": None, "eos_token": None}, {}, (1, None, True)),
    "map": ({}, {"bos_token": "<s>", "eos_token": {"content": "</s>"}}, (1, 2, True)),
    "passed over": ({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False}, {}, (1, 2, True)),
    "an ordinary token": ({"bos_token": "<s>", "eos_token": "e"}, {}, (1, "e", True)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_which_tokens_begin_and_end_a_text(llama, name):
    config, token_map, (bos_id, eos_id, add_bos) = CONFIGS[name]
    write_json(llama / "tokenizer_config.json", config | {"chat_template": "x", "unk_token": "<unk>"})
    write_json(llama / "special_tokens_map.json", token_map)
    ours = load_tokenizer(llama)
    if isinstance(eos_id, str):
        eos_id = family("mistral").token_to_id(eos_id)
    assert (ours.bos_id, ours.eos_id, ours.add_bos) == (bos_id, eos_id, add_bos)
    assert ours.encode_prompt("Hi") == [bos_id] * add_bos + ours.encode("Hi")
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(llama))
    assert theirs.encode("Hi there") == ours.encode_prompt("Hi there")
    assert ours.without_bos().encode_prompt("Hi") == ours.encode("Hi")

    ours.save_directory(llama / "again")
    again = load_tokenizer(llama / "again")
    assert (again.bos_id, again.eos_id, again.add_bos) == (bos_id, eos_id, add_bos)
    assert again.spec.config["chat_template"] == "x"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bos_token": 3}, "bos_token: expected a text, got 3"),
        ({"eos_token": {"text": "x"}}, 'eos_token: "content" is missing'),
        ({"eos_token": "<|nope|>"}, r"eos_token: '<\|nope\|>' is no token of this vocabulary"),
        ({"bos_token": "</s>"}, 'bos_token: got "</s>"; and the post_processor of tokenizer.json puts the token 1'),
        ([], "expected an object, got \\[\\]"),
    ],
)
def test_a_wrong_config_is_refused(llama, config, message):
    write_json(llama / "tokenizer_config.json", config)
    with pytest.raises(ValueError, match=f"tokenizer_config.json: {message}"):
        load_tokenizer(llama)


def test_without_a_config_endoftext_ends_a_text(tmp_path):
    family("gpt2").save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).eos_id == 900
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": None})
    assert load_tokenizer(tmp_path).eos_id is None


@pytest.mark.parametrize("name", ["gpt2", "gpt2_with_prefix_space"])
@pytest.mark.parametrize("config", [{}, {"add_prefix_space": True}, {"add_prefix_space": False}])
@pytest.mark.parametrize("of_class", [{}, {"tokenizer_class": "GPT2Tokenizer"}])
def test_the_space_in_front(tmp_path, name, config, of_class):
    """GPT-2's class of transformers overrules tokenizer.json."""
    family(name).save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", config | of_class)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    assert load_tokenizer(tmp_path).encode("Hi there") == theirs.encode("Hi there")


def test_a_bos_without_tokenizer_json(vocab_files):
    config = {"bos_token": "<|endoftext|>", "add_bos_token": True, "add_prefix_space": True}
    write_json(vocab_files / "tokenizer_config.json", config)
    ours = load_tokenizer(vocab_files)
    assert ours.encode_prompt("Hi") == [900, *ours.encode(" Hi")]
    write_json(vocab_files / "tokenizer_config.json", config | {"add_eos_token": True, "eos_token": "<|endoftext|>"})
    with pytest.raises(ValueError, match="add_eos_token: got true; this program puts nothing behind a text"):
        load_tokenizer(vocab_files)
    write_json(vocab_files / "tokenizer_config.json", {"add_bos_token": "yes"})
    with pytest.raises(ValueError, match='add_bos_token: expected true or false, got "yes"'):
        load_tokenizer(vocab_files)


def test_qwen_without_tokenizer_json(tmp_path):
    """vocab.json, merges.txt and the added tokens of tokenizer_config.json."""
    theirs = family("qwen2")
    theirs.model.save(str(tmp_path))
    added = {id: token for id, token in theirs.get_added_tokens_decoder().items()}
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    decoder = {str(id): {name: getattr(token, name) for name in names} for id, token in added.items()}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": decoder, "eos_token": "<|im_end|>"}
    write_json(tmp_path / "tokenizer_config.json", config)
    ours = load_tokenizer(tmp_path)
    assert ours.encode(TEXT + "<|im_end|>") == theirs.encode(TEXT + "<|im_end|>").ids
    assert ours.eos_id == ours.special_tokens["<|im_end|>"]
    write_json(tmp_path / "tokenizer_config.json", config | {"tokenizer_class": "BertTokenizer"})
    with pytest.raises(ValueError, match='tokenizer_class: got "BertTokenizer"; without tokenizer.json'):
        load_tokenizer(tmp_path)
    config["added_tokens_decoder"]["x"] = decoder[str(ours.eos_id)]
    write_json(tmp_path / "tokenizer_config.json", config)
    with pytest.raises(ValueError, match="added_tokens_decoder.x: expected an id as key"):
        load_tokenizer(tmp_path)


def test_files_that_cannot_be_written_leave_nothing_behind(tmp_path):
    tokenizer = BPETokenizer.train("low low", 300, special_tokens=["low"])
    with pytest.raises(ValueError, match="the added token 'low' is written as the ordinary token"):
        tokenizer.save_directory(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(FileNotFoundError, match="no tokenizer.json"):
        load_tokenizer(tmp_path)
    shutil.copytree(tmp_path, tmp_path / "copy")
    with pytest.raises(FileNotFoundError):
        tokenizer_file = tmp_path / "copy" / "tokenizer.json"
        load_tokenizer(tokenizer_file)


def test_the_families_are_what_their_names_say():
    assert isinstance(family("qwen2").normalizer, normalizers.NFC) and len(FAMILIES) == 11
    assert isinstance(family("mistral").pre_tokenizer, pre_tokenizers.Metaspace)
