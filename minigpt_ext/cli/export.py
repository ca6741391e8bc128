"""`minigpt export`: a model for other programs: transformers, vLLM, llama.cpp."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer

from minigpt_ext.cli.errors import UserError
from minigpt_ext.interop.export_gguf import export_gguf
from minigpt_ext.interop.export_hf import export_hf
from minigpt_ext.interop.source import Source


class FormatName(str, Enum):
    """What --format takes."""

    hf = "hf"
    gguf = "gguf"


class DtypeName(str, Enum):
    """What --dtype takes."""

    f32 = "f32"
    bf16 = "bf16"
    f16 = "f16"


_DTYPES = {DtypeName.f32: torch.float32, DtypeName.bf16: torch.bfloat16, DtypeName.f16: torch.float16}


def export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A run directory, a Hugging Face directory, or OWNER/NAME on the hub."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What to write: a directory for hf, a file for gguf.")],
    format: Annotated[
        FormatName,
        typer.Option(help="hf: a directory for transformers and vLLM; gguf: a file for llama.cpp and its relatives."),
    ] = FormatName.hf,
    dtype: Annotated[
        DtypeName | None,
        typer.Option(help="Of the weights; that of MODEL's files by default. In gguf vectors are f32 in any case."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over what OUT holds.")] = False,
) -> None:
    """Write a model in a form that other programs run.

    The layout is that of GPT-2, Llama, Mistral, Qwen2 or Qwen3, whichever computes the same; a model that none of them
    is (with ALiBi, for example) is refused, and the error says which field stands in the way. In f32 the numbers are
    the same, bit for bit. The tokenizer and the chat template go along.
    """
    try:
        _check_out(out, format, force)
        source = Source.open(model, _DTYPES.get(dtype))
        if source.directory.resolve() in (out.resolve(), *out.resolve().parents) and out.exists():
            raise ValueError(f"OUT is MODEL itself or lies in it, {out}: name another place")
        written = (export_hf if format is FormatName.hf else export_gguf)(source, out)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    width = max(len(_name(file, out)) for file in written)
    typer.echo(f"wrote {out}:" if format is FormatName.hf else "wrote:")
    for file in written:
        typer.echo(f"  {_name(file, out):<{width}}  {_size(file.stat().st_size)}")
    for note in source.notes:
        typer.echo(f"note: {note}")
    typer.echo("run it with:")
    for command in _next(out, format):
        typer.echo(f"  {command}")


def _check_out(out: Path, format: FormatName, force: bool) -> None:
    """Refuse what must not be written over. Raises ValueError."""
    if format is FormatName.gguf:
        if out.is_dir():
            raise ValueError(f"{out} is a directory, and a GGUF is a file: name it, such as {out / 'model.gguf'}")
        if out.exists() and not out.is_file():
            raise ValueError(f"{out} is no ordinary file: name another")
        if out.exists() and not force:
            raise ValueError(f"{out} is there already; --force writes over it")
    elif out.exists():
        if not out.is_dir():
            raise ValueError(f"{out} is a file, and --format hf writes a directory")
        if not force and any(out.iterdir()):
            raise ValueError(f"{out} is not empty; --force writes over the files in it that an export has too")


def _name(file: Path, out: Path) -> str:
    return str(file.relative_to(out)) if file != out else str(file)


def _size(size: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} GB"


def _next(out: Path, format: FormatName) -> list[str]:
    path = shlex.quote(str(out))
    if format is FormatName.gguf:
        return [f"llama-cli -m {path}", f"llama-server -m {path}"]
    answer = f"pipeline('text-generation', {str(out)!r})('The')"
    return [
        f'python -c "from transformers import pipeline; print({answer})"',
        f"vllm serve {path}",
        f"minigpt generate --model {path}",
    ]
