"""What the tools that are programs of their own share: whether they can run here, and running them."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from minigpt_ext.backend import why_no_kernels
from minigpt_ext.profiling.table import table
from minigpt_ext.profiling.work import Work, pass_of

_TOOLKIT = "/usr/local/cuda/bin"


def why_not(tool: str) -> str | None:
    """Why a tool cannot look at our kernels here, in words for a person; None where it can."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU here"
    if reason := why_no_kernels(torch.device("cuda", 0)):
        return reason
    return None if find(tool) else f"{tool} is neither on PATH nor in {_TOOLKIT}"


def find(tool: str) -> str | None:
    """The path of a tool's executable."""
    return shutil.which(tool) or shutil.which(tool, path=_TOOLKIT)


def tell_command(reason: str, commands: Sequence[Sequence[str]]) -> None:
    """Say that nothing was run, why, and what to type where it can be."""
    print(f"Nothing was measured: {reason}. Where there are a GPU and the tool, in a checkout, this is to be run:")
    for command in commands:
        print(f"\n{layout(command)}")


def layout(command: Sequence[str]) -> str:
    """A command line for a shell: the tool, its options a line each, and the command that it starts."""
    child = command.index(sys.executable) if sys.executable in command else len(command)
    first = next(place for place, word in enumerate(command) if word.startswith("--"))
    lines = [command[:first], *([word] for word in command[first:child]), command[child:]]
    return " \\\n  ".join(shlex.join(line) for line in lines if line)


def start(command: Sequence[str]) -> subprocess.CompletedProcess:
    """Run a tool to its end, and keep what it and its child say."""
    print(f"Running, which may take minutes:\n{layout(command)}\n", flush=True)
    return subprocess.run(command, capture_output=True, text=True, errors="replace")


def last_lines(text: str, most: int = 12) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines()[-most:])


def short_name(kernel: str) -> str:
    """gelu_forward_kernel<float> of "void minigpt::gelu_forward_kernel<float>(minigpt::GeluForwardParams)"."""
    name, depth = kernel.removeprefix("void "), 0
    for place, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0 and place > 0 and not name.startswith("(anonymous", place):
            name = name[:place]
            break
    return name.replace("minigpt::", "")


def formula_table(
    works: Mapping[str, Work], seconds_of: Callable[[str], float | None], ceilings: Mapping[str, float]
) -> str:
    """The passes of an op against their formula. seconds_of(pass): all kernels of one call of it together."""
    lines = []
    for name, work in works.items():
        if seconds := seconds_of(name):
            figures = [f"{1e6 * seconds:,.1f}", work.text, work.rate_text(seconds), work.share_text(seconds, ceilings)]
            lines.append([name, *figures])
    return table(["by the benchmark's formula", "time us", "work", "rate", "of ceiling"], lines)


def seconds_of_pass(kernels: Sequence[Any], op: str, calls: int) -> Callable[[str], float | None]:
    """For formula_table: of kernels with a name and their seconds all together, in a job of so many calls of an op."""
    ours = [kernel for kernel in kernels if re.search(kernels_of(op), kernel.name)]

    def seconds(name: str) -> float | None:
        return sum(kernel.seconds for kernel in ours if pass_of(kernel.name) == name) / calls or None

    return seconds


def kernels_of(*ops: str) -> str:
    """A regular expression that finds the names of our kernels of these ops, and no others."""
    return f"(^|[^a-z_])({'|'.join(ops)})_"
