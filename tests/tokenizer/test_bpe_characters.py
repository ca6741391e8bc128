"""SentencePiece's BPE, of Llama 2 and Mistral: characters, then bytes for those unknown, and U+2581 for spaces."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt_ext import _C

pytest.importorskip("tokenizers", reason="tokenizers is not installed: there is nothing to compare with")
pytest.importorskip("tiktoken", reason="tiktoken is not installed, which the peers' module imports")

import bpe_peers  # noqa: E402
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402

BYTES = [f"<0x{b:02X}>" for b in range(256)]
CORPORA = bpe_peers.corpora()


@pytest.fixture(scope="module")
def vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """Laid out as Llama's: <unk>, specials, bytes, then what training made; trained on whole words with U+2581."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(
        vocab_size=1500, show_progress=False, special_tokens=["<unk>", "<s>", "</s>", *BYTES], limit_alphabet=150
    )
    tokenizer.train_from_iterator([CORPORA["code"], CORPORA["prose"], CORPORA["scripts"][:3000]], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(merge) for merge in model["merges"]]


def peer(tokens: list[str], merges: list[tuple[str, str]], metaspace: str) -> Tokenizer:
    model = models.BPE(
        {token: i for i, token in enumerate(tokens)}, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"
    )
    tokenizer = Tokenizer(model)
    if metaspace == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    elif metaspace != "none":
        scheme = {"replace": "never"}.get(metaspace, metaspace)
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    steps = [decoders.ByteFallback(), decoders.Fuse()]
    if metaspace != "none":
        steps.insert(0, decoders.Replace("\u2581", " "))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def core(tokens: list[str], merges: list[tuple[str, str]], metaspace: str):
    ids = {token: i for i, token in enumerate(tokens)}
    return _C.Bpe(
        [token.encode() for token in tokens],
        [(ids[a], ids[b]) for a, b in merges],
        "none",
        specials={"<s>": 1, "</s>": 2},
        alphabet="characters+bytes",
        metaspace=metaspace,
    )


@pytest.mark.parametrize("metaspace", ["none", "replace", "prepend", "always", "first"])
def test_ids_and_bytes(vocabulary, metaspace):
    ours, theirs = core(*vocabulary, metaspace), peer(*vocabulary, metaspace)

    def check(text: str) -> None:
        ids = ours.encode(text).tolist()
        assert ids == bpe_peers.hf_encode(theirs, text)
        decoded = ours.decode(ids).decode()
        assert decoded == theirs.decode(ids, skip_special_tokens=False)
        if metaspace in ("none", "replace") and "\u2581" not in text:
            assert decoded == text

    for text in CORPORA.values():
        check(text[:30_000])
    pieces = st.lists(
        st.sampled_from([" ", "  ", "<s>", "</s>", "\u2581", "a", "the", "<0x41>", "\n", "\u6f22", "e\u0301"])
    )
    settings(max_examples=150)(given(st.one_of(bpe_peers.any_text, pieces.map("".join)))(check))()


def test_every_character_falls_back_to_its_bytes(vocabulary):
    text = bpe_peers.every_character()[:400_000]
    ours, theirs = core(*vocabulary, "none"), peer(*vocabulary, "none")
    ids = ours.encode(text).tolist()
    assert ids == bpe_peers.hf_encode(theirs, text)
    assert ours.decode(ids) == text.encode()


@settings(max_examples=150)
@given(data=st.data())
def test_any_vocabulary(data):
    """Merges that training would not give, with spellings of bytes among them: no cut may be made too many."""
    tokens = ["<unk>", *BYTES, *"ab\u2581\u6f22<0x41>"]
    tokens = list(dict.fromkeys(tokens))
    merges: list[tuple[str, str]] = []
    for _ in range(data.draw(st.integers(0, 20))):
        pair = tuple(data.draw(st.sampled_from(tokens[256 - 20 :])) for _ in range(2))
        if pair not in merges:
            merges.append(pair)
            if pair[0] + pair[1] not in tokens:
                tokens.append(pair[0] + pair[1])
    merges = data.draw(st.permutations(merges))
    text = data.draw(st.text("ab \u6f22\u6f23<0x41>\u2581\xf9", max_size=100))
    ids = {token: i for i, token in enumerate(tokens)}
    ours = _C.Bpe(
        [token.encode() for token in tokens],
        [(ids[a], ids[b]) for a, b in merges],
        "none",
        alphabet="characters+bytes",
        metaspace="replace",
    )
    model = models.BPE(ids, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    theirs = Tokenizer(model)
    theirs.normalizer = normalizers.Replace(" ", "\u2581")
    assert ours.encode(text).tolist() == bpe_peers.hf_encode(theirs, text)


def test_a_long_text_is_one_piece_in_linear_time(vocabulary):
    from time import perf_counter

    ours = core(*vocabulary, "prepend")
    for unit in (" ", "a", "the cat ", "\u6f22"):
        began = perf_counter()
        ids = ours.encode((unit * 1_000_000)[:1_000_000])
        assert perf_counter() - began < 3, "under a second where nothing else runs"
        assert ours.decode(ids).decode()[1:] == (unit * 1_000_000)[:1_000_000]


def test_what_the_alphabet_asks_for(vocabulary):
    tokens = [token.encode() for token in vocabulary[0]]
    with pytest.raises(ValueError, match=r'tokens: the byte 65 has none; there must be "<0x41>"'):
        _C.Bpe([t for t in tokens if t != b"<0x41>"], [], "none", alphabet="characters+bytes")
    with pytest.raises(ValueError, match=r'tokens\[\d+\] = "\\xFF" is not UTF-8'):
        _C.Bpe([*tokens, b"\xff"], [], "none", alphabet="characters+bytes")
    with pytest.raises(ValueError, match="alphabet must be bytes or characters[+]bytes, got"):
        _C.Bpe(tokens, [], "none", alphabet="runes")
    with pytest.raises(ValueError, match="metaspace must be none, replace"):
        _C.Bpe(tokens, [], "none", metaspace="sometimes")
