"""BPE beside tiktoken and tokenizers: `python benchmarks/bench_tokenizer.py [--quick] [--json FILE]`.

One vocabulary for all three, trained here on four fifths of each text; the last fifth is encoded, on one thread. Ours
gives an array of ids and the others lists; the row "to a list" counts what it takes ours to make one too.
"""

import importlib.util
import os
import random
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import timing
import torch
from timing import Times

from minigpt_ext import _C
from minigpt_ext.data.python_prose import python_prose

PATTERN = "llama3"
REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PEERS = ("tiktoken", "tokenizers")
GOALS = {"tiktoken": 3.0}
TRAINING_THREADS = 2


def code(characters: int) -> str:
    """Sources of the standard library."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return "".join(file.read_text(encoding="utf-8", errors="ignore") for file in files)[:characters]


def scripts(characters: int) -> str:
    """Made-up words of ten scripts and emoji, common ones more often, as words are."""
    generator = random.Random(0)
    letters = [range(*ends) for ends in ((0x61, 0x7B), (0xDF, 0x17F), (0x3B1, 0x3CA), (0x430, 0x450), (0x5D0, 0x5EB))]
    letters += [range(*ends) for ends in ((0x627, 0x64B), (0x905, 0x93A), (0xE01, 0xE2F), (0x3042, 0x3094))]
    letters += [range(0x4E00, 0x5200), range(0xAC00, 0xB000), range(0x1F600, 0x1F650)]
    words = ["".join(map(chr, generator.choices(generator.choice(letters), k=1 + n % 8))) for n in range(20_000)]
    chosen = generator.choices(words, [1 / (1 + rank) for rank in range(len(words))], k=characters // 5)
    return " ".join(chosen)[:characters]


def spelled(token: bytes) -> str:
    """In GPT-2's characters for bytes, as tokenizers wants tokens."""
    visible = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    hidden = {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in visible)}
    return "".join(hidden.get(b) or chr(b) for b in token)


def byte_level() -> Any:
    from tokenizers import Regex, pre_tokenizers

    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(REGEX), "isolated"), plain])


def encoders(tokens: list[bytes], merges: list[tuple[int, int]], peers: list[str]) -> dict[str, Callable[[str], Any]]:
    functions: dict[str, Callable[[str], Any]] = {"ours": _C.Bpe(tokens, merges, PATTERN).encode}
    if "tiktoken" in peers:
        import tiktoken

        ranks = {token: rank for rank, token in enumerate(tokens)}
        peer = tiktoken.Encoding("peer", pat_str=REGEX, mergeable_ranks=ranks, special_tokens={})
        functions["tiktoken"] = peer.encode_ordinary
    if "tokenizers" in peers:
        from tokenizers import Tokenizer, models

        names = [spelled(token) for token in tokens]
        model = models.BPE({name: i for i, name in enumerate(names)}, [(names[a], names[b]) for a, b in merges])
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = byte_level()
        functions["tokenizers"] = lambda text: tokenizer.encode(text).ids
    return functions


def trainers(texts: list[str], size: int, peers: list[str]) -> dict[str, Callable[[], list[bytes] | list[str]]]:
    """Each returns the tokens beyond bytes, for the check."""

    def ours() -> list[bytes]:
        return _C.train_bpe(texts, size, PATTERN, n_threads=TRAINING_THREADS)[0][256:]

    def theirs() -> list[str]:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = byte_level()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet)
        tokenizer.train_from_iterator(texts, trainer)
        vocabulary = tokenizer.get_vocab()
        return sorted(vocabulary, key=vocabulary.get)[256:]

    return {"ours": ours} | ({"tokenizers": theirs} if "tokenizers" in peers else {})


def parts_of(texts: list[str]) -> list[str]:
    """About 20 kB each, as documents are: tokenizers trains on several threads only where there are several texts."""
    return [text[at : at + 20_000] for text in texts for at in range(0, len(text), 20_000)]


def timed(session: report.Session, functions: dict[str, Callable[..., Any]], *arguments: Any) -> dict[str, Times]:
    at_least = 3 if session.options.quick else 7
    return timing.compare(functions, [arguments], torch.device("cpu"), session.seconds, at_least)


def add_row(session: report.Session, shape: str, times: dict[str, Times], nbytes: int, goals: dict[str, float]) -> None:
    goals = {} if session.options.quick else {name: goal for name, goal in goals.items() if name in times}
    session.add(report.Row(shape=shape, times=times, work=nbytes, work_unit="MB/s", goals=goals))


def check(what: str, results: dict[str, list]) -> None:
    for name, result in results.items():
        if result != results["ours"]:
            raise report.WrongResult(f"{what}: ours and {name} differ")


def run(session: report.Session) -> None:
    os.environ.setdefault("RAYON_NUM_THREADS", str(TRAINING_THREADS))  # tokenizers' threads
    size, characters = (2000, 100_000) if session.options.quick else (32_000, 4_000_000)
    texts = {"prose": python_prose()[:characters], "code": code(characters), "scripts": scripts(characters // 4)}
    head = {name: text[: len(text) * 4 // 5] for name, text in texts.items()}
    tail = {name: text[len(text) * 4 // 5 :] for name, text in texts.items()}
    peers = [name for name in PEERS if importlib.util.find_spec(name) is not None]
    missing = [f"{name} is not installed: left out" for name in PEERS if name not in peers]
    note = "; ".join([f"encoding on one thread, training on {TRAINING_THREADS}; MB/s of UTF-8", *missing])
    session.begin("tokenizer", PEERS, unit="ms", note=note)

    documents = parts_of(list(head.values()))
    training = trainers(documents, size, peers)
    trained = {name: function() for name, function in training.items()}
    trained["ours"] = [spelled(token) for token in trained["ours"]]
    check("training", trained)
    nbytes = sum(len(text.encode()) for text in documents)
    add_row(session, f"train {size} on {nbytes / 1e6:.1f} MB", timed(session, training), nbytes, {"tokenizers": 1.0})

    functions = encoders(*_C.train_bpe(documents, size, PATTERN), peers)
    to_list = functions | {"ours": lambda text: functions["ours"](text).tolist()}
    for name, text in tail.items():
        check(name, {peer: list(function(text)) for peer, function in functions.items()})
        add_row(session, f"encode {name}", timed(session, functions, text), len(text.encode()), GOALS)
    text = tail["prose"]
    add_row(session, "encode prose to a list", timed(session, to_list, text), len(text.encode()), GOALS)
    text = "^" * (10_000 if session.options.quick else 1_000_000)
    check("one character over and over", {peer: list(function(text)) for peer, function in functions.items()})
    add_row(session, f"encode {len(text)} of ^", timed(session, functions, text), len(text), {})


if __name__ == "__main__":
    report.main("tokenizer")
