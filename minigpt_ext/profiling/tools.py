"""The profilers `minigpt profile` offers: a line here and a module beside this one each."""

import importlib
from dataclasses import dataclass

from minigpt_ext.profiling.job import Job


@dataclass(frozen=True)
class Tool:
    """A profiler.

    Attributes:
        module: the one in this package whose `profile(job)` prints what the tool finds. It raises ValueError where the
            job makes no sense, and ToolFailed where the tool fails.
        devices: where what it looks at runs; the first one is meant where none is named.
        about: a few words for --help.
    """

    module: str
    devices: tuple[str, ...]
    about: str


TOOLS = {
    "ncu": Tool("ncu", ("cuda",), "a GPU's counters, a row a kernel of ours"),
    "nsys": Tool("nsys", ("cuda",), "every kernel of a GPU, and the ranges they ran in"),
    "torch": Tool("torch_profiler", ("cpu", "cuda"), "ranges and ops, and a Chrome trace"),
    "emulator": Tool("emulated", ("cpu",), "what an op's CUDA kernels ask of memory, line by line, without a GPU"),
    "none": Tool("plain", ("cpu", "cuda"), "only run it, for a tool you start yourself"),
}


def default_tool(what: str, device: str) -> str:
    """The tool that tells most of `what` (an op, "train" or "generate") on a device."""
    if device != "cuda":
        return "torch"
    return "nsys" if what in ("train", "generate") else "ncu"


def profile(tool: str, job: Job) -> None:
    """Hands the job to a tool of the table; see Tool.module for what is raised."""
    importlib.import_module(f"minigpt_ext.profiling.{TOOLS[tool].module}").profile(job)
