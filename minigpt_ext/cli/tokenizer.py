"""`minigpt tokenizer`: text to ids and back, vocabularies learned from a text, and what the choice costs a model."""

from __future__ import annotations

import re
import shlex
import sys
import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from minigpt_ext.cli.errors import UserError
from minigpt_ext.cli.tokenizer_compare import compare
from minigpt_ext.data import load_corpus
from minigpt_ext.tokenizer import BPETokenizer, Tokenizer, open_tokenizer
from minigpt_ext.tokenizer.hf_directory import FILES

app = typer.Typer(
    help="Text to token ids and back: learn a vocabulary, use one, compare what they cost.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class PatternName(str, Enum):
    """What --pattern takes: `patterns.NAMES`."""

    gpt2 = "gpt2"
    cl100k = "cl100k"
    llama3 = "llama3"
    qwen2 = "qwen2"
    smollm = "smollm"
    none = "none"


TokenizerOption = Annotated[
    str,
    typer.Option(
        metavar="PATH", help="A run directory, a directory of Hugging Face, a tokenizer.json, or byte (a token a byte)."
    ),
]
_SHOWN = 12  # tokens that the closing table shows


@app.command()
def train(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the files go; it must not hold such files already.")],
    vocab_size: Annotated[
        int, typer.Option(metavar="N", help="Tokens in all: 256 bytes, what is learned, and the special ones.")
    ] = 4096,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|PATH",
            help="python (English from Python's own documentation; the default), shakespeare (downloaded once), a "
            "UTF-8 file, or a folder of .txt files. Repeated, the texts are joined.",
        ),
    ] = None,
    pattern: Annotated[
        PatternName,
        typer.Option(
            help="How the text is cut into pieces that no token crosses. gpt2: words with the space before them, "
            "numbers, signs. cl100k, llama3: digits by threes, and 'LL as 'll; qwen2: likewise, every digit alone; "
            "smollm: gpt2 with every digit alone; none: no cuts."
        ),
    ] = PatternName.gpt2,
    special: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOKEN",
            help='A text that is a token of its own, such as "<|endoftext|>", which ends texts. Repeatable.',
        ),
    ] = None,
) -> None:
    """Learn a byte-pair vocabulary from a text.

    Every byte is a token to begin with. Then the two tokens that stand side by side most often become one, again and
    again, until there are N. No text is ever unknown to it.

    DIR gets tokenizer.json and tokenizer_config.json (for transformers and the library tokenizers), and vocab.json with
    merges.txt (as GPT-2 has them). `minigpt train --tokenizer DIR` trains a model on it.
    """
    try:
        _check_free(out)
        corpus = load_corpus(data or ["python"])
        began = time.perf_counter()
        tokenizer = BPETokenizer.train(corpus.text, vocab_size, pattern.value, special or ())
        seconds = time.perf_counter() - began
        _check_free(out)
        paths = tokenizer.save_directory(out)
        ids = tokenizer.encode_to_tensor(corpus.text, special=False)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error

    learned = [token for token in tokenizer.spec.tokens[256:] if token is not None]
    n_bytes = len(corpus.text.encode())
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("learned from", f"{len(corpus.text):,} characters, {n_bytes:,} bytes, in {seconds:.1f} s")
    table.add_row("tokens", f"{tokenizer.vocab_size:,}: {_parts(tokenizer, len(learned))}")
    table.add_row("the text in tokens", f"{len(ids):,}, {n_bytes / max(len(ids), 1):.2f} bytes a token")
    table.add_row("learned first", _listed(learned[:_SHOWN]))
    table.add_row("the longest", _listed(sorted(learned, key=len, reverse=True)[:_SHOWN]))
    table.add_row("files", "\n".join(map(str, paths)))
    console = Console(markup=False, highlight=False)
    console.print(table)
    if tokenizer.vocab_size < vocab_size:
        typer.echo(f"There was nothing left to merge after {tokenizer.vocab_size:,} tokens.")
    source = ["--data", data[0]] if data else []
    commands = [["tokenizer", "compare", *(source or ["--data", "python"])], ["train", *source]]
    typer.echo("Next:")
    for command in commands:
        typer.echo(f"  {shlex.join(['minigpt', *command, '--tokenizer', str(out)])}")


@app.command()
def encode(
    tokenizer: TokenizerOption,
    text: Annotated[str | None, typer.Argument(help="The text; without one, standard input is read.")] = None,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="Read the text from a UTF-8 file.")] = None,
    pieces: Annotated[
        bool,
        typer.Option("--pieces/--ids", help="A line a token, id and text; or only the ids, in one line (default)."),
    ] = False,
    special: Annotated[
        bool,
        typer.Option("--special/--no-special", help="Whether special tokens written in the text count as such."),
    ] = True,
) -> None:
    """Print the ids of a text.

    What `decode` gives back for them is the text, byte for byte. With --pieces a token that is part of a character is
    shown by its bytes.
    """
    try:
        if text is not None and file is not None:
            raise ValueError("--file and a text are both given: give one of them")
        opened = open_tokenizer(tokenizer)
        ids = opened.encode(_text(text, file), special=special)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    if pieces:
        width = len(str(max(ids, default=0)))
        for id in ids:
            typer.echo(f"{id:>{width}}  {_shown(opened.token_bytes(id))}")
    else:
        typer.echo(" ".join(map(str, ids)))


@app.command()
def decode(
    tokenizer: TokenizerOption,
    ids: Annotated[
        list[str] | None,
        typer.Argument(help="Ids, with spaces or commas between; without any, standard input is read."),
    ] = None,
) -> None:
    """Print the text of ids, and nothing else (to a terminal, a line break behind it).

    Bytes that are no UTF-8 are shown as U+FFFD.
    """
    try:
        opened = open_tokenizer(tokenizer)
        words = re.split(r"[\s,]+", " ".join(ids) if ids else sys.stdin.read())
        text = opened.decode([_id(word) for word in words if word])
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    typer.echo(text.encode(), nl=sys.stdout.isatty())


app.command()(compare)


def _check_free(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: {out} is a file, not a folder")
    if present := [name for name in FILES if (out / name).exists()]:
        raise ValueError(f"--out: {out} holds {', '.join(present)} already; choose another folder")


def _text(text: str | None, file: Path | None) -> str:
    if file is not None:
        return load_corpus([str(file)]).text
    if text is not None:
        return text
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8: {error.reason} at byte offset {error.start}") from None


def _id(word: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", word):
        raise ValueError(f"ids: expected integers, got {word!r}")
    return int(word)


def _shown(token: bytes) -> str:
    """A token as one can see it: quoted, and by its bytes where it is no whole characters."""
    try:
        return repr(token.decode())
    except UnicodeDecodeError:
        return repr(token)


def _listed(tokens: list[bytes]) -> str:
    """Tokens with a dot for each space, so that the spaces between them are seen."""
    return "  ".join(_shown(token).strip("'").replace(" ", "\u00b7") for token in tokens)


def _parts(tokenizer: Tokenizer, n_learned: int) -> str:
    n_special = len(tokenizer.special_tokens)
    names = f" ({', '.join(tokenizer.special_tokens)})" if n_special else ""
    return f"256 bytes, {n_learned:,} learned, {n_special} special{names}"
