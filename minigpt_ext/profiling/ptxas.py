"""Registers, spills and shared memory of each kernel, as nvcc's ptxas tells them; no GPU is needed."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from minigpt_ext.emulator.build import CSRC, cache_folder, digest, included_files, written_whole
from minigpt_ext.profiling.external import short_name
from minigpt_ext.profiling.job import ToolFailed

_FLAGS = ["-O3", "-std=c++17", "-cubin", "-Xptxas", "-v"]  # code as setup.py has it made
_USUAL_FOLDER = "/usr/local/cuda"
_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>[^'\n]+)'.*?"
    r"(?P<store>\d+) bytes spill stores, (?P<load>\d+) bytes spill loads\n.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>.*?)\n",
    re.DOTALL,
)


@dataclass(frozen=True)
class Resources:
    """registers of a thread; spilled_bytes, which it stores and loads for want of more; static_bytes a block shares."""

    registers: int
    spilled_bytes: int
    static_bytes: int


def find_nvcc() -> str | None:
    """The path of nvcc: on PATH, or under CUDA_HOME, CUDA_PATH or /usr/local/cuda."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), _USUAL_FOLDER]
    return next(filter(None, map(shutil.which, ["nvcc", *(f"{home}/bin/nvcc" for home in homes if home)])), None)


def resources(op: str, arch: str, nvcc: str) -> dict[str, Resources]:
    """Of all kernels of an op's room, by names like gelu_forward_kernel<float, true>.

    arch: as "9.0a". Compiles the room, up to a minute, where the cache does not hold what ptxas said of these sources.
    Raises ToolFailed with the compiler's message.
    """
    source = CSRC / op / f"{op}_cuda.cu"
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    files = sorted({source, *included_files(source)})
    key = digest(version, arch, _FLAGS, *(f"{file}\0{file.read_text()}" for file in files))
    kept = cache_folder().parent / "ptxas" / f"{op}-{arch}-{key}.txt"
    if not kept.exists():
        print(f"Asking ptxas about {source.name} for {arch} ...", flush=True)
        with written_whole(kept) as part:
            part.write_text(_compile(source, arch, nvcc, part.with_suffix(".cubin")))
    return parse(kept.read_text())


def _compile(source: Path, arch: str, nvcc: str, cubin: Path) -> str:
    command = [nvcc, *_FLAGS, f"-arch=sm_{arch.replace('.', '')}", f"-I{CSRC}", str(source), "-o", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ToolFailed(f"nvcc failed:\n  {' '.join(command)}\n{(done.stdout + done.stderr).strip()[-2000:]}")
    text = done.stdout + done.stderr
    try:
        return subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise ToolFailed("the names of kernels need binutils' c++filt, and there is none") from None


def parse(text: str) -> dict[str, Resources]:
    """What ptxas -v printed, with names demangled."""
    found = {}
    for kernel in _KERNEL.finditer(text):
        static = re.search(r"(\d+) bytes smem", kernel["rest"])
        spilled = int(kernel["store"]) + int(kernel["load"])
        found[short_name(kernel["name"])] = Resources(
            int(kernel["registers"]), spilled, int(static[1]) if static else 0
        )
    return found
