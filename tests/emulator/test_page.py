"""csrc/emulator/README.md: its kernel, its barriers removed and its debugger SESSION print what the page says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "csrc" / "emulator" / "README.md").read_text()
BARRIER = "    __syncthreads();\n"


BLOCKS = [text for _, text in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)]


def block(beginning: str) -> str:
    return next(text for text in BLOCKS if text.startswith(beginning))


KERNEL, PROGRAM = block('#include "common/device.cuh"'), block("import sys")
SESSION = block("$ MINIGPT_EMULATOR_FLAGS=-O0 gdb")
OUTPUTS = [text for text in BLOCKS if text.startswith(("tensor", "CUDA emulator"))]


def run(folder: Path, kernel: str, *options: str, command: tuple[str, ...] = (), **environment: str) -> str:
    (folder / "row_sum.cu").write_text(kernel)
    (folder / "row_sum.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [*command, sys.executable, "row_sum.py", *options], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_says_four_outputs():
    assert len(OUTPUTS) == 4


@pytest.mark.parametrize(
    ("kernel", "options", "output"),
    [
        pytest.param(KERNEL, (), 0, id="right"),
        pytest.param(KERNEL, ("--race",), 0, id="right, checked"),
        pytest.param(KERNEL.replace(BARRIER, "    // __syncthreads();\n"), (), 1, id="no barrier"),
        pytest.param(KERNEL.replace(BARRIER, "    // __syncthreads();\n"), ("--race",), 2, id="no barrier, checked"),
        pytest.param(
            KERNEL.replace(BARRIER, "    // __syncthreads();\n").replace("  for (", "  __syncthreads();\n  for ("),
            ("--race",),
            3,
            id="a barrier before the loop",
        ),
    ],
)
def test_what_the_page_prints(tmp_path, kernel, options, output):
    assert run(tmp_path, kernel, *options) == OUTPUTS[output]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gdb"), reason="gdb is not installed")
def test_the_debugger_session(tmp_path):
    commands = re.findall(r"^\(gdb\) (.*)$", SESSION, re.MULTILINE)
    debugger = ("gdb", "-q", "-batch", *(word for command in commands for word in ("-ex", command)), "--args")
    run(tmp_path, KERNEL, MINIGPT_EMULATOR_FLAGS="-O0")  # compiled before, so that its messages do not mix
    said = run(tmp_path, KERNEL, command=debugger, MINIGPT_EMULATOR_FLAGS="-O0")
    for line in SESSION.splitlines():
        if re.match(r"\$\d+ = ", line) or line[:2] in ("9\t", "11"):
            assert line in said, said
