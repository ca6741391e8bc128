"""Every CPU kernel and the decode engine, without torch, on blocks of exact size: nothing is read or written outside
them, nothing is read before it was written. Under ASan and UBSan at each instruction set, and under valgrind."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from test_simd import LEVELS, cpu_levels

BUILD = Path(__file__).with_name("build.sh")
FAULTS = ["read", "write", "scratch", "unwritten"]
# Valgrind knows neither AVX-512 nor AVX-VNNI.
VALGRIND_LEVELS = ["portable", "avx2"]
VALGRIND = ["valgrind", "--quiet", "--error-exitcode=9", "--exit-on-first-error=yes", "--leak-check=full"]
VALGRIND += ["--partial-loads-ok=no"]  # a vector half of which lies outside


def compiler() -> list[str]:
    return os.environ.get("CXX", "g++").split()


def build(kind: str, folder: Path) -> Path:
    if shutil.which(compiler()[0]) is None:
        pytest.skip(f"there is no {compiler()[0]} on PATH")
    if kind == "sanitizers":
        source = folder / "empty.cpp"
        source.write_text("int main() {}")
        flags = ["-fsanitize=address,undefined", "--param", "asan-instrumentation-with-call-threshold=0"]  # g++ alone
        command = [*compiler(), *flags, str(source), "-o", str(folder / "empty")]
        tried = subprocess.run(command, capture_output=True, text=True)
        if tried.returncode:
            pytest.skip(f"{compiler()[0]} has no ASan and UBSan here: {tried.stderr.strip()}")
    built = subprocess.run([BUILD, kind, folder], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder / "memory_check"


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory) -> Path:
    return build("sanitizers", tmp_path_factory.mktemp("sanitizers"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    if shutil.which("valgrind") is None:
        pytest.skip("there is no valgrind on PATH")
    return build("plain", tmp_path_factory.mktemp("plain"))


def run(level: str, *command: str | Path) -> subprocess.CompletedProcess:
    if level not in cpu_levels():
        pytest.skip(f"this CPU does not have {level}")
    return subprocess.run(command, env={**os.environ, "MINIGPT_SIMD": level}, capture_output=True, text=True)


def check_clean(level: str, result: subprocess.CompletedProcess) -> None:
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[:6000]
    assert result.stdout.splitlines()[-1] == f"clean at {level}"


def check_caught(result: subprocess.CompletedProcess, code: int, words: str) -> None:
    said = result.stdout + result.stderr
    assert result.returncode == code and words in said, said


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_sanitizers_report_nothing(sanitized, level):
    check_clean(level, run(level, sanitized))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("level", LEVELS)
def test_sanitizers_catch_a_fault(sanitized, level, fault):
    # ASan fills fresh memory with NaN: it is the program that finds what stayed unwritten.
    code, words = (3, "were not written") if fault == "unwritten" else (1, "ERROR: AddressSanitizer")
    check_caught(run(level, sanitized, "--fault", fault), code, words)


@pytest.mark.slow
@pytest.mark.parametrize("level", VALGRIND_LEVELS)
def test_valgrind_reports_nothing(plain, level):
    check_clean(level, run(level, *VALGRIND, plain))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_valgrind_catches_a_fault(plain, fault):
    words = "uninitialised" if fault == "unwritten" else "Invalid"
    check_caught(run("portable", *VALGRIND, plain, "--fault", fault), 9, words)
