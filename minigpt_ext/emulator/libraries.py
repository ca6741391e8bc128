"""The emulator's libraries, compiled and loaded on demand, and their errors as exceptions."""

import contextlib
import ctypes
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..backend import CHECKS, emulation
from .build import CSRC, BuildError, build_library
from .launchers import Launcher, launchers_of

_lock = threading.RLock()  # one launch at a time


class EmulatorError(RuntimeError):
    """What a GPU would have done wrong, or silently differently: a race, a deadlock, an access out of bounds ...

    kernel: its name. block, thread: (x, y, z). file, line: where in the kernel's source; line 0 where it is not known.
    seed: of the order in which the threads ran; `mg.backend("emulated", seed=...)` repeats it.
    """

    def __init__(self, message: str, kernel: str, block: tuple, thread: tuple, file: str, line: int, seed: int):
        super().__init__(message)
        self.kernel, self.block, self.thread = kernel, block, thread
        self.file, self.line, self.seed = file, line, seed


@dataclass
class Statistics:
    """What the emulator has done in this process. seconds: of wall time inside calls of ops."""

    calls: int = 0
    seconds: float = 0.0
    launches: int = 0
    blocks: int = 0
    switches: int = 0
    meetings: int = 0


_spent = {False: Statistics(), True: Statistics()}


class Library:
    """A loaded shared library of kernels with the emulator in it. launchers: what `call` can call, by name.

    Raises OSError where the file cannot be loaded.
    """

    def __init__(self, path: Path):
        self.path = path
        self.launchers: dict[str, Launcher] = {}
        self.c = ctypes.CDLL(str(path))
        self.c.minigpt_emulator_seed.argtypes = [ctypes.c_uint64]
        self.c.minigpt_emulator_failure.restype = ctypes.c_void_p
        for name in ("minigpt_emulator_call", "minigpt_emulator_copy_in"):
            getattr(self.c, name).restype = ctypes.c_char_p

    def failure(self, message: str, seed: int) -> EmulatorError:
        numbers = (ctypes.c_int * 7)()
        address = self.c.minigpt_emulator_failure(numbers)
        texts = []
        for _ in range(3):
            texts.append(ctypes.string_at(address))
            address += len(texts[-1]) + 1
        _, kernel, file = (text.decode(errors="replace") for text in texts)
        line, *places = numbers
        return EmulatorError(message, kernel, tuple(places[:3]), tuple(places[3:]), file, line, seed)

    def statistics(self) -> list[int]:
        four = (ctypes.c_int64 * 4)()
        self.c.minigpt_emulator_statistics(four)
        return list(four)

    def call(self, launcher: str, *arguments: Tensor | int, seed: int | None = None) -> None:
        """Calls `extern "C" void launcher(...)`, whose parameters are pointers and integers, up to 12.

        A tensor (on the CPU, of any strides) is handed over as a pointer to its place in device memory, and changed
        where the kernel writes to it; one that is handed over twice has one place. 0 for a pointer is a null pointer.
        seed: of the order in which the threads run, 0 to 2^63 - 1; by default that of `mg.backend(seed=...)` or
            MINIGPT_EMULATOR_SEED.
        Raises EmulatorError; AttributeError where the sources have no such launcher; TypeError for other arguments than
        it takes; OverflowError for an integer that does not fit; ValueError for a seed that is none, and for two
        tensors that share some elements but are not the same.
        """
        if launcher not in self.launchers:
            known = ", ".join(map(str, self.launchers.values())) or "none"
            raise AttributeError(
                f'there is no launcher {launcher!r}; there are {known}. A launcher is a function that is extern "C"'
            )
        if seed is None:
            _, seed = emulation()
        if not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise ValueError(f"{launcher}: seed must be an integer from 0 (in order) up to 2^63 - 1, got {seed!r}")
        self.launchers[launcher].check(arguments)
        _refuse_overlaps(launcher, arguments)
        function = getattr(self.c, launcher)
        with _lock:
            self.c.minigpt_emulator_seed(seed)
            places: dict[tuple, int] = {}  # a tensor handed over twice is one place
            values = []
            for argument in arguments:
                if isinstance(argument, Tensor):
                    key = _identity(argument)
                    if key not in places:
                        places[key] = self._on_device(argument)
                    argument = places[key]
                values.append(argument)
            values += [0] * (12 - len(values))
            error = self.c.minigpt_emulator_call(ctypes.cast(function, ctypes.c_void_p), (ctypes.c_int64 * 12)(*values))
            if error:
                raise self.failure(error.decode(errors="replace"), seed)

    def _on_device(self, t: Tensor) -> int:
        place = ctypes.c_void_p()
        shape = ctypes.c_int64 * t.dim()
        error = self.c.minigpt_emulator_copy_in(
            ctypes.c_void_p(t.data_ptr()),
            t.dim(),
            shape(*t.shape),
            shape(*t.stride()),
            t.element_size(),
            1,
            ctypes.byref(place),
        )
        if error:
            raise RuntimeError(error.decode(errors="replace"))
        return place.value or 0


def _identity(t: Tensor) -> tuple:
    return t.data_ptr(), tuple(t.shape), t.stride(), t.dtype


def _refuse_overlaps(launcher: str, arguments: Sequence[Tensor | int]) -> None:
    """Raises ValueError for two views that share elements: each would have a place of its own on the device."""
    tensors = [(i, t) for i, t in enumerate(arguments) if isinstance(t, Tensor) and t.numel()]
    for (i, a), (j, b) in itertools.combinations(tensors, 2):
        if _identity(a) != _identity(b) and _share_bytes(a, b):
            raise ValueError(
                f"{launcher}: arguments {i} and {j} are different views of the same elements, of shapes "
                f"{tuple(a.shape)} and {tuple(b.shape)}; pass one of them"
            )


