"""What tests of `minigpt profile` share."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minigpt_ext.cli import main
from minigpt_ext.cli.bench import FOLDER
from minigpt_ext.profiling import external, ncu, nsys

CEILINGS = {"read": 4e9, "copy": 2e9, "gemm": 1e12}


@pytest.fixture
def benchmarks(monkeypatch) -> None:
    """The modules of benchmarks/ can be imported."""
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def minigpt(monkeypatch, capsys, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """minigpt(*arguments) runs the command in an empty folder: its status, what it printed, and its errors."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["minigpt", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        torch.set_num_threads(threads)
        return ended.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def tool(monkeypatch, tmp_path: Path) -> Callable[[str, str], None]:
    """tool(name, body) puts a program of that name, a Python script, on PATH, and lets the command think that there is
    a GPU, of round ceilings. What else the command does stays as it is."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(external, "why_not", lambda tool: None)
    for module in (ncu, nsys):
        monkeypatch.setattr(module, "measured_ceilings", lambda job: CEILINGS)

    def make(name: str, body: str) -> None:
        program = folder / name
        program.write_text(f"#!{sys.executable}\nimport pathlib, sys\n{body}")
        program.chmod(0o755)

    return make
