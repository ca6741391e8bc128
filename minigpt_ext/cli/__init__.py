"""The `minigpt` command; each file beside this one is one of its subcommands."""

import sys

import typer

from minigpt_ext import extension_error
from minigpt_ext.backend import environment_error

from .doctor import doctor
from .errors import UserError

app = typer.Typer(
    help="A GPT you can see through, on kernels you can read.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.callback()(lambda: None)  # else an app of one command would not take its name
if extension_error is None:
    from .bench import bench
    from .export import export
    from .generate import generate
    from .inspect import inspect
    from .profile import profile
    from .tokenizer import app as tokenizer
    from .train import train

    for command in (train, generate, export, inspect, bench, profile):
        app.command(command.__name__)(command)
    app.add_typer(tokenizer, name="tokenizer")
app.command("doctor")(doctor)


def _simd_error() -> str | None:
    """What is wrong with MINIGPT_SIMD: no such name, or more than this CPU has."""
    from minigpt_ext import _C

    try:
        _C.simd_level()
    except RuntimeError as error:
        return str(error)
    return None


def main() -> None:
    try:
        if sys.argv[1:2] != ["doctor"]:  # which tells of both, and of the rest
            if extension_error is not None:
                raise UserError(
                    f"the compiled extension cannot be loaded ({extension_error}). Build it: `pip install -e .` in the "
                    "checkout. `minigpt doctor` tells more"
                )
            if environment_error is not None:
                raise UserError(str(environment_error))
            if simd_error := _simd_error():
                raise UserError(simd_error)
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
