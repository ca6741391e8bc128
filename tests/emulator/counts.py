"""Counting what one launch asks of memory, for the tests of the counters."""

from pathlib import Path

import minigpt_ext as mg
from minigpt_ext.emulator.counters import Launches

KERNELS = Path(__file__).parent / "kernels"


def launches_of(library: mg.emulator.libraries.Library, launcher: str, *arguments, seed: int = 0) -> Launches:
    with mg.emulator.counted(library) as found:
        library.call(launcher, *arguments, seed=seed)
    (launch,) = found
    return launch


def totals(
    launch: Launches, kind: str, file: str | None = None, line: int | None = None
) -> tuple[int, int, int, int, int]:
    """(requests, bytes, units, ideal, worst) of all lines of one kind, or of one of them."""
    lines = [each for each in launch.lines if each.kind == kind and line in (None, each.line)]
    sums = [sum(getattr(each, name) for each in lines) for name in ("requests", "bytes", "units", "ideal")]
    return (*sums, max((each.worst for each in lines), default=0))
