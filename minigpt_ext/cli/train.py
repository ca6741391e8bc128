"""`minigpt train`: from a text to a model, on the screen and in a run directory."""

from __future__ import annotations

import inspect
import itertools
import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from minigpt_ext.cli.errors import UserError
from minigpt_ext.model import GPT
from minigpt_ext.model.config import PRESETS
from minigpt_ext.tokenizer import load_tokenizer
from minigpt_ext.training import CheckpointError, TrainingDiverged, TrainingInterrupted, TrainingResult
from minigpt_ext.training.progress import TerminalProgress
from minigpt_ext.training.recipe import describe_keys, is_demonstration, make_recipe, parse_assignments, read_toml
from minigpt_ext.training.run import complete, opened, reopened
from minigpt_ext.training.run_directory import RunDirectory
from minigpt_ext.training.trainer import Trainer

_FAILED = 1
_INTERRUPTED = 128  # plus the number of the signal, as a shell reports it
_CLOSING_TOKENS = 400
_CLOSING_TEMPERATURE = 0.6  # bold enough to differ from run to run, safe enough for words


def train(
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|PATH",
            help="python (English from Python's own documentation), shakespeare (downloaded once), a UTF-8 file, or a "
            "folder of .txt files. Repeated, the texts are joined.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="char|byte|PATH",
            help="What a token is: a character (default), a byte, or as a tokenizer has it: the folder that `minigpt "
            "tokenizer train` wrote, a directory of Hugging Face, or a tokenizer.json.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Shape of the model with its recipe: tiny (default), " + ", ".join(list(PRESETS)[1:]) + "."),
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Updates to make.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run directory; by default a new one in runs/.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of weights, batches and dropout.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with a run; its settings stay, --steps may grow.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting by name, see below. Repeatable.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings by name, at the top level of a TOML file.")
    ] = None,
) -> None:
    """Train a GPT, and keep the best model.

    With neither --data nor --preset a demonstration runs: about two minutes on two cores, ending in text.

    A setting comes from its own option, else from --set, else from --config, else from the preset.

    The learning rate falls by a cosine to min_lr at step lr_decay_iters, which is --steps unless set. A run resumed
    with more --steps keeps the lr_decay_iters it began with, and goes on at min_lr: 10 steps resumed to 20 equal 20
    steps bit for bit (on a CPU) if lr_decay_iters was 20 from the start.

    Ctrl-C saves and says how to resume. Progress goes to standard error, the closing table to standard output.
    """
    flags = {"data": data or None, "tokenizer": tokenizer, "preset": preset, "steps": steps, "seed": seed}
    try:
        asked = read_toml(config) if config else {}
        asked |= parse_assignments(set_ or [])
        asked |= {key: value for key, value in flags.items() if value is not None}
        if resume is None:
            recipe = make_recipe(asked)
            directory = out or _new_directory(asked, recipe.preset)
        else:
            directory = resume
            if out is not None and out.resolve() != resume.resolve():
                raise ValueError(f"--out {out}: a resumed run stays in its own directory, {resume}")
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error

    progress = TerminalProgress()
    try:
        with ExitStack() as stack:
            try:
                run = opened(recipe, directory, progress) if resume is None else reopened(directory, asked, progress)
                trainer = stack.enter_context(run)
            except (TypeError, ValueError, OSError) as error:
                raise UserError(str(error)) from error
            result = complete(trainer)
    except TrainingInterrupted as interruption:
        typer.echo(f"{interruption}. Go on with:\n  {_resume_command(directory)}", err=True)
        raise typer.Exit(_INTERRUPTED + interruption.received) from None
    except TrainingDiverged as error:
        kept = f"; the last good state is kept in {directory}" if RunDirectory(directory).state.exists() else ""
        typer.echo(f"error: {error}{kept}. A lower learning_rate may help", err=True)
        raise typer.Exit(_FAILED) from None
    except CheckpointError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(_FAILED) from None
    _close(result, trainer)


train.__doc__ = f"{inspect.cleandoc(train.__doc__)}\n\n\b\nSettings for --set and --config:\n{describe_keys()}\n"


def _new_directory(asked: dict[str, Any], preset: str) -> Path:
    """runs/NAME, or runs/NAME-2 and so on where that is taken."""
    if is_demonstration(asked):
        name = "demonstration"
    else:
        name = "-".join([*(Path(source).stem or "data" for source in asked.get("data", ["python"])), preset])
    for number in itertools.count(1):
        path = Path("runs", name if number == 1 else f"{name}-{number}")
        if not path.exists():
            return path


def _resume_command(directory: Path) -> str:
    return shlex.join(["minigpt", "train", "--resume", str(directory)])


def _close(result: TrainingResult, trainer: Trainer) -> None:
    """A text by the best model, what the run came to, and what to type next."""
    text = _closing_text(result.directory, trainer.device)
    console = Console(markup=False)  # a path may hold brackets
    console.print(f"The model of step {result.best_step:,} writes:", style="bold")
    typer.echo(f"\n{text.strip()}\n")

    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # a path must not be cut
    table.add_row("parameters", f"{result.n_parameters:,}")
    table.add_row("steps", f"{result.steps:,}" + (", stopped early" if result.stopped_early else ""))
    table.add_row("time", f"{result.elapsed_s:,.0f} s")
    table.add_row("tokens/s in training", f"{result.tokens_per_second:,.0f}")
    table.add_row(
        "best validation loss", f"{result.best_val_loss:.4f} nats a {result.unit}, at step {result.best_step:,}"
    )
    table.add_row("perplexity", f"{result.perplexity:.2f}")
    table.add_row("bits a character", f"{result.bits_a_character:.3f}")
    table.add_row("bits a byte", f"{result.bits_a_byte:.3f}")
    table.add_row("files", "\n".join(str(result.directory / name) for name in result.files))
    console.print(table)

    words = trainer.dataset.tokenizer.decode(trainer.dataset.train[:200]).split()
    command = ["minigpt", "generate", "--model", str(result.directory), "--prompt", words[0] if words else "A"]
    typer.echo(f"Next:\n  {shlex.join(command)}")


def _closing_text(directory: Path, device: torch.device) -> str:
    model, tokenizer = GPT.from_pretrained(directory, device=device), load_tokenizer(directory)
    start = tokenizer.start_ids()
    ids = torch.tensor([start], device=device)
    new = model.generate(ids, _CLOSING_TOKENS, temperature=_CLOSING_TEMPERATURE, seed=0)
    return tokenizer.decode_continuation(start, new[0, len(start) :])
