"""`minigpt inspect`: the tensors of a model's files, and what becomes of each here."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from typing import Annotated

import typer

from minigpt_ext.cli.errors import UserError
from minigpt_ext.interop.hub import resolve_model
from minigpt_ext.interop.inspect import Inspection
from minigpt_ext.interop.inspect import inspect as look
from minigpt_ext.interop.safetensors_header import shown
from minigpt_ext.model import GPTConfig

SIZES = ("vocab_size", "block_size", "n_layer", "n_head", "n_kv_head", "head_dim", "n_embd", "mlp_width")
MAX_PROBLEMS = 20
_NUMBER = re.compile(r"(?<![^.])[0-9]{1,9}(?![^.])")  # a part of a dotted name that is a number: of a layer
_COLUMNS = {"tensor": "<", "number": ">", "shape": ">", "dtype": "<", "bytes": ">", "file": "<", "becomes": "<"}


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="DIR|FILE|ID",
            help="A run directory, a Hugging Face directory, a safetensors file, an index of shards, or a hub id.",
        ),
    ],
    every: Annotated[bool, typer.Option("--all", help="A row for every tensor, not one for all layers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as one JSON object.")] = False,
) -> None:
    """Show what is in a model's files: tensors, shapes, dtypes, bytes, parameters; and what becomes of each here.

    Only headers and config.json are read, never a weight, so that a file of any size is shown at once. {0-11} in a name
    stands for the layers 0 to 11, and {n} in what it becomes for the same layer. [a:b] is a part of our rows: queries,
    keys and values lie in one matrix here. What is known not to be a parameter (GPT-2's causal masks) is not counted.

    What keeps a model from being loaded is listed at the end; the exit status is 0 all the same.
    """
    try:
        found = look(resolve_model(model))
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else "\n".join(_text(found, every)))


def _text(found: Inspection, every: bool) -> Iterator[str]:
    n_bytes = sum(info.nbytes for info in found.tensors.values())
    constants = sum(found.tensors[name].numel for name in found.constants)
    kind = f"{found.model_type}, " if found.family else ""
    if found.model_type != found.family:
        kind = f"{found.model_type}, of the {found.family} family, "
    numbers = f"{found.num_parameters:,} {'parameters' if found.becomes else 'numbers'}"
    yield f"{found.path}: {kind}{numbers}; {len(found.tensors)} tensors, {n_bytes:,} bytes"
    if found.constants:
        yield f"not counted: {constants:,} numbers of {len(found.constants)} tensors that are no parameters"
    if found.config:
        yield "sizes: " + ", ".join(f"{name} {found.config[name]}" for name in SIZES)
        yield "otherwise: " + (", ".join(_choices(found)) or "as GPT-2: LayerNorm, GELU, learned positions, biases")
    for key, value in found.metadata.items():
        yield f"metadata: {_printable(key)}: {_printable(value)}"
    yield ""
    yield from _aligned(
        ("file", "tensors", "bytes"), [(name, str(count), f"{size:,}") for name, size, count in found.files], "<>>"
    )
    yield ""
    yield from _aligned(*_table(found, every))
    yield ""
    if found.problems:
        yield "This cannot be loaded here:"
        yield from (f"  {problem}" for problem in found.problems[:MAX_PROBLEMS])
        if len(found.problems) > MAX_PROBLEMS:
            yield f"  and {len(found.problems) - MAX_PROBLEMS} more"
    elif found.becomes:
        yield "Every tensor has its place here, and every parameter its tensor."
    else:
        yield "Without the config.json of a model beside it, what becomes of these tensors cannot be told."


def _choices(found: Inspection) -> Iterator[str]:
    """The fields of the config, sizes aside, that are not as by default."""
    for field in fields(GPTConfig):
        value = found.config[field.name]
        if field.name not in SIZES and field.default is not MISSING and value != field.default:
            yield f"{field.name} {value}"


def _table(found: Inspection, every: bool) -> tuple[list[str], list[tuple[str, ...]], str]:
    """Headings, cells and alignments: a row for the tensors that differ in the number of their layer alone."""
    groups: dict[tuple, list[str]] = {}
    for name, info in found.tensors.items():
        layer = None if every else _NUMBER.search(name)
        kind = (name[: layer.start()], name[layer.end() :]) if layer else name
        groups.setdefault((kind, _becomes(found, name, layer), info.shape, info.dtype), []).append(name)
    rows = [_cells(found, names, every) for names in groups.values()]
    used = [heading for heading in _COLUMNS if any(row[heading] for row in rows)]
    return used, [tuple(row[heading] for heading in used) for row in rows], "".join(_COLUMNS[h] for h in used)


def _becomes(found: Inspection, name: str, layer: re.Match[str] | None) -> str:
    """What becomes of a tensor; of a layer's, with {n} in place of its number."""
    if name in found.constants:
        return f"({found.constants[name]})"
    becomes = found.becomes.get(name, "?" if found.becomes else "")
    return re.sub(rf"\b{layer[0]}\b", "{n}", becomes, count=1) if layer else becomes


def _cells(found: Inspection, names: list[str], every: bool) -> dict[str, str]:
    infos = [found.tensors[name] for name in names]
    name, layer = names[0], None
    if len(names) > 1:
        layer = _NUMBER.search(name)
        layers = _ranges([int(_NUMBER.search(other)[0]) for other in names])
        name = f"{name[: layer.start()]}{{{layers}}}{name[layer.end() :]}"
    return {
        "tensor": _printable(name),
        "number": "" if every else str(len(names)),
        "shape": " x ".join(map(str, infos[0].shape)) or "one number",
        "dtype": infos[0].dtype,
        "bytes": f"{sum(info.nbytes for info in infos):,}",
        "file": found.file_of[names[0]] if every and len(found.files) > 1 else "",
        "becomes": _becomes(found, names[0], layer),
    }


def _aligned(headings: Sequence[str], rows: Sequence[Sequence[str]], alignments: str) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for line in (headings, *rows):
        cells = (f"{cell:{to}{width}}" for cell, to, width in zip(line, alignments, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as 0-2,5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _printable(text: str) -> str:
    return text if text.isprintable() and len(text) <= 100 else shown(text)
