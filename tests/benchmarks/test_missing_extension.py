"""Without its compiled extension the command still says what is wrong, in one line; `minigpt doctor` tells the rest."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minigpt_ext


@pytest.fixture
def minigpt(tmp_path: Path):
    """Runs the command of a copy of the package that has no compiled extension."""
    source = Path(minigpt_ext.__file__).parent
    shutil.copytree(source, tmp_path / "minigpt_ext", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    # An editable installation would find the real one; this stands in its way.
    (tmp_path / "minigpt_ext" / "_C.py").write_text("raise ModuleNotFoundError(\"No module named 'minigpt_ext._C'\")\n")

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", "from minigpt_ext.cli import main; main()", *arguments]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)

    return run


def test_doctor_tells_it(minigpt) -> None:
    result = minigpt("doctor")
    assert result.returncode == 1 and result.stderr == ""
    assert "the compiled extension cannot be used (No module named 'minigpt_ext._C'); build it" in result.stdout


def test_other_commands_end_in_one_line(minigpt) -> None:
    result = minigpt("train")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: the compiled extension cannot be loaded") and result.stderr.count("\n") == 1
    assert "`minigpt doctor`" in result.stderr
