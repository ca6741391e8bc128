"""The launchers of a source: which `extern "C"` functions it defines, and what each of them takes.

A call through ctypes is checked by nobody: a name finds any function of the process, and a number too many or too few
goes unseen. So the signatures are read from the preprocessed source, where macros have been expanded.
"""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .build import BuildError, included_files, preprocess_command

MOST_PARAMETERS = 12  # of minigpt_emulator_call
_DEFINITION = re.compile(r"\b(\w+)\s*\(([^(){};]*)\)\s*\{")
_32_BITS = re.compile(r"(?!.*\b(long|short|char)\b).*\b(u?int32_t|int|unsigned)\b")


@dataclass(frozen=True)
class Launcher:
    """name and parameters as written: "row_sum", ("const float* x", "int64_t rows")."""

    name: str
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(self.parameters)})"

    def check(self, arguments: Sequence[object]) -> None:
        """Raises TypeError or OverflowError, naming the argument, for what cannot be handed to this launcher."""
        if len(self.parameters) > MOST_PARAMETERS:
            raise TypeError(f"{self}: a launcher has at most {MOST_PARAMETERS} parameters")
        for parameter in self.parameters:
            if "*" not in parameter and re.search(r"\b(float|double)\b", parameter):
                raise TypeError(
                    f"{self}: {parameter!r} cannot be handed over; pass numbers that are not integers as an element of "
                    "a tensor"
                )
        if len(arguments) != len(self.parameters):
            raise TypeError(f"{self} takes {len(self.parameters)} arguments, got {len(arguments)}")
        for i, (argument, parameter) in enumerate(zip(arguments, self.parameters, strict=True)):
            _check_argument(f"{self.name}: argument {i}", argument, parameter)


def _check_argument(which: str, argument: object, parameter: str) -> None:
    if isinstance(argument, float):
        raise TypeError(
            f"{which} must be a tensor or an int, got float; pass numbers that are not integers as an element of a "
            "tensor"
        )
    if isinstance(argument, Tensor):
        if argument.device.type != "cpu":
            raise TypeError(f"{which} is on {argument.device}; the emulator takes CPU tensors")
        if argument.layout != torch.strided:
            raise TypeError(f"{which} has the layout {argument.layout}; the emulator takes strided tensors")
        if "*" not in parameter:
            raise TypeError(f"{which} must be an int for {parameter!r}, got a tensor")
        return
    if not isinstance(argument, int):
        raise TypeError(f"{which} must be a tensor or an int, got {type(argument).__name__}")
    if "*" in parameter and argument != 0:
        raise TypeError(f"{which} must be a tensor for {parameter!r} (or 0, a null pointer), got {argument}")
    bits = 32 if _32_BITS.match(parameter) else 64
    least, most = (
        (0, 2**32)
        if bits == 32 and re.search(r"\b(unsigned|uint32_t)\b", parameter)
        else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    )
    if not least <= argument < most:
        raise OverflowError(f"{which} must fit the {bits} bits of {parameter!r}, got {argument}")


def launchers_of(sources: Sequence[Path]) -> dict[str, Launcher]:
    """The launchers that .cu files define, themselves or by headers that they include. Raises BuildError."""
    found = {}
    for source in sources:
        command = preprocess_command(source)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BuildError(f"preprocessing {source.name} failed:\n  {' '.join(command)}\n{done.stderr.strip()}")
        text = _own_text(done.stdout, {source.resolve(), *included_files(source)})
        found |= {launcher.name: launcher for launcher in _parse(text)}
    return found


def _own_text(text: str, files: set[Path]) -> str:
    """Of a preprocessed source, what stands in these files."""
    own, lines = False, []
    known: dict[str, bool] = {}
    for line in text.splitlines():
        if marker := re.match(r'# \d+ "([^"]*)"', line):
            name = marker[1]
            own = known[name] = known[name] if name in known else Path(name).resolve() in files
        elif own:
            lines.append(line)
    return "\n".join(lines)


def _parse(text: str) -> list[Launcher]:
    text = re.sub(r"__attribute__\s*\(\(.*?\)\)+", "", text)
    found = []
    for start in re.finditer(r'\bextern\s+"C"\s*', text):
        rest = text[start.end() :]
        if rest.startswith("{"):
            definitions = _DEFINITION.finditer(_without_bodies(rest))
        else:
            end = re.search(r"[{;]", rest)
            definitions = _DEFINITION.finditer(rest[: end.end()] if end else "")
        for definition in definitions:
            parameters = [" ".join(each.split()) for each in definition[2].split(",")]
            found.append(Launcher(definition[1], tuple(each for each in parameters if each not in ("", "void"))))
    return found


def _without_bodies(block: str) -> str:
    """Of a block from its { to its }, without what stands in braces inside it: `void f() {}` stays of a function."""
    depth, kept = 0, []
    for character in block:
        depth -= character == "}"
        if depth == 0 and character == "}":
            break
        if depth == 1:
            kept.append(character)
        depth += character == "{"
    return "".join(kept)
