"""keep_freed_memory: what a step frees is there for the next one, without the kernel's help."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is what is steered")

PROBE = """
import resource, sys, torch
from minigpt_ext.training import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    # 48 MB blocks are above any threshold that glibc raises by itself; 3 MB ones lie between the large ones.
    held = [torch.ones(size << 18) for size in (48, 3, 48, 3)]
for _ in range(3):
    step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


def faults(mode: str) -> int:
    return int(subprocess.run([sys.executable, "-c", PROBE, mode], capture_output=True, text=True, check=True).stdout)


def test_steps_fault_no_page_after_the_first() -> None:
    assert faults("default") > 10_000, "the test would not notice"
    assert faults("keep") < 100
