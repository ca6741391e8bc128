"""`minigpt profile`: where the time of an op, of training or of generation goes."""

import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer

from minigpt_ext.backend import OPS, why_no_kernels
from minigpt_ext.cli.bench import Device, Dtype, find_benchmarks
from minigpt_ext.cli.errors import UserError
from minigpt_ext.model.config import PRESETS
from minigpt_ext.profiling.job import Job, ToolFailed
from minigpt_ext.profiling.tools import TOOLS, default_tool
from minigpt_ext.profiling.tools import profile as profile_with

WHATS = (*OPS, "train", "generate")
_REPEAT = {"train": 3, "generate": 1}
_REPEAT_OP = 10
ToolName = Enum("ToolName", {name: name for name in TOOLS}, type=str)
_TOOLS_HELP = "; ".join(f"{name}: {tool.about}" for name, tool in TOOLS.items())


def profile(
    what: Annotated[str, typer.Argument(metavar="OP|train|generate", help=f"Which of: {', '.join(WHATS)}.")],
    tool: Annotated[
        ToolName | None,
        typer.Option(help=f"{_TOOLS_HELP}. By default torch on a CPU; on a GPU nsys for train and generate, else ncu."),
    ] = None,
    device: Annotated[
        Device | None, typer.Option(help="Where it runs; by default where the tool looks, or a GPU if there is one.")
    ] = None,
    dtype: Annotated[
        Dtype,
        typer.Option(help="Of an op's tensors and of weights that generate; training computes in it by autocast."),
    ] = Dtype.float32,
    repeat: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Calls of an op (10), steps of training (3), texts (1) to look at."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Of an op: a shape of `minigpt bench` or a part of its name, or arguments as B=1,H=12,T=300,D=64,"
            "backward=yes. By default the heaviest that the benchmark has.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small shapes, and ceilings measured in a hurry.")] = False,
    preset: Annotated[
        str | None, typer.Option(help=f"Of the model that trains or generates: {', '.join(PRESETS)}; tiny by default.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, metavar="N", help="Of training; else the preset's.")] = None,
    prompt: Annotated[int | None, typer.Option(min=1, metavar="N", help="Tokens that generation reads (64).")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, metavar="N", help="Tokens that generation makes (32).")] = None,
    range_: Annotated[
        str | None,
        typer.Option("--range", metavar="NAME", help="With ncu: only kernels in this range, as backward or block 0."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where torch's Chrome trace or nsys' record goes; by default profile-... in the working directory.",
        ),
    ] = None,
    arch: Annotated[
        str | None, typer.Option(metavar="X.Y", help="With emulator: what registers are counted for; 9.0a by default.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's own choice by default.")] = None,
) -> None:
    """Show where the time goes, and how near each part is to what the machine can do.

    On a CPU: a table of the model's parts, one of ops with bytes or FLOPs and their share of the ceiling measured in
    the same run, and a Chrome trace. On a GPU the tables are NVIDIA's: ncu's counters, nsys' times. Without a GPU
    `--tool emulator` counts what an op's CUDA kernels would ask of its memory, a row a line of their source.

    Where there is no GPU or no such tool, the command line that would be run is printed, and why it was not; the exit
    status is then 0.
    """
    if what not in WHATS:
        raise UserError(f"cannot profile {what!r}; there are {', '.join(WHATS)}")
    if preset is not None and preset not in PRESETS:
        raise UserError(f"--preset: expected one of {', '.join(PRESETS)}, got {preset!r}")
    place, name = _place_and_tool(what, device.value if device else None, tool.value if tool else None)
    given = {"--shape": shape, "--quick": quick or None, "--preset": preset, "--batch-size": batch_size}
    given |= {"--prompt": prompt, "--tokens": tokens, "--range": range_, "--trace": trace, "--arch": arch}
    _refuse_what_means_nothing(what, name, [option for option, value in given.items() if value is not None])
    if arch is not None and not re.fullmatch(r"[1-9]\d?\.\d[af]?", arch):
        raise UserError(f"--arch: expected a compute capability as 8.0, 9.0a or 10.0, got {arch!r}")
    if trace is not None and trace.is_dir():
        raise UserError(f"--trace {trace}: that is a folder, not a file")
    if trace is not None and not trace.resolve().parent.is_dir():
        raise UserError(f"--trace {trace}: there is no folder {trace.resolve().parent}")
    find_benchmarks()
    if threads is not None:
        torch.set_num_threads(threads)
    job = Job(
        what=what,
        device=place,
        dtype=dtype.value,
        repeat=repeat or _REPEAT.get(what, _REPEAT_OP),
        shape=shape,
        quick=quick,
        preset=preset or "tiny",
        batch_size=batch_size,
        prompt=prompt or 64,
        tokens=tokens or 32,
        range=range_,
        trace=trace,
        arch=arch or "9.0a",
    )
    try:
        profile_with(name, job)
    except ToolFailed as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except ValueError as error:
        raise UserError(str(error)) from error
    except BrokenPipeError:  # `minigpt profile ... | head`: nobody reads on, and typer ends quietly
        raise
    except OSError as error:
        raise UserError(_told(error, job.trace)) from error


def _told(error: OSError, trace: Path | None) -> str:
    text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    of_trace = trace is not None and error.filename and Path(error.filename).resolve().parent == trace.resolve().parent
    return f"--trace: {text}" if of_trace else text


def _place_and_tool(what: str, device: str | None, tool: str | None) -> tuple[str, str]:
    """Device and tool, each found from the other where it is left out."""
    if device is None:
        there = ["cuda"] if torch.cuda.is_available() and why_no_kernels(torch.device("cuda", 0)) is None else []
        allowed = TOOLS[tool].devices if tool else ("cpu", "cuda")
        device = next(place for place in (*there, "cpu", "cuda") if place in allowed)
    tool = tool or default_tool(what, device)
    if device not in TOOLS[tool].devices:
        raise UserError(f"--tool {tool} looks at {' and '.join(TOOLS[tool].devices)}, not at --device {device}")
    if device == "cuda" and "cpu" in TOOLS[tool].devices:  # it runs in this process
        if not torch.cuda.is_available():
            raise UserError(f"--device cuda: torch {torch.__version__} sees no GPU here")
        if reason := why_no_kernels(torch.device("cuda", 0)):
            raise UserError(f"--device cuda: {reason}")
    return device, tool


def _refuse_what_means_nothing(what: str, tool: str, given: list[str]) -> None:
    kind = what if what in _REPEAT else "an op"
    of_kind = {
        "an op": ("--shape", "--quick"),
        "train": ("--preset", "--batch-size", "--quick"),
        "generate": ("--preset", "--prompt", "--tokens", "--quick"),
    }
    of_tool = {"ncu": ("--range",), "torch": ("--trace",), "nsys": ("--trace",), "emulator": ("--arch",)}
    for option in given:
        if option in ("--range", "--trace", "--arch"):
            if option not in of_tool.get(tool, ()):
                raise UserError(f"{option} means nothing to the tool {tool}")
        elif option not in of_kind[kind]:
            raise UserError(f"{option} means nothing to {what}")
