"""The CUDA kernels without a GPU: compiled by a C++ compiler, one fiber a CUDA thread, with a race checker.

    with mg.backend("emulated"): ...                     any op's CUDA kernel, on CPU tensors
    with mg.backend("emulated", check="race"): ...       with every access to memory checked
    library = mg.emulator.compile("my_kernel.cu")        a kernel of your own
    library.call("launch_my_kernel", x, y, 128)

csrc/emulator/README.md shows how to step through a CUDA thread in a debugger, and what the race checker prints.
"""

from .build import BuildError
from .counters import counted
from .libraries import EmulatorError, Statistics, compile, ops, statistics, without

__all__ = ["BuildError", "EmulatorError", "Statistics", "compile", "counted", "ops", "statistics", "without"]
