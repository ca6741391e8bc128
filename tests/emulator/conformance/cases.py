"""All conformance cases: inputs, and what the PTX ISA and CUDA's documents say comes out.

record_conformance.py has a GPU answer them, test_conformance.py the emulator.
"""

from pathlib import Path

from .basic_cases import basic_runs
from .run import Run
from .sm80_cases import sm80_runs
from .sm90_cases import sm90_runs
from .wgmma_cases import wgmma_runs

HERE = Path(__file__).parent
ARCHITECTURES = {"basic": "80", "sm80": "80", "sm90": "90a", "sm90_wgmma": "90a"}  # of each .cu file


def runs() -> list[Run]:
    return [*basic_runs(), *sm80_runs(), *sm90_runs(), *wgmma_runs()]
