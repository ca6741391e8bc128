"""Ten seconds of fuzz_safetensors.py; ten minutes are for when the reader changes."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz_safetensors.py")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed: pip install atheris")
def test_nothing_is_found_in_ten_seconds(tmp_path):
    # By a shell: a process hands its peak of memory, which libFuzzer limits, on to its direct child, and ours is large.
    command = ["sh", "-c", '"$0" "$@"; exit $?', sys.executable, str(SCRIPT), "-max_total_time=10", "-seed=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs and int(runs[1]) > 500, done.stderr[-3000:]
    assert not list(tmp_path.iterdir())
