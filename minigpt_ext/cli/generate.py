"""`minigpt generate`: a trained model continues a prompt, and the text appears as it is made."""

import io
import os
import secrets
import sys
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer

from minigpt_ext.cli.errors import UserError
from minigpt_ext.decoder import CACHE_DTYPES, Decoder, perplexity
from minigpt_ext.generation import stream
from minigpt_ext.generation.engine import WORTH_PACKING, reader_of
from minigpt_ext.interop.ends import end_ids
from minigpt_ext.interop.families import read_config
from minigpt_ext.interop.pretrained import locate
from minigpt_ext.model import GPT, KVCache
from minigpt_ext.tokenizer import StreamDecoder, Tokenizer, load_tokenizer
from minigpt_ext.tokenizer.chat import ChatTemplate
from minigpt_ext.training.recipe import resolve_device

MIB = 2**20
INTERRUPTED = 130  # the exit status a shell gives to a command that Ctrl-C ended
USUAL_TEMPERATURE = 0.8  # a small model drawn at 1.0 strays


class DeviceName(str, Enum):
    """What --device takes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class WeightFormat(str, Enum):
    """What --weights takes."""

    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"
    int4 = "int4"


class CacheFormat(str, Enum):
    """What --cache takes."""

    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"


def generate(
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="The run directory that `minigpt train` wrote, a Hugging Face directory, or OWNER/NAME on the hub.",
        ),
    ],
    prompt: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="What the text begins with. Without one it starts as after a newline (or after the tokenizer's bos "
            "where it puts one in front), or after id 0 where the vocabulary has no newline.",
        ),
    ] = "",
    chat: Annotated[
        str | None,
        typer.Option(
            metavar="MESSAGE",
            help="In place of --prompt: what a user says, put to the model by its chat template. Special tokens in it "
            "are text. The answer alone is printed.",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="MESSAGE", help="With --chat: the system's message.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="How many tokens to add.")] = 500,
    temperature: Annotated[
        float, typer.Option(min=0.0, metavar="T", help="Below 1 is safer, above 1 bolder; 0 is the same as --greedy.")
    ] = USUAL_TEMPERATURE,
    top_k: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Choose among the K likeliest tokens only.")
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always take the likeliest token.")] = False,
    seed: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="The same seed gives the same text again; left out, each run differs."),
    ] = None,
    device: Annotated[
        DeviceName, typer.Option(help="Where the model runs; auto takes a GPU if there is one.")
    ] = DeviceName.auto,
    weights: Annotated[
        WeightFormat | None,
        typer.Option(
            help="On a CPU, how the decode engine keeps the weights: fp32, the model's own numbers, by default; bf16, "
            "int8 and int4 take less memory and time and are less exact. Left out, the engine serves 16 tokens and "
            "more."
        ),
    ] = None,
    cache_format: Annotated[
        CacheFormat | None,
        typer.Option(
            "--cache",
            help="On a CPU, how the keys and values of the tokens so far are kept: by default fp32 with fp32 weights "
            "and bf16 with others; bf16 takes half the memory of fp32, int8 little over a quarter, and both less time "
            "where the context is long.",
        ),
    ] = None,
    text_file: Annotated[
        Path | None,
        typer.Option(
            "--perplexity",
            metavar="FILE",
            help="On a CPU: also tell, on standard error, the model's perplexity on this text, and what --weights "
            "and --cache add to it.",
        ),
    ] = None,
) -> None:
    """Continue a prompt with a trained model.

    The prompt is read in one pass (prefill), then each token costs one step through the key/value cache (decode). The
    text goes to standard output as it is made, and nothing else does; the timings go to standard error.

    When the model's context (block_size) is full, its last block_size // 2 tokens are read anew and the text goes on.
    Of a prompt longer than the context, the end is read. The text ends before that where the model draws a token that
    ends texts: the tokenizer's, or one that generation_config.json names.
    """
    if chat is not None and prompt:
        raise UserError("--chat and --prompt both say what the model reads: give one of them, not both")
    if system is not None and chat is None:
        raise UserError("--system goes with --chat: it is the message before the user's")
    if greedy and temperature != USUAL_TEMPERATURE:
        raise UserError("--greedy takes the likeliest token and --temperature draws one: give one of them, not both")
    if greedy and top_k is not None:
        raise UserError("--greedy takes the likeliest token and --top-k draws among K: give one of them, not both")
    if seed is None:
        seed = secrets.randbits(32)  # torch's default generator starts every process with the same seed
    try:
        place = resolve_device(device.value)
        directory = locate(model)
        read_config(directory)  # of what is no model at all, that is said, and not that it has no tokenizer
        tokenizer = _tokenizer_of(directory)
        gpt = GPT.from_pretrained(directory, device=place)
        if tokenizer.vocab_size > gpt.config.vocab_size:  # fewer are fine: many models round their vocabulary up
            raise ValueError(
                f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens and the model {gpt.config.vocab_size}"
            )
        prompt_ids = _prompt_ids(tokenizer, prompt) if chat is None else _chat_ids(directory, tokenizer, chat, system)
        ids = torch.tensor([prompt_ids], device=place)
        ends = {tokenizer.eos_id, *end_ids(directory)}
        wanted = max_new_tokens if text_file is None and cache_format is None else max(max_new_tokens, WORTH_PACKING)
        reader = reader_of(gpt, weights and weights.value, wanted)
        dtype = cache_format and CACHE_DTYPES[cache_format.value]
        if text_file is not None:
            typer.echo(_perplexities(gpt, reader, tokenizer, text_file, dtype), err=True)
        del gpt  # where a decoder reads, its packed copy is all that is needed
        max_tokens = min(ids.shape[1] + max_new_tokens, reader.config.block_size)
        if isinstance(reader, Decoder):
            cache = reader.new_cache(1, max_tokens, dtype=dtype)
        elif dtype is None:
            cache = reader.new_cache(1, max_tokens)
        else:
            raise ValueError("--cache is for the decode engine: it needs a CPU, and the kernels as backend")
        steps = stream(
            reader,
            ids,
            max_new_tokens,
            temperature=0.0 if greedy else temperature,
            top_k=top_k,
            seed=seed,
            cache=cache,
            n_ids=tokenizer.vocab_size,
            weights=None if isinstance(reader, Decoder) else "model",
        )
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error

    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without a letter for it shows ? and goes on
        sys.stdout.reconfigure(errors="replace")
    text = tokenizer.stream_decoder()
    for prompt_id in ids[0].tolist():
        text.push(prompt_id)
    times: list[float] = []
    began = time.perf_counter()
    interrupted = False
    try:
        try:
            _write(prompt)
            for new_id in _timed(steps, times):
                if new_id in ends:
                    break
                _write(_text_of(new_id, text))
        except KeyboardInterrupt:
            interrupted = True
        _write(text.finish() + "\n")
    except BrokenPipeError:  # the reader has seen enough; what is left in the buffer must not be tried again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    typer.echo(_speed(ids.shape[1], began, times), err=True)
    typer.echo(_memory(reader, cache) + ("" if greedy or temperature == 0 else f"; seed {seed}"), err=True)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _tokenizer_of(directory: Path) -> Tokenizer:
    try:
        return load_tokenizer(directory)
    except FileNotFoundError as error:
        raise ValueError(
            f"{error}. The weights alone can be loaded (GPT.from_pretrained), but text needs it"
        ) from error


def _prompt_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    if prompt:
        try:
            return tokenizer.encode_prompt(prompt)
        except ValueError as error:
            raise ValueError(f"--prompt: {str(error).removeprefix('text: ')}") from error
    return tokenizer.start_ids()


def _chat_ids(directory: Path, tokenizer: Tokenizer, message: str, system: str | None) -> list[int]:
    try:
        template = ChatTemplate.load(directory)
    except FileNotFoundError as error:
        raise ValueError(f"--chat: {error}; use --prompt") from error
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": message})
    try:
        return template.encode(tokenizer, messages, add_generation_prompt=True)
    except ValueError as error:
        raise ValueError(f"--chat: {error}") from error


def _text_of(new_id: int, text: StreamDecoder) -> str:
    """What the id adds to the text, which is nothing yet where a character is not whole."""
    try:
        return text.push(new_id)
    except ValueError:  # a hole in the vocabulary: no token, but a model that was trained little may draw it
        return "\ufffd"


def _timed(steps: Iterator[torch.Tensor], times: list[float]) -> Iterator[int]:
    for new in steps:
        new_id = int(new)  # waits for the device
        times.append(time.perf_counter())
        yield new_id


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _speed(n_prompt: int, began: float, times: list[float]) -> str:
    text = f"{n_prompt} prompt tokens, {len(times)} new"
    if times:
        text += f"; first token after {1e3 * (times[0] - began):.1f} ms"
    if len(times) > 1:
        text += f", then {(len(times) - 1) / (times[-1] - times[0]):.0f} tokens/s"
    return text


def _memory(reader: GPT | Decoder, cache: KVCache) -> str:
    cached = f"cache {cache.nbytes / MIB:.1f} MiB"
    if isinstance(reader, Decoder):
        sizes = f"weights {reader.weight_bytes / MIB:.1f} MiB, buffers {reader.buffer_bytes / MIB:.1f} MiB, {cached}"
        return f"{sizes} in {_name_of(cache.k[0].dtype)}, {reader.weights} on cpu"
    weights = sum(parameter.nbytes for parameter in reader.parameters())
    weight = reader.wte.weight
    dtype = str(weight.dtype).removeprefix("torch.")
    return f"weights {weights / MIB:.1f} MiB, {cached}, {dtype} on {weight.device.type}"


def _perplexities(
    gpt: GPT, reader: GPT | Decoder, tokenizer: Tokenizer, path: Path, cache_dtype: torch.dtype | None
) -> str:
    """What the model thinks of a text, and what the decoder's formats cost of that."""
    if not isinstance(reader, Decoder):
        raise ValueError("--perplexity is for the decode engine: it needs a CPU, and the kernels as backend")
    try:
        ids = torch.tensor(tokenizer.encode(path.read_text(encoding="utf-8")))
    except UnicodeDecodeError as error:
        raise ValueError(f"--perplexity: {path} is not UTF-8: {error}") from error
    except OSError as error:
        raise ValueError(f"--perplexity: {path}: {error.strerror}") from error
    except ValueError as error:  # a character that the tokenizer does not have
        raise ValueError(f"--perplexity: {path}: {str(error).removeprefix('text: ')}") from error
    if len(ids) < 2:
        raise ValueError(f"--perplexity: {path}: two tokens are the least, and it has {len(ids)}")
    cached = "" if cache_dtype is None else f" and a cache in {_name_of(cache_dtype)}"
    told = f"perplexity {{:.3f}} on {len(ids) - 1} tokens of {path}, {reader.weights}{cached}"
    own = perplexity(reader, ids, cache_dtype=cache_dtype)
    if reader.weights == "fp32" and cache_dtype in (None, torch.float32):
        return told.format(own)
    exact = perplexity(Decoder(gpt), ids)
    cost = round(own / exact - 1, 4) + 0.0  # of a cost that rounds to nothing the sign would be left
    return f"{told.format(own)}; {exact:.3f} with fp32, {cost:+.2%}"


def _name_of(cache_dtype: torch.dtype) -> str:
    return next(name for name, dtype in CACHE_DTYPES.items() if dtype == cache_dtype)
