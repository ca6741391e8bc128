"""The instruction sets: each that this CPU has gives right results, and MINIGPT_SIMD chooses among them."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt_ext import _C

# What /proc/cpuinfo lists of a CPU that has the level.
LEVELS = {
    "portable": set(),
    "avx2": {"avx2", "fma", "bmi1", "bmi2"},
    "avx2_vnni": {"avx2", "avx_vnni"},
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "avx512_bf16": {"avx512f", "avx512_vnni", "avx512_bf16"},
}
TESTS = Path(__file__).resolve().parent


def run(level: str, *command: str) -> subprocess.CompletedProcess:
    search = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "MINIGPT_SIMD": level, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)


def cpu_levels() -> list[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not cpuinfo.exists():
        return ["portable"]
    flags = set(re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)[1].split())
    return [level for level, needs in LEVELS.items() if needs <= flags]


@pytest.mark.parametrize("level", LEVELS)
def test_every_op_at_every_level(level):
    if level not in cpu_levels():
        pytest.skip(f"this CPU does not have {level}")
    result = run(level, str(TESTS / "simd_check.py"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == level


def test_the_best_level_is_taken():
    if "MINIGPT_SIMD" not in os.environ:
        assert _C.simd_level() == cpu_levels()[-1]


def test_an_unknown_level_is_refused():
    code = "import minigpt_ext, torch; minigpt_ext.ops.gelu(torch.ones(3))"
    result = run("sse9", "-c", code)
    assert result.returncode == 1
    assert f"RuntimeError: MINIGPT_SIMD=sse9: allowed are {', '.join(LEVELS)}" in result.stderr


def test_a_command_tells_of_an_unknown_level_in_one_line():
    result = run("sse9", "-c", "from minigpt_ext.cli import main; main()", "train")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == f"error: MINIGPT_SIMD=sse9: allowed are {', '.join(LEVELS)}\n"
