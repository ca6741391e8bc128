"""The instruction sets: each that this CPU has gives right results, and MINIGPT_SIMD chooses among them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minigpt_ext import _C

LEVELS = ["portable", "avx2", "avx512"]
TESTS = Path(__file__).resolve().parent


def run(level: str, *command: str) -> subprocess.CompletedProcess:
    search = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "MINIGPT_SIMD": level, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("level", LEVELS)
def test_every_op_at_every_level(level):
    if LEVELS.index(level) > LEVELS.index(torch_level()):
        pytest.skip(f"this CPU does not have {level}")
    result = run(level, str(TESTS / "simd_check.py"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == level


def torch_level() -> str:
    """The best level of this CPU, as torch sees it."""
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "portable")


def test_the_best_level_is_taken():
    if "MINIGPT_SIMD" not in os.environ:
        assert _C.simd_level() == torch_level()


def test_an_unknown_level_is_refused():
    code = "import minigpt_ext, torch; minigpt_ext.ops.gelu(torch.ones(3))"
    result = run("sse9", "-c", code)
    assert result.returncode == 1
    assert "RuntimeError: MINIGPT_SIMD=sse9: allowed are portable, avx2, avx512" in result.stderr
