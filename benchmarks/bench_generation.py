"""Prefill and decode beside torch: `python benchmarks/bench_generation.py [--quick] [--json FILE]`.

Models with random weights, batch 1, greedy, through the loop that `minigpt generate` runs. The peer is the same model
on torch's ops. (The goals for GPT-2 124M are held against llama.cpp and CTranslate2, which this command does not run.)
"""

import copy
from time import perf_counter

import report
import torch
from timing import Times
from torch import Tensor

import minigpt_ext as mg
from minigpt_ext.generation import stream


@torch.no_grad()
def check(name: str, model: mg.GPT, ids: Tensor) -> dict[str, float]:
    """Errors of the logits after the prompt, and after one token more that went through the cache."""

    def logits(model: mg.GPT) -> list[Tensor]:
        cache = model.new_cache(1)
        return [model.head(model.trunk(part, cache)[:, -1]) for part in (ids[:, :-1], ids[:, -1:])]

    results = {"ours": logits(model)}
    with mg.backend("torch"):
        return report.worst_errors(name, results | {"torch": logits(model)}, logits(copy.deepcopy(model).double()))


def generate(model: mg.GPT, ids: Tensor, new_tokens: int, backend: str) -> tuple[float, float]:
    """Seconds until the first token, and seconds a token after it."""
    with mg.backend(backend):
        began = perf_counter()
        steps = stream(model, ids, 1 + new_tokens, temperature=0, weights="model")
        int(next(steps))  # waits for a GPU
        first = perf_counter()
        for new in steps:
            int(new)
        return first - began, (perf_counter() - first) / new_tokens


def prefill_flops(model: mg.GPT, prompt: int) -> float:
    """Of a prompt, batch 1: 2 a weight and token, and causal attention's 4 L C T / 2 a token; the head for the last."""
    config = model.config
    head, positions = model.wte.weight.numel(), model.wpe.weight.numel()
    weights = model.num_parameters() - head - positions
    return prompt * (2 * weights + 2 * config.n_layer * config.n_embd * prompt) + 2 * head


def decode_bytes(model: mg.GPT, cached_tokens: float) -> float:
    """Of a token, batch 1: every weight is read once (wpe: one row), and the keys and values of the tokens so far."""
    config = model.config
    weights = model.num_parameters() - model.wpe.weight.numel()
    return (weights + 2 * config.n_layer * config.n_embd * cached_tokens) * model.wte.weight.itemsize


def measure(session: report.Session, preset: str, prompt: int, new_tokens: int, rounds: int) -> None:
    options = session.options
    model = mg.GPT(mg.GPTConfig.preset(preset), seed=1).to(options.device, options.dtype).eval()
    config = model.config
    ids = torch.randint(config.vocab_size, (1, prompt), device=options.device)
    errors = check(preset, model, ids)

    backends = [("ours", "kernels"), ("torch", "torch")]
    samples: dict[str, list[tuple[float, float]]] = {"ours": [], "torch": []}
    for number in range(1 + rounds):
        for name, backend in backends:
            sample = generate(model, ids, new_tokens, backend)
            if number > 0:  # the first is to warm up
                samples[name].append(sample)
        backends.reverse()
    prefill, decode = (
        {name: Times.of([sample[part] for sample in taken]) for name, taken in samples.items()} for part in (0, 1)
    )

    flops, moved = prefill_flops(model, prompt), decode_bytes(model, prompt + new_tokens / 2)
    is_goal = preset == "gpt2" and options.device.type == "cpu" and options.dtype == torch.bfloat16
    for name, times, tokens, ceiling, work in (
        (f"{preset} prefill {prompt}", prefill, prompt, "gemm", flops),
        (f"{preset} decode {new_tokens} after {prompt}", decode, 1, "read", moved),
    ):
        row = report.Row(
            shape=name,
            times=times,
            work=tokens,
            work_unit="tokens/s",
            ceiling=ceiling,
            share=work / times["ours"].median / session.ceilings[ceiling],
            share_goal=0.9 if is_goal and ceiling == "read" else None,
            errors=errors,
        )
        session.add(row)


def run(session: report.Session) -> None:
    note = (
        "batch 1, greedy; ms: prefill a prompt, decode a token; small models stay in the cache, which can pass `read`"
    )
    session.begin("generation", ["torch"], unit="ms", note=note)
    if session.options.quick:
        return measure(session, "tiny", prompt=64, new_tokens=16, rounds=3)
    for preset in ("tiny", "small", "medium"):
        measure(session, preset, prompt=128, new_tokens=64, rounds=10)
    measure(session, "gpt2", prompt=256, new_tokens=32, rounds=4)


if __name__ == "__main__":
    report.main("generation")
