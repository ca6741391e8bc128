"""csrc/emulator/README.md: its kernel, its barriers removed and its debugger SESSION print what the page says."""

import os
import re
import runpy
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


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the page's program on a kernel, and more behind it, in this process, and gives what they print."""

    def run(kernel: str, *options: str, more: str = "") -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["row_sum.py", *options])
        (tmp_path / "row_sum.cu").write_text(kernel)
        (tmp_path / "row_sum.py").write_text(PROGRAM)
        names = runpy.run_path("row_sum.py")
        exec(more, names)
        return capsys.readouterr().out

    return run


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
def test_what_the_page_prints(run, kernel, options, output):
    assert run(kernel, *options) == OUTPUTS[output]


def test_what_the_kernel_asks_of_memory(run):
    counting, counts = block("with mg.emulator.counted(kernels)"), block("row_sum.cu:8 global load")
    assert run(KERNEL, "--race", more=counting) == OUTPUTS[0] + counts


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gdb"), reason="gdb is not installed")
def test_the_debugger_session(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGPT_EMULATOR_FLAGS", "-O0")
    run(KERNEL)  # compiled before, so that its messages do not mix
    commands = [word for command in re.findall(r"^\(gdb\) (.*)$", SESSION, re.MULTILINE) for word in ("-ex", command)]
    done = subprocess.run(
        ["gdb", "-q", "-batch", *commands, "--args", sys.executable, "row_sum.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    for line in SESSION.splitlines():
        if re.match(r"\$\d+ = ", line) or line[:2] in ("9\t", "11"):
            assert line in done.stdout, done.stdout + done.stderr
