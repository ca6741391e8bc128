"""The decode engine beside other engines: `minigpt bench decoding [--quick] [--json FILE]`.

A GPT-2 with random weights, batch 1, greedy; the same prompt, token count and threads for all. Weights in fp32, bf16,
int8 and int4, each beside the nearest that transformers, CTranslate2 and llama.cpp have. Engines that are not installed
are named and left out. In fp32 all must choose the same tokens. Decoding is measured early and late in the context,
where a token reads a longer cache and nothing else may have grown, and the memory of ours is told. The share of the
read bandwidth is that of a plain reader that takes its turn among the engines: memory's speed changes by the minute.
"""

import dataclasses
import tempfile
from collections.abc import Container
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import decoding_peers as peers
import machine
import report
import torch
from timing import Times

import minigpt_ext as mg
from minigpt_ext.decoder import FORMATS
from minigpt_ext.generation import stream

# Ratios to llama.cpp, and the share of the machine's read bandwidth, for GPT-2 124M.
GOALS = {"bf16": 1.1, "int8": 1.3, "int4": 1.5}
SHARE_GOALS = {"bf16": 0.9}
REST = 0.05  # seconds between two engines: the last one's threads go on spinning for some milliseconds


def our_peer(decoder: mg.Decoder) -> peers.Peer:
    def answer(prompt: list[int], n: int) -> peers.Answer:
        steps = stream(decoder, torch.tensor([prompt]), 1 + n, temperature=0)
        return peers.timed(lambda _: int(next(steps)), prompt, n)

    return answer


def contenders(folder: Path, model: mg.GPT, decoder: mg.Decoder, absent: Container[str]) -> dict[str, peers.Peer]:
    threads, weights = decoder.threads, decoder.weights
    made = {"ours": our_peer(decoder)}
    if "llama.cpp" not in absent:
        made["llama.cpp"] = peers.llama_cpp_peer(folder, model, weights, threads)
    if "ctranslate2" not in absent and weights in peers.CTRANSLATE2:
        made["ctranslate2"] = peers.ctranslate2_peer(folder, weights, threads)
    if weights in peers.TRANSFORMERS:
        made["transformers"] = peers.transformers_peer(folder, weights)
    return made


class Reader:
    """Reads memory far larger than any cache, and keeps the bytes/s of each time."""

    def __init__(self, nbytes: int) -> None:
        self.memory = torch.ones(nbytes // 4)
        self.rates: list[float] = []

    def __call__(self) -> None:
        for _ in range(3):
            began = perf_counter()
            self.memory.sum()
            self.rates.append(self.memory.nbytes / (perf_counter() - began))


def ask(
    made: dict[str, peers.Peer], prompt: list[int], n: int, rounds: int, reader: Reader
) -> tuple[dict[str, Times], dict[str, Times], dict[str, list[int]], float]:
    """Prefill and seconds a token of each, in turns; the tokens they chose; and the bytes/s read meanwhile."""
    first: dict[str, list[float]] = {name: [] for name in made}
    after: dict[str, list[float]] = {name: [] for name in made}
    tokens = {}
    order = list(made)
    reader.rates.clear()
    for number in range(1 + rounds):
        for name in order:
            sleep(REST)
            prefill, decode, tokens[name] = made[name](prompt, n)
            if number > 0:  # the first is to warm up
                first[name].append(prefill)
                after[name].append(decode)
        sleep(REST)
        reader()
        order.reverse()
    prefill, decode = ({name: Times.of(taken) for name, taken in samples.items()} for samples in (first, after))
    return prefill, decode, tokens, median(reader.rates)


def cache_bytes(decoder: mg.Decoder, tokens: float) -> float:
    """Of a cache of so many tokens, all of which a step reads."""
    return decoder.new_cache(1, 64).nbytes / 64 * tokens  # blocks hold 64 tokens


def memory_line(decoder: mg.Decoder) -> str:
    parts = [decoder.weight_bytes, decoder.buffer_bytes, decoder.new_cache(1).nbytes]
    weights, buffers, cache, all_of_it = (f"{size / machine.MIB:.1f} MiB" for size in (*parts, sum(parts)))
    tokens = f"{decoder.config.block_size:,} tokens"
    return f"memory of ours: weights {weights}, buffers {buffers}, cache of {tokens} {cache}: {all_of_it}"


def measure(session: report.Session, name: str, config: mg.GPTConfig, absent: Container[str], reader: Reader) -> None:
    quick = session.options.quick
    rounds, new_tokens, long = (2, 8, 24) if quick else (5, 128, min(256, config.block_size - 1))
    late = config.block_size - new_tokens
    has_goals = name == "gpt2" and not quick
    with tempfile.TemporaryDirectory() as folder:
        model = peers.random_gpt2(config, Path(folder))
        prompt = torch.randint(config.vocab_size, (config.block_size,)).tolist()
        for weights in FORMATS:
            decoder = mg.Decoder(model, weights)
            made = contenders(Path(folder), model, decoder, absent)
            for start in (32, late):
                _, decode, tokens, rate = ask(made, prompt[:start], new_tokens, rounds if start == 32 else 2, reader)
                if weights == "fp32" and (wrong := sorted(key for key in tokens if tokens[key] != tokens["ours"])):
                    raise report.WrongResult(f"decoding {name}: {', '.join(wrong)} chose other tokens than ours")
                read = decoder.weight_bytes + cache_bytes(decoder, start + new_tokens / 2)
                goals = has_goals and start == 32
                session.add(
                    report.Row(
                        shape=f"{name} {weights} decode {new_tokens} after {start}",
                        times=decode,
                        work=1,
                        work_unit="tokens/s",
                        ceiling="read",
                        share=read / decode["ours"].median / rate,
                        goals={"llama.cpp": GOALS[weights]} if goals and weights in GOALS else {},
                        share_goal=SHARE_GOALS.get(weights) if goals else None,
                    )
                )
            prefill, *_ = ask(made, prompt[:long], 1, rounds, reader)
            session.add(
                report.Row(shape=f"{name} {weights} prefill {long}", times=prefill, work=long, work_unit="tokens/s")
            )
            print(memory_line(decoder), flush=True)
            del decoder, made


def run(session: report.Session) -> None:
    absent = peers.missing()
    if "transformers" in absent:  # which makes the models
        print(f"\ndecoding: left out, transformers is not installed ({absent['transformers']})")
        return
    told = [f"{name} is not installed and left out ({how})" for name, how in absent.items()]
    note = "batch 1, greedy: decode a token, prefill a prompt; a small model stays in the cache and can pass `read`"
    rivals = [name for name in ("llama.cpp", "ctranslate2", "transformers") if name not in absent]
    session.begin("decoding", rivals, unit="us" if session.options.quick else "ms", note="\n".join([*told, note]))
    reader = Reader(machine.MIB if session.options.quick else machine.GIB // 2)
    if session.options.quick:
        config = mg.GPTConfig(vocab_size=256, block_size=64, n_layer=2, n_head=2, n_embd=64, activation="gelu_tanh")
        return measure(session, "2 layers of 64", config, absent, reader)
    for preset in ("medium", "gpt2"):
        measure(
            session, preset, dataclasses.replace(mg.GPTConfig.preset(preset), activation="gelu_tanh"), absent, reader
        )


if __name__ == "__main__":
    report.main("decoding")
