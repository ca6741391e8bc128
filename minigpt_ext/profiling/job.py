"""What `minigpt profile` was asked for, and the command line that runs just that."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from minigpt_ext.backend import OPS


class ToolFailed(Exception):
    """A profiler was started and did not deliver; the message says what it said and what to do."""


@dataclass(frozen=True)
class Job:
    """A piece of work to profile.

    Attributes:
        what: an op, "train" or "generate".
        device: "cpu" or "cuda".
        dtype: of an op's tensors and of the weights that generate; training computes in it under autocast.
        repeat: how often it is done while the profiler looks on: calls, steps or texts.
        shape, quick: of an op; see `cases.case_of`.
        preset: of the model that trains or generates.
        batch_size: of training; the preset's if None.
        prompt, tokens: of generation, how many tokens are read and how many are made.
        range: for ncu: only kernels in the NVTX range of that name.
        trace: where a tool writes the file it leaves.
        arch: for emulator: what registers are counted for, as nvcc names it.
    """

    what: str
    device: str = "cpu"
    dtype: str = "float32"
    repeat: int = 1
    shape: str | None = None
    quick: bool = False
    preset: str = "tiny"
    batch_size: int | None = None
    prompt: int = 64
    tokens: int = 32
    range: str | None = None
    trace: Path | None = None
    arch: str = "9.0a"

    @property
    def is_op(self) -> bool:
        return self.what in OPS

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cuda", 0) if self.device == "cuda" else torch.device("cpu")

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def unit(self) -> str:
        """What `repeat` counts."""
        return {"train": "step", "generate": "text"}.get(self.what, "call")

    @property
    def summary(self) -> str:
        """The job in words."""
        where = f"{self.dtype} on {self.device}"
        if self.what == "train":
            return f"training of {self.preset}, {where}"
        if self.what == "generate":
            return f"generation by {self.preset}, {self.prompt} tokens read and {self.tokens} made, {where}"
        return f"{self.what} {self.shape or 'of the heaviest shape of its benchmark'}, {where}"

    def command(self) -> list[str]:
        """What a profiler is to start: `minigpt profile` of this job with the tool "none", which just runs it."""
        given = {"--device": self.device, "--dtype": self.dtype, "--repeat": self.repeat}
        if self.is_op:
            given |= {"--shape": self.shape}
        else:
            given |= {"--preset": self.preset}
        if self.what == "train":
            given |= {"--batch-size": self.batch_size}
        if self.what == "generate":
            given |= {"--prompt": self.prompt, "--tokens": self.tokens}
        words = [str(word) for option, value in given.items() if value is not None for word in (option, value)]
        quick = ["--quick"] if self.quick else []
        return [sys.executable, "-m", "minigpt_ext.cli", "profile", self.what, "--tool", "none", *words, *quick]
