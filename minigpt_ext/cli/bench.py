"""`minigpt bench`: the benchmarks of a checkout, beside torch."""

import importlib
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import typer

import minigpt_ext
from minigpt_ext.backend import OPS, why_no_kernels
from minigpt_ext.cli.errors import UserError

BENCHMARKS = (*OPS, "training", "generation", "decoding", "tokenizer", "sweep")
FOLDER = Path(minigpt_ext.__file__).resolve().parents[1] / "benchmarks"


class Dtype(str, Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Device(str, Enum):
    cpu = "cpu"
    cuda = "cuda"


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help=f"Which of: {', '.join(BENCHMARKS)}. All but the sweep by default."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small shapes, to see that all works: under a minute.")
    ] = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the results there, as JSON.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's own choice by default.")] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Also time torch.compile of torch's op (slow: it compiles each shape).")
    ] = False,
    warm: Annotated[
        bool, typer.Option("--warm", help="Leave inputs in the caches; else memory-bound cases find them cold.")
    ] = False,
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.cpu,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="sweep: draw attention's ratios over all sizes there (.png).")
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Of the tensors; training computes in it under autocast.")
    ] = Dtype.float32,
) -> None:
    """Time the kernels beside torch's own ops, after checking their results against float64; and whole models.

    A fused op is in its base op's benchmark: residual norms in layer_norm and rms_norm, bias + GELU in gelu. `decoding`
    is beside llama.cpp, CTranslate2 and transformers, those that are installed (pip install -e '.[peers]').

    Prints the machine, its ceilings measured now (bandwidth, matrix product), and a row a shape: median time (20th to
    80th percentile), torch's time over ours (above 1: ours is faster), the goal, the rate and its share of the ceiling,
    and the worst error. The last line is all of it as JSON. Takes some ten minutes on two cores, which should have
    nothing else to do; `sweep`, attention over all sizes with one thread and with all, takes about seven.
    """
    names = list(dict.fromkeys(names or BENCHMARKS[:-1]))
    if unknown := [name for name in names if name not in BENCHMARKS]:
        raise UserError(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    find_benchmarks()
    if json is not None and not json.resolve().parent.is_dir():
        raise UserError(f"--json {json}: there is no folder {json.resolve().parent}")
    if plot is not None and "sweep" not in names:
        raise UserError("--plot draws the sweep: minigpt bench sweep --plot FILE.png")
    if plot is not None and (plot.suffix != ".png" or not plot.resolve().parent.is_dir()):
        raise UserError(f"--plot {plot}: a .png in a folder that exists is needed")
    if device is Device.cuda:
        if not torch.cuda.is_available():
            raise UserError(f"--device cuda: torch {torch.__version__} sees no GPU here")
        if reason := why_no_kernels(torch.device("cuda", 0)):
            raise UserError(f"--device cuda: {reason}")
    if threads is not None:
        torch.set_num_threads(threads)
    report = importlib.import_module("report")
    place = torch.device("cuda", 0) if device is Device.cuda else torch.device("cpu")
    options = report.Options(
        quick=quick, compile=compile, warm=warm, device=place, dtype=getattr(torch, dtype.value), plot=plot
    )
    try:
        report.run(names, options, json)
    except report.WrongResult as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except OSError as error:
        raise UserError(f"--json {json}: {error.strerror}") from error


def find_benchmarks() -> None:
    """Make the modules in benchmarks/ importable. Raises UserError where there is no checkout."""
    if not (FOLDER / "report.py").is_file():
        raise UserError(
            "the benchmarks are not installed with the package: they run from a checkout. In a clone of the "
            "repository: `pip install -e .`, then `minigpt bench`"
        )
    sys.path.insert(0, str(FOLDER))
