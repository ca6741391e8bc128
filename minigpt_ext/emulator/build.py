"""Compiles CUDA sources for the emulator, by the C++ compiler alone, into a cache.

An object is kept under the hash of all that it is made of (its source, the project's headers it includes, the versions
of the compiler, of CUDA's headers and of torch, the flags), so that after an edit only what it touches is compiled
again, and nothing stale is ever used.
"""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from .headers import cuda_include_folders, cuda_version

CSRC = Path(__file__).resolve().parents[2] / "csrc"
KEPT_FOR_DAYS = 30
FLAGS = ["-std=c++20", "-O1", "-g", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-DMINIGPT_CUDA_EMULATOR"]
WARNINGS = ["-Wall", "-Wno-unknown-pragmas", "-Wno-psabi", "-Wno-ignored-attributes"]


class BuildError(RuntimeError):
    """The emulator cannot be built here: no compiler, no CUDA headers, or an error in a source."""


def cache_folder() -> Path:
    """Where libraries are kept: MINIGPT_CACHE, or minigpt_ext under XDG_CACHE_HOME, or under ~/.cache."""
    if own := os.environ.get("MINIGPT_CACHE"):
        return Path(own) / "emulator"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minigpt_ext" / "emulator"


def find_sources() -> None:
    """Raises BuildError where the package was installed without its C++ and CUDA sources."""
    if not (CSRC / "emulator" / "emulator.h").is_file():
        raise BuildError(
            "the CUDA emulator is built from the sources of a checkout, and this installation has none. In a clone of "
            "the repository: pip install -e ."
        )


@cache
def compiler() -> tuple[list[str], str]:
    """The command of the C++ compiler (CXX, else c++, g++ or clang++), and what it says of its version."""
    named = os.environ.get("CXX", "").split()
    for command in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            version = subprocess.run([*command, "--version"], capture_output=True, text=True)
            return command, version.stdout
    wanted = f"CXX={os.environ['CXX']}" if named else "c++, g++ or clang++"
    raise BuildError(
        f"the CUDA emulator is compiled when it is first used, and there is no C++ compiler ({wanted}). Install one "
        "(Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++), or name yours in CXX"
    )


def included_files(source: Path) -> set[Path]:
    """The files that a source includes by a quoted name, directly or through others, where they exist."""
    found: set[Path] = set()
    waiting = [source]
    while waiting:
        file = waiting.pop()
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', file.read_text(), re.MULTILINE):
            header = next((h for folder in (file.parent, CSRC) if (h := (folder / name).resolve()).exists()), None)
            if header and header not in found:
                found.add(header)
                waiting.append(header)
    return found


def digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:24]


def run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{what} failed:\n  {' '.join(command)}\n{(done.stdout + done.stderr).strip()[-4000:]}")


@contextlib.contextmanager
def written_whole(file: Path):
    """A name beside `file` to write to, which becomes `file` at the end: nobody ever reads half of one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".building-") as folder:
        part = Path(folder, file.name)
        yield part
        part.replace(file)


def build_library(name: str, sources: list[Path], flags: list[str], link: list[str], *, checked: bool) -> Path:
    """The shared library of `sources` (.cu and .cpp) and the emulator, compiled where the cache does not hold it.

    checked: the checking build. Its kernels are instrumented as for ThreadSanitizer; the emulator itself never is.
    Raises BuildError.
    """
    find_sources()
    command, version = compiler()
    extra = os.environ.get("MINIGPT_EMULATOR_FLAGS", "").split()  # such as -O0, for a debugger
    common = [*FLAGS, *WARNINGS, *extra, *(f"-I{folder}" for folder in cuda_include_folders()), f"-I{CSRC}"]
    own = sorted((CSRC / "emulator").glob("*.cpp"))
    left_out = set() if checked else {"counters.cpp", "race.cpp", "tsan.cpp"}
    own = [source for source in own if source.name not in {"library.cpp", *left_out}]
    if checked:
        common.append("-DMINIGPT_EMULATOR_CHECKED")

    folder = cache_folder()
    jobs = []
    for source in (*own, *sources):
        instrumented = checked and source.suffix == ".cu"
        # The emulator's own objects take no flags, so that all libraries share them.
        options = [*common, *([] if source in own else flags), *(["-fsanitize=thread"] if instrumented else [])]
        files = sorted({source.resolve(), *included_files(source)})
        key = digest(
            version,
            command,
            cuda_version(),
            torch.__version__,
            options,
            *(f"{file}\0{file.read_text()}" for file in files),
        )
        jobs.append((source, options, folder / "objects" / f"{source.stem}-{key}.o"))
    library = folder / f"{name}-{digest(link, *(object for *_, object in jobs))}.so"
    if library.exists():
        os.utime(library)
        return library

    missing = [job for job in jobs if not job[2].exists()]
    began = time.monotonic()
    if missing:
        files = "1 file" if len(missing) == 1 else f"{len(missing)} files"
        print(f"minigpt_ext: building {name} ({files}) ...", end="", file=sys.stderr, flush=True)

    def compile_one(job: tuple[Path, list[str], Path]) -> None:
        source, options, target = job
        with written_whole(target) as part:
            run([*command, *options, "-x", "c++", "-c", str(source), "-o", str(part)], f"compiling {source.name}")

    try:
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            list(pool.map(compile_one, missing))
        with written_whole(library) as part:
            objects = [str(target) for *_, target in jobs]
            run([*command, "-shared", "-Wl,-z,defs", *objects, *link, "-ldl", "-o", str(part)], f"linking {name}")
    finally:
        if missing:
            print(f" {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    for *_, target in jobs:
        os.utime(target)
    remove_old(folder)
    return library


def remove_old(folder: Path) -> None:
    """What has not been used for a month goes."""
    oldest = time.time() - KEPT_FOR_DAYS * 86400
    for file in (*folder.glob("*.so"), *(folder / "objects").glob("*.o")):
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_mtime < oldest:
                file.unlink()
