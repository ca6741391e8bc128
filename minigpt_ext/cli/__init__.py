"""The `minigpt` command; each file beside this one is one of its subcommands."""

import sys

import typer

from .bench import bench
from .doctor import doctor
from .errors import UserError
from .generate import generate
from .train import train

app = typer.Typer(
    help="A GPT you can see through, on kernels you can read.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (train, generate, bench, doctor):
    app.command(command.__name__)(command)


def main() -> None:
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