def _share_bytes(a: Tensor, b: Tensor) -> bool:
    begins = [t.data_ptr() for t in (a, b)]
    ends = [
        begin + t.element_size() * (1 + sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True)))
        for begin, t in zip(begins, (a, b), strict=True)
    ]
    if max(begins) >= min(ends):
        return False
    # The columns of one matrix lie between each other and share nothing: so mark the bytes of one, look at the other's.
    marks = torch.zeros(max(ends) - min(begins), dtype=torch.bool)

    def bytes_of(t: Tensor) -> Tensor:
        sizes = [n if step else 1 for n, step in zip(t.shape, t.stride(), strict=True)]
        size = t.element_size()
        strides = [size * step for step in t.stride()]
        return marks.as_strided((*sizes, size), (*strides, 1), t.data_ptr() - min(begins))

    bytes_of(a).fill_(True)
    return bool(bytes_of(b).any())


def load(name: str, sources: list[Path], flags: list[str], link: list[str], checked: bool) -> Library:
    """Builds a library and loads it; one in the cache that cannot be loaded is built again, once. Raises BuildError."""
    path = build_library(name, sources, flags, link, checked=checked)
    try:
        return Library(path)
    except OSError as error:
        print(f"minigpt_ext: {error}", file=sys.stderr)
    path = build_library(name, sources, flags, link, checked=checked, again=True)
    try:
        return Library(path)
    except OSError as error:
        raise BuildError(f"{name} was built, and cannot be loaded: {error}") from None


class Ops:
    """The ops of csrc/ops.h on the emulated CUDA kernels, by name."""

    def __init__(self, checked: bool):
        self.checked = checked
        self.seed = 0
        namespace = "minigpt_emulated_checked" if checked else "minigpt_emulated"
        torch_folder = Path(torch.__file__).parent
        flags = [
            f"-DMINIGPT_EMULATOR_NAMESPACE={namespace}",
            "-DTORCH_TARGET_VERSION=0x020b000000000000",
            f"-I{torch_folder / 'include'}",
            f"-I{torch_folder / 'include/torch/csrc/api/include'}",
        ]
        sources = [CSRC / "emulator" / "library.cpp"]
        sources += sorted(CSRC.glob("*/*_op.cpp")) + sorted(CSRC.glob("*/*_cuda.cu"))
        link = [f"-L{torch_folder / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
        self.library = load("race checker" if checked else "emulator", sources, flags, link, checked)
        self.namespace = getattr(torch.ops, namespace)

    def __getattr__(self, name: str) -> Callable:
        op = getattr(self.namespace, name)

        @torch.compiler.disable(reason="the emulator runs outside of compiled graphs")
        def call(*arguments):
            with _lock:
                self.library.c.minigpt_emulator_seed(self.seed)
                began = time.perf_counter()
                try:
                    return op(*arguments)
                except RuntimeError as error:
                    if str(error).startswith("CUDA emulator: "):
                        raise self.library.failure(str(error), self.seed) from None
                    raise
                finally:
                    spent = _spent[self.checked]
                    spent.calls += 1
                    spent.seconds += time.perf_counter() - began

        return call


_ops: dict[bool, Ops] = {}


@torch.compiler.disable(reason="the emulator runs outside of compiled graphs")
def ops(*, checked: bool = False, seed: int = 0) -> Ops:
    """The ops on emulated CUDA kernels, compiled and loaded where they are not yet. Raises BuildError."""
    with _lock:
        if checked not in _ops:
            _ops[checked] = Ops(checked)
        _ops[checked].seed = seed
        return _ops[checked]


def statistics(*, checked: bool = False) -> Statistics:
    """What the plain or the checking build has done so far in this process."""
    spent = _spent[checked]
    if checked in _ops:
        spent.launches, spent.blocks, spent.switches, spent.meetings = _ops[checked].library.statistics()
    return spent


def compile(*sources: str | Path, check: str | None = None) -> Library:
    """Compiles .cu files of your own with the emulator. They may include csrc's headers ("common/device.cuh" ...).

    check: "race" for the checking build, "none" for the faster one; by default that of `mg.backend(check=...)` or
        MINIGPT_EMULATOR_CHECK. Launchers are `extern "C"` functions; see Library.call.
    Raises BuildError with the compiler's message, FileNotFoundError, ValueError.
    """
    if check is None:
        check, _ = emulation()
    if check not in CHECKS:
        raise ValueError(f"compile: check must be 'none' or 'race', got {check!r}")
    if not sources:
        raise ValueError("compile: name at least one .cu file")
    files = [Path(source).resolve() for source in sources]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"compile: there is no file {file}")
    library = load(files[0].stem, files, ["-fvisibility=default"], [], check == "race")
    library.launchers = launchers_of(files)
    return library


@contextlib.contextmanager
def without(file: str, line: int, *libraries: Library) -> Iterator[None]:
    """Inside the block the barrier, commit, wait or fence at this line of a kernel does nothing.

    file: the end of its path, such as "attention/attention_forward.cuh". To see what a test says without it.
    """
    chosen = libraries or tuple(each.library for each in _ops.values())
    for library in chosen:
        library.c.minigpt_emulator_remove(file.encode(), line)
    try:
        yield
    finally:
        for library in chosen:
            library.c.minigpt_emulator_remove(b"", 0)
