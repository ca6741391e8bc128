"""What the tests of tokenizers share: texts, and tokenizers of every family made by the library `tokenizers`."""

import functools
from pathlib import Path

import tokenizers
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = Path(__file__).resolve().parents[1]

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
FOREIGN = "naïve café — déjà vu; Привет, мир! 東京タワー 12345 العربية हिन्दी 😀👩‍👩‍👧 e\u0301 \u212b ﬁ\n"


@functools.cache
def corpus():
    """English and code with a bit of everything, about 60,000 characters."""
    files = ["README.md", "CONTRIBUTING.md", "minigpt_ext/training/trainer.py", "minigpt_ext/cli/doctor.py"]
    return "".join((ROOT / name).read_text(encoding="utf-8") for name in files)[:60_000] + 20 * FOREIGN


FRAGMENTS = [
    "the", " the", "model", " 123", "4567", "'s", "'LL", "  ", "   ", "\n", "\r\n", " \n\n ", "\t", "é", "e\u0301",
    "東京", "😀", "\u2581", "\u2581\u2581", "<|endoftext|>", "<s>", " <s>", "</s>", "<0x0A>", "def f(x):", "Å",
    "\u00a0", "\x00", "ſ", "\u200d", "\ufeff", "_", "a", " a", "ǅ", "½", "٣",
]  # fmt: skip
TEXTS = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join),
    st.text(alphabet=st.characters(exclude_categories=["Cs", "Cn"]), max_size=30),
)


def add(tokenizer, *contents, **flags):
    tokenizer.add_special_tokens([AddedToken(content, normalized=False, **flags) for content in contents])
    return tokenizer


def byte_level(pre_tokenizer, vocab_size=900, specials=("<|endoftext|>",), normalizer=None, ignore_merges=False):
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [corpus()], trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    return add(tokenizer, *specials)


def split(pattern):
    regex = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([regex, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2():
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def gpt2_with_prefix_space():
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))


def llama3():
    tokenizer = byte_level(split(LLAMA3), specials=["<|begin_of_text|>", "<|end_of_text|>"], ignore_merges=True)
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))],
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    return tokenizer


def qwen2():
    return byte_level(
        split(QWEN2), specials=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizer=normalizers.NFC()
    )


def smollm():
    digits = pre_tokenizers.Digits(individual_digits=True)
    return byte_level(pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]))


@functools.cache
def character_vocabulary():
    """The vocabulary and merges of a SentencePiece-like tokenizer: runs of spaces, and tokens with spaces inside."""
    trained = tokenizers.Tokenizer(models.BPE())
    lines = [line.replace(" ", "\u2581") for line in corpus().split("\n")]
    trainer = trainers.BpeTrainer(vocab_size=700, show_progress=False, special_tokens=["\u2581"])
    trained.train_from_iterator(lines, trainer)
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in _json(trained)["model"]["merges"]]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    learned = [token for token, _ in sorted(trained.get_vocab().items(), key=lambda entry: entry[1])]
    return {token: id for id, token in enumerate(names + learned)}, merges


def _json(tokenizer):
    import json

    return json.loads(tokenizer.to_str())


def sentencepiece(normalizer=None, pre_tokenizer=None, strip=True, normalized=False):
    vocab, merges = character_vocabulary()
    model = models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * strip)
    tokenizer.add_special_tokens([AddedToken(t, normalized=normalized) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return tokenizer


PREPEND = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])


def metaspace(scheme):
    return pre_tokenizers.Metaspace("\u2581", prepend_scheme=scheme, split=False)


FAMILIES = {
    "gpt2": gpt2,
    "gpt2_with_prefix_space": gpt2_with_prefix_space,
    "llama3": llama3,
    "qwen2": qwen2,
    "smollm": smollm,
    "llama2": lambda: sentencepiece(normalizer=PREPEND),
    "llama2_normalized": lambda: sentencepiece(normalizer=PREPEND, normalized=True),
    "replace": lambda: sentencepiece(normalizer=normalizers.Replace(" ", "\u2581"), strip=False),
    "mistral": lambda: sentencepiece(pre_tokenizer=metaspace("first")),
    "always": lambda: sentencepiece(pre_tokenizer=metaspace("always")),
    "never": lambda: sentencepiece(pre_tokenizer=metaspace("never"), strip=False),
}


@functools.cache
def family(name):
    """The tokenizer of `tokenizers`."""
    return FAMILIES[name]()
