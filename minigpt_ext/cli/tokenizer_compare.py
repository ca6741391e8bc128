"""`minigpt tokenizer compare`: characters, bytes and byte pairs beside each other, for a text and a model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from minigpt_ext.cli.errors import UserError
from minigpt_ext.data import load_corpus
from minigpt_ext.interop.families import family_of, read_config
from minigpt_ext.interop.pretrained import locate
from minigpt_ext.model import GPTConfig
from minigpt_ext.model.config import PRESETS
from minigpt_ext.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer, open_tokenizer
from minigpt_ext.tokenizer import comparison as cost
from minigpt_ext.tokenizer.comparison import TokenizedText

_VOCAB_SIZE = 1024  # of a vocabulary learned on the spot
_BAR = 6  # characters of a full bar


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"

    @property
    def size(self) -> int:
        return 4 if self is Dtype.float32 else 2


def compare(
    text: Annotated[
        str | None, typer.Argument(help="The text; without one, and without --data, standard input is read.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|PATH", help="Text as `minigpt train --data` takes it. Repeatable."),
    ] = None,
    tokenizer: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="A tokenizer's directory or file; repeated, each is a column."),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help=f"Learn a byte-pair vocabulary of N from this text, as {_VOCAB_SIZE:,} without --tokenizer.",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(metavar="MODEL", help="What reads it: a preset, a run, a Hugging Face directory, or a hub id."),
    ] = "gpt2",
    dtype: Annotated[Dtype, typer.Option(help="Of the numbers in the key/value cache.")] = Dtype.bfloat16,
) -> None:
    """Compare tokenizers on a text: how long it gets, and what that costs a model.

    Fewer tokens are fewer steps, a smaller key/value cache, and, since every token looks at all before it, far fewer
    pairs in attention. A larger vocabulary pays for that with embeddings and a wider head.

    \b
    T tokens, V vocabulary, L layers, C width, H heads, H_kv key/value heads, D head dim:
      pairs, text at once      T (T + 1) / 2, for one head of one layer, the whole text as one context
      attention, text at once  4 L H D FLOPs a pair: 2 D for the score, 2 D for the values
      attention, in contexts   the same, the text cut into contexts of block_size tokens;
                               in a layer with a window of w a token sees w at most
      other products           2 T (weights of the layers + V C) FLOPs, V C being the head
      embeddings               V C numbers, twice that with an untied head
      key/value cache          2 L H_kv D T numbers of --dtype, for the whole text
    FLOPs are of one forward pass; training costs three times as many.

    A vocabulary learned from the very text it is judged by looks a little better than it is.
    """
    try:
        if text is not None and data:
            raise ValueError("--data and a text are both given: give one of them")
        config = _config(model)
        given = load_corpus(data).text if data else text if text is not None else _standard_input()
        if not given:
            raise ValueError("the text is empty: there is nothing to compare")
        tokenizers: dict[str, Tokenizer] = {"characters": CharTokenizer.from_text(given), "bytes": ByteTokenizer()}
        for path in tokenizer or ():
            name = Path(path).name
            tokenizers[path if name in ("", *tokenizers) else name] = open_tokenizer(path)
        if vocab_size is not None or not tokenizer:
            tokenizers["learned here"] = BPETokenizer.train(given, vocab_size or _VOCAB_SIZE)
        seen = {name: TokenizedText.of(opened, given) for name, opened in tokenizers.items()}
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    console = Console(markup=False, highlight=False)
    console.print(f"{len(given):,} characters, {len(given.encode()):,} bytes of UTF-8\n", style="bold")
    console.print(_text_table(seen))
    console.print(
        f"\nFor {model} ({config.n_layer} layers, width {config.n_embd}, context {config.block_size:,}):", style="bold"
    )
    console.print(_model_table(seen, config, dtype))


def _text_table(seen: dict[str, TokenizedText]) -> Table:
    table = _table(seen, "the text")
    rows: list[tuple[str, Callable[[TokenizedText], str]]] = [
        ("vocabulary", lambda t: f"{t.vocab_size:,}"),
        ("tokens", lambda t: f"{t.n_tokens:,}"),
        ("tokens a character", lambda t: f"{t.tokens_a_character:.3f}"),
        ("bytes a token", lambda t: f"{t.bytes_a_token:.2f}"),
    ]
    for name, value in rows:
        table.add_row(name, *map(value, seen.values()))
    table.add_section()
    for name, shares in cost.shares(list(seen.values())):
        unit = "byte" if name == "1" else "bytes"
        cells = (f"{cost.bar(share, _BAR):<{_BAR}} {share:4.0%}" if share else "-" for share in shares)
        table.add_row(f"{name} {unit}", *cells)
    return table


def _model_table(seen: dict[str, TokenizedText], config: GPTConfig, dtype: Dtype) -> Table:
    table = _table(seen, "the model")
    rows: list[tuple[str, Callable[[TokenizedText], str]]] = [
        ("characters in a context", lambda t: f"{cost.characters_in_context(t, config):,.0f}"),
        ("pairs, text at once", lambda t: _scaled(cost.attention_pairs(t.n_tokens, t.n_tokens))),
        ("attention, text at once", lambda t: _flop(cost.attention_flops(config, t.n_tokens, t.n_tokens))),
        ("attention, in contexts", lambda t: _flop(cost.attention_flops(config, t.n_tokens, config.block_size))),
        ("other products", lambda t: _flop(cost.matrix_flops(config, t.n_tokens, t.vocab_size))),
        ("embeddings", lambda t: f"{cost.embedding_weights(config, t.vocab_size):,}"),
        (f"key/value cache, {dtype.value}", lambda t: _size(cost.kv_bytes(config, t.n_tokens, dtype.size))),
    ]
    for name, value in rows:
        table.add_row(name, *map(value, seen.values()))
    return table


def _table(seen: dict[str, TokenizedText], corner: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(corner, no_wrap=True)
    for name in seen:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _config(name: str) -> GPTConfig:
    if name in PRESETS:
        return GPTConfig.preset(name)
    try:
        directory = locate(name)
        values = read_config(directory)
    except (ValueError, OSError) as error:
        raise ValueError(f"--model: {error}; or name a preset: {', '.join(PRESETS)}") from error
    try:
        return family_of(values).config_of(values)
    except ValueError as error:
        raise ValueError(f"--model: {directory / 'config.json'}: {error}") from error


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8: {error.reason} at byte offset {error.start}") from None


def _flop(number: float) -> str:
    return f"{_scaled(number)}FLOP"


def _scaled(number: float) -> str:
    """With three digits and a letter: 12.3 M."""
    for letter in ("", "k", "M", "G", "T", "P"):
        if number < 999.5:
            return f"{number:.3g} {letter}"
        number /= 1000
    return f"{number:,.3g} E"


def _size(n_bytes: float) -> str:
    units = ["bytes", "KiB", "MiB", "GiB"]
    while n_bytes >= 1023.5 and len(units) > 1:
        n_bytes /= 1024
        units.pop(0)
    return f"{n_bytes:,.0f} bytes" if units[0] == "bytes" else f"{n_bytes:,.1f} {units[0]}"
