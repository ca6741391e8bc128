"""The two libraries that BPE is held against, given the same vocabulary as ours; and texts that go to the edges."""

import json
import random
from collections.abc import Sequence

import tiktoken
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
REGEXES = {
    "gpt2": GPT2,
    "llama3": LLAMA3,
    "cl100k": LLAMA3.replace(r"|\s*[\r\n]+", r"|\s++$|\s*[\r\n]"),
    "qwen2": LLAMA3.replace("{1,3}", ""),
}
PATTERNS = [*REGEXES, "smollm"]

# What tiktoken's own definition of cl100k_base says; Oniguruma, in tokenizers, does not read {1,3}+ as possessive.
CL100K_OF_TIKTOKEN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)

# GPT-2's characters for bytes, as byte-level vocabularies are written.
_VISIBLE = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
BYTE_TO_CHARACTER = {b: chr(b) for b in _VISIBLE} | {
    b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in _VISIBLE)
}
CHARACTER_TO_BYTE = {c: b for b, c in BYTE_TO_CHARACTER.items()}


def spelled(token: bytes) -> str:
    return "".join(BYTE_TO_CHARACTER[b] for b in token)


def splitter(pattern: str) -> pre_tokenizers.PreTokenizer:
    """The pattern alone: its pieces are pieces of the text."""
    if pattern == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), splitter("gpt2")])
    return pre_tokenizers.Split(Regex(REGEXES[pattern]), "isolated")


def split(text: str, pattern: str) -> list[str]:
    return [piece for piece, _ in splitter(pattern).pre_tokenize_str(text)]


def byte_level(pattern: str) -> pre_tokenizers.PreTokenizer:
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return plain if pattern == "none" else pre_tokenizers.Sequence([splitter(pattern), plain])


def hf_tokenizer(
    tokens: Sequence[bytes], merges: Sequence[tuple[int, int]], pattern: str, ignore_merges: bool = False
) -> Tokenizer:
    model = models.BPE(
        {spelled(token): i for i, token in enumerate(tokens)},
        [(spelled(tokens[a]), spelled(tokens[b])) for a, b in merges],
        ignore_merges=ignore_merges,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = byte_level(pattern)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def hf_encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def hf_train(
    texts: Sequence[str], vocab_size: int, pattern: str, min_frequency: int = 0
) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """Tokens in the order of their ids (there GPT-2's order of bytes), and merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level(pattern)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]

    def read(token: str) -> bytes:
        return bytes(CHARACTER_TO_BYTE[c] for c in token)

    tokens = [read(token) for token in sorted(model["vocab"], key=model["vocab"].get)]
    return tokens, [(read(a), read(b)) for a, b in model["merges"]]


def tiktoken_encoding(tokens: Sequence[bytes], regex: str) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "peer", pat_str=regex, mergeable_ranks={token: i for i, token in enumerate(tokens)}, special_tokens={}
    )


# Characters at which patterns turn: spaces of all kinds, newlines, apostrophes and what may follow them in either case
# (U+017F folds to s, U+212A to k), letters, numbers and marks of several scripts and lengths in UTF-8, unassigned ones.
EDGES = list(" \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\u200b\u180e\ufeff")
EDGES += list("'''sStTdDmMrReEvVlLkK\u017f\u212a\ufb05\ufb06\u2019")
EDGES += list('aZ09_-.<>=#(){}"^\\\x00\x7f\xaa\xb2\xbd\xe9\u0301\u0391\u05d0\u0663\u0e01\u4e2d\u3042\uac00\u2160\u3007')
EDGES += list("\U0001d7d8\U0001f600\U0001f1e6\u200d\U00020000\U0001f468\U000e0041\U0010ffff\ufffd\ue000\u0378")

edge_text = st.lists(st.sampled_from(EDGES), max_size=40).map("".join)
any_text = st.one_of(
    edge_text, st.text(max_size=60), st.lists(st.sampled_from(["  ", "\n", "'s", "a", "1", " "])).map("".join)
)


def every_character() -> str:
    """All code points but surrogates, shuffled once, between characters of all classes."""
    codes = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    generator = random.Random(0)
    generator.shuffle(codes)
    return "".join(c + generator.choice(["", "", "a", " ", "1", "'", "\n", ".", "  ", " \n", "'s"]) for c in codes)


def corpora() -> dict[str, str]:
    """Real text that every Python has: programs, prose, and words of many scripts."""
    import encodings
    import inspect
    import pydoc_data.topics
    import turtle
    import unicodedata

    names = [chr(c) for c in range(0x10000) if "LETTER" in unicodedata.name(chr(c), "")]
    generator = random.Random(0)
    starts = generator.choices(range(len(names)), k=4000)
    words = ["".join(names[i : i + 1 + i % 9]) for i in starts]
    return {
        "code": inspect.getsource(turtle)[:80_000] + inspect.getsource(encodings),
        "prose": "\n".join(pydoc_data.topics.topics.values())[:120_000],
        "scripts": " ".join(words),
    }
