"""The fuzzer of the tokenizer's core builds, and ten seconds of it find nothing. By hand it is given longer."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz_tokenizer.sh")


def clang_with_libfuzzer(folder: Path) -> str | None:
    names = [os.environ.get("CLANGXX"), "clang++", *(f"clang++-{version}" for version in range(22, 12, -1))]
    source = folder / "empty.cpp"
    source.write_text('extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }')
    for name in filter(None, names):
        if (compiler := shutil.which(name)) is None:
            continue
        command = [compiler, "-fsanitize=fuzzer,address,undefined", str(source), "-o", str(folder / "empty")]
        if subprocess.run(command, capture_output=True).returncode == 0:
            return compiler
    return None


@pytest.mark.slow
def test_ten_seconds(tmp_path):
    compiler = clang_with_libfuzzer(tmp_path)
    if compiler is None:
        pytest.skip("there is no clang++ with libFuzzer on PATH, nor in CLANGXX")
    run = subprocess.run(
        [SCRIPT, "10", tmp_path], env=os.environ | {"CLANGXX": compiler}, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    assert int(re.search(r"number_of_executed_units: (\d+)", run.stderr)[1]) > 50
