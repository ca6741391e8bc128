"""What a kernel would ask of a GPU's memory: requests, sectors and bank conflicts, for each line of its source."""

import contextlib
import ctypes
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .build import BuildError
from .libraries import Library, ops

# As in csrc/emulator/places.cpp: what stands here is told as its caller's doing.
_PLUMBING = (
    *(f"/emulator/{name}.h" for name in ("cuda", "device", "tensor_core", "hopper", "wgmma_matrix", "bits")),
    *(f"/common/{name}.cuh" for name in ("device", "tensor_core", "hopper", "vector")),
    "/cuda_bf16.hpp",
    "/cuda_fp16.hpp",
)


@dataclass
class Line:
    """Accesses of one kind that one line of a kernel makes; csrc/emulator/counters.cpp has the rules.

    kind: "global load", "global store", "global atomic", or the same of shared memory.
    requests: instructions of a warp. bytes: what all its lanes ask for.
    units: summed over requests, of global memory the 32-byte sectors touched; of shared memory the wavefronts; of
        atomics the lanes on the address that most are on.
    ideal: units if the same bytes lay side by side (global), if no two words (shared) or lanes (atomics) met.
    worst: of one request, the most sectors, words that met in a bank, or lanes on one address; 1 is without conflict.
    """

    file: str
    line: int
    kind: str
    requests: int = 0
    bytes: int = 0
    units: int = 0
    ideal: int = 0
    worst: int = 0

    @property
    def place(self) -> str:
        return f"{Path(self.file).name}:{self.line}"


@dataclass
class Launches:
    """All launches of one kernel on one grid.

    kernel: its name as launched. function: with its template arguments, or "" where the debug information has none.
    bytes_read, bytes_written: of global memory, each byte once a launch.
    tensor_flops: of mma.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_bytes: int
    static_bytes: int
    launches: int
    bytes_read: int
    bytes_written: int
    tensor_flops: int
    function: str = ""
    lines: list[Line] = field(default_factory=list)

    @property
    def bytes_asked_for(self) -> int:
        """Of global memory, by loads and stores."""
        return sum(line.bytes for line in self.lines if line.kind.startswith("global"))


@contextlib.contextmanager
def counted(library: Library | None = None) -> Iterator[list[Launches]]:
    """Counts what the kernels launched inside the with block ask of memory; the list is filled at its end.

    library: of `compile(..., check="race")`; by default that of `mg.backend("emulated", check="race")`.
    Raises ValueError for a library without the checker, BuildError where there is no addr2line to tell lines.
    """
    library = library or ops(checked=True).library
    if not hasattr(library.c, "minigpt_emulator_count"):
        raise ValueError('counted: the library sees no accesses to memory; compile it with check="race"')
    found: list[Launches] = []
    library.c.minigpt_emulator_count(1)
    try:
        yield found
    finally:
        library.c.minigpt_emulator_count(0)
    found += _launches(library)


def _launches(library: Library) -> list[Launches]:
    library.c.minigpt_emulator_counts.restype = ctypes.c_char_p
    text = library.c.minigpt_emulator_counts().decode()
    chains = _chains(library.path, [int(row.split("\t")[1]) for row in text.splitlines() if row.startswith("line")])
    found: list[Launches] = []
    rows: dict[tuple, Line] = {}
    for row in text.splitlines():
        kind, *values = row.split("\t")
        if kind == "launch":
            name, *numbers = values
            gx, gy, gz, bx, by, bz, *rest = map(int, numbers)
            found.append(Launches(name, (gx, gy, gz), (bx, by, bz), *rest))
            rows = {}
            continue
        launch, chain = found[-1], chains[int(values[0])]
        launch.function = launch.function or next((f for f, *_ in reversed(chain) if launch.kernel in f), "")
        file, line = next(((file, line) for _, file, line in chain if not file.endswith(_PLUMBING)), ("?", 0))
        requests, nbytes, units, ideal, worst = map(int, values[2:])
        if (file, line, values[1]) not in rows:
            rows[file, line, values[1]] = Line(file, line, values[1])
            launch.lines.append(rows[file, line, values[1]])
        total = rows[file, line, values[1]]
        total.requests += requests
        total.bytes += nbytes
        total.units += units
        total.ideal += ideal
        total.worst = max(total.worst, worst)
    for launch in found:
        launch.lines.sort(key=lambda line: (line.file, line.line, line.kind))
    return found


_Chain = list[tuple[str, str, int]]
_known: dict[Path, dict[int, _Chain]] = {}  # library -> address -> its chain: a library at a path never changes


def _chains(library: Path, addresses: list[int]) -> dict[int, _Chain]:
    """(function, file, line) of each address, from the innermost inlined function out to the kernel."""
    known = _known.setdefault(library, {})
    if missing := sorted({address for address in addresses if address not in known}):
        command = ["addr2line", "-a", "-f", "-C", "-i", "-e", str(library)]
        try:
            told = subprocess.run(
                command, input="\n".join(map(hex, missing)), capture_output=True, text=True, check=True
            )
        except FileNotFoundError:
            raise BuildError("telling the lines of a kernel needs binutils' addr2line, and there is none") from None
        chain: _Chain = []
        lines = iter(told.stdout.splitlines())
        for line in lines:  # an address; then a function and a place, once for each function it is inlined into
            if line.startswith("0x"):
                chain = known[int(line, 16)] = []
            else:
                file, _, number = next(lines).partition(" (discriminator")[0].rpartition(":")
                chain.append((line, file, int(number) if number.isdigit() else 0))
    return known
