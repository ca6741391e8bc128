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
import struct
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
HINT = (
    'hint: `kernel<<<grid, block>>>(x)` is written launch("kernel", kernel, grid, block, 0, nullptr, x), and '
    '`__shared__ float part[64]` SHARED(float[64], part); both are in #include "common/device.cuh". See '
    "csrc/emulator/README.md"
)
WARNINGS = ["-Wall", "-Wno-unknown-pragmas", "-Wno-psabi", "-Wno-ignored-attributes"]


class BuildError(RuntimeError):
    """The emulator cannot be built here: no compiler, no CUDA headers, no room to write, or an error in a source."""


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
    """A name beside `file` to write to, which becomes `file` at the end: nobody ever reads half of one.

    Raises BuildError where nothing can be written there.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=file.parent, prefix=".building-")
    except OSError as error:
        raise BuildError(
            f"the cache {file.parent} cannot be written ({error.strerror}); name another folder in MINIGPT_CACHE"
        ) from None
    with folder:
        part = Path(folder.name, file.name)
        yield part
        part.replace(file)


def is_whole(file: Path) -> bool:
    """Whether an ELF file is there to its end, where the table of its sections is; a full disk may have cut it."""
    try:
        with file.open("rb") as opened:
            header = opened.read(64)
        if len(header) < 64 or not header.startswith(b"\x7fELF"):
            return False
        table, entry_bytes, entries = *struct.unpack_from("<Q", header, 40), *struct.unpack_from("<HH", header, 58)
        return file.stat().st_size >= table + entry_bytes * entries
    except OSError:  # what keeps it from being written is told then
        return False


def touch(file: Path) -> None:
    """Notes that it was used. A cache that may only be read is as good."""
    with contextlib.suppress(PermissionError):
        os.utime(file)


def jobs_at_once() -> int:
    text = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    if not text.isdecimal() or int(text) == 0:
        raise BuildError(f"MAX_JOBS must be a number of compilers from 1 on, got {text!r}")
    return int(text)


def options_for_all() -> list[str]:
    extra = os.environ.get("MINIGPT_EMULATOR_FLAGS", "").split()  # such as -O0, for a debugger
    return [*FLAGS, *WARNINGS, *extra, *(f"-I{folder}" for folder in cuda_include_folders()), f"-I{CSRC}"]


def preprocess_command(source: Path) -> list[str]:
    """What prints a source as the compiler sees it, its macros expanded."""
    return [*compiler()[0], *options_for_all(), "-x", "c++", "-E", str(source)]


def compile_object(command: list[str], source: Path, target: Path) -> None:
    """Raises BuildError with the compiler's message; of plain CUDA, with how that is written here."""
    with written_whole(target) as part:
        try:
            run([*command, "-x", "c++", "-c", str(source), "-o", str(part)], f"compiling {source.name}")
        except BuildError as error:
            if "<<<" in (text := source.read_text()) or "__shared__" in text:
                raise BuildError(f"{error}\n{HINT}") from None
            raise


def build_library(
    name: str, sources: list[Path], flags: list[str], link: list[str], *, checked: bool, again: bool = False
) -> Path:
    """The shared library of `sources` (.cu and .cpp) and the emulator, compiled where the cache does not hold it whole.

    checked: the checking build. Its kernels are instrumented as for ThreadSanitizer; the emulator itself never is.
    again: whatever the cache holds.
    Raises BuildError.
    """
    find_sources()
    command, version = compiler()
    at_once = jobs_at_once()
    common = options_for_all()
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
    if is_whole(library) and not again:
        touch(library)
        return library

    missing = [job for job in jobs if again or not is_whole(job[2])]
    for file in (library, *(target for *_, target in missing)):
        if os.path.exists(file):  # unlike Path.exists also where a folder cannot be read
            print(f"minigpt_ext: {file} cannot be used, and is built again", file=sys.stderr)
    began = time.monotonic()
    if missing:
        files = "1 file" if len(missing) == 1 else f"{len(missing)} files"
        print(f"minigpt_ext: building {name} ({files}) ...", end="", file=sys.stderr, flush=True)

    def compile_one(job: tuple[Path, list[str], Path]) -> None:
        source, options, target = job
        compile_object([*command, *options], source, target)

    try:
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(compile_one, missing))
        with written_whole(library) as part:
            objects = [str(target) for *_, target in jobs]
            run([*command, "-shared", "-Wl,-z,defs", *objects, *link, "-ldl", "-o", str(part)], f"linking {name}")
    except BuildError as error:  # a pool's traceback tells nothing about a kernel
        raise error.with_traceback(None) from None
    finally:
        if missing:
            print(f" {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    for *_, target in jobs:
        touch(target)
    remove_old(folder)
    return library


def remove_old(folder: Path) -> None:
    """What has not been used for a month goes, and what a build that was killed has left for a day."""
    now = time.time()
    kept_for = {"*.so": KEPT_FOR_DAYS, "objects/*.o": KEPT_FOR_DAYS, ".building-*": 1, "objects/.building-*": 1}
    for pattern, days in kept_for.items():
        for path in folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < now - days * 86400:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
