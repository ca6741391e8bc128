"""Other engines that decode a GPT-2 on a CPU: the same weights, the same prompt, the same threads, greedy.

A peer is made once and asked often: `peer(prompt, n)` returns (seconds until the first new token, seconds a token after
it, the tokens). Prompts are lists of ids; nothing is kept from one call to the next.
"""

import contextlib
import ctypes
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import torch

from minigpt_ext import GPT, GPTConfig
from minigpt_ext.interop.export_gguf import metadata_of, tensors_of
from minigpt_ext.interop.source import Source

Answer = tuple[float, float, list[int]]
Peer = Callable[[list[int], int], Answer]
# By our name of the weights: what each engine calls the nearest that it has; the head is in it too.
LLAMA_CPP = {"fp32": "F32", "bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
CTRANSLATE2 = {"fp32": "float32", "int8": "int8"}
TRANSFORMERS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def missing() -> dict[str, str]:
    """The engines that are not installed, and what installs them."""
    needed = {"transformers": "transformers", "ctranslate2": "ctranslate2", "llama.cpp": "llama_cpp"}
    installs = {"llama.cpp": "llama-cpp-python"}
    return {
        name: f"pip install {installs.get(name, name)}"
        for name, module in needed.items()
        if importlib.util.find_spec(module) is None
    }


def random_gpt2(config: GPTConfig, folder: Path) -> GPT:
    """A randomly initialised GPT-2 of transformers, saved in `folder`, as our model."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.block_size,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    theirs.save_pretrained(folder)
    return GPT.from_pretrained(folder).eval()


def timed(step: Callable[[list[int]], int], prompt: list[int], n: int) -> Answer:
    """Prefill and then feed each token back."""
    began = perf_counter()
    tokens = [step(prompt)]
    first = perf_counter()
    for _ in range(n):
        tokens.append(step(tokens[-1:]))
    return first - began, (perf_counter() - first) / max(n, 1), tokens


def transformers_peer(folder: Path, weights: str) -> Peer:
    import transformers

    model = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=TRANSFORMERS[weights]).eval()

    @torch.inference_mode()
    def answer(prompt: list[int], n: int) -> Answer:
        cache = transformers.DynamicCache(config=model.config)

        def step(ids: list[int]) -> int:
            output = model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            return int(output.logits[0, -1].argmax())

        return timed(step, prompt, n)

    return answer


def ctranslate2_peer(folder: Path, weights: str, threads: int) -> Peer:
    import ctranslate2
    import transformers
    from ctranslate2.converters.transformers import GPT2Loader

    converted = folder / f"ctranslate2-{weights}"
    if not converted.exists():
        model = transformers.GPT2LMHeadModel.from_pretrained(folder)
        with torch.no_grad():
            spec = GPT2Loader().get_model_spec(model)
        words = [str(id) for id in range(model.config.vocab_size)]
        spec.register_vocabulary(words)
        spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = words[-1]
        spec.validate()
        spec.optimize(quantization=CTRANSLATE2[weights])
        converted.mkdir()
        spec.save(str(converted))
    generator = ctranslate2.Generator(
        str(converted), device="cpu", compute_type=CTRANSLATE2[weights], inter_threads=1, intra_threads=threads
    )

    def answer(prompt: list[int], n: int) -> Answer:
        began = perf_counter()
        times, tokens = [], []
        options = dict(max_length=n + 1, sampling_topk=1, end_token=[])
        for step in generator.generate_tokens([str(id) for id in prompt], **options):
            times.append(perf_counter())
            tokens.append(step.token_id)
        return times[0] - began, (times[-1] - times[0]) / max(len(times) - 1, 1), tokens

    return answer


def llama_cpp_peer(folder: Path, model: GPT, weights: str, threads: int) -> Peer:
    import llama_cpp as lib

    path = folder / f"{weights}.gguf"
    if not path.exists():
        write_gguf(path, model, LLAMA_CPP[weights])
    # What it prints while loading goes to the process's own standard error; the objects live as long as the process.
    with _quiet():
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        loaded = lib.llama_model_load_from_file(str(path).encode(), params)
        settings = lib.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = model.config.block_size
        settings.n_threads = settings.n_threads_batch = threads
        context = lib.llama_init_from_model(loaded, settings)
    if not loaded or not context:
        raise RuntimeError(f"llama.cpp did not load {path}")
    vocab_size = model.config.vocab_size

    def answer(prompt: list[int], n: int) -> Answer:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)

        def step(ids: list[int]) -> int:
            tokens = (lib.llama_token * len(ids))(*ids)
            if lib.llama_decode(context, lib.llama_batch_get_one(tokens, len(ids))):
                raise RuntimeError("llama.cpp: llama_decode failed")
            logits = lib.llama_get_logits_ith(context, -1)
            return int(torch.frombuffer(_floats(logits, vocab_size), dtype=torch.float32).argmax())

        return timed(step, prompt, n)

    return answer


def write_gguf(path: Path, model: GPT, quantization: str) -> None:
    """The model with its matrices in one of llama.cpp's types, by the `gguf` package; it needs no words here."""
    import gguf

    kind = gguf.GGMLQuantizationType[quantization]
    writer = gguf.GGUFWriter(path, "gpt2")
    for key, value in metadata_of(model.config, "gpt2").items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    writer.add_tokenizer_model("no_vocab")
    for tensor in tensors_of(Source(path.parent, model), "gpt2"):
        values = tensor.values().detach().float().contiguous().numpy()
        wanted = kind if values.ndim == 2 and tensor.name != "position_embd.weight" else gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _floats(pointer: "ctypes._Pointer", n: int) -> ctypes.Array:
    return ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float * n)).contents


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
