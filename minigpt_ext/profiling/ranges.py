"""Ranges: stretches of a run that carry the name of a part of the model, for the profiler that looks on.

    data, forward, backward, optimizer             a training step
    prefill, token                                 generation
    embedding, block N, ln_f, head, loss           within a forward pass
    attention, mlp                                 within a block, each with its LayerNorm and its residual

They are off unless `shown` turns them on. Off, a range costs one comparison and an empty with block. The choice is a
plain module global, as in minigpt_ext/backend.py: torch.compile guards on that, and a compiled model holds no ranges.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch

_NOTHING = contextlib.nullcontext()
_begin: Callable[[str], contextlib.AbstractContextManager] | None = None


def part(name: str) -> contextlib.AbstractContextManager:
    """The range `name`, to be entered by a with statement. In a compiled graph there is none: parts are fused there."""
    if _begin is None or torch.compiler.is_compiling():
        return _NOTHING
    return _begin(name)


@contextlib.contextmanager
def shown(to: str) -> Iterator[None]:
    """Turns ranges on inside the with block, in all threads.

    Args:
        to: "nvtx" for NVIDIA's tools (nsys, ncu), "torch" for torch.profiler.

    Raises:
        ValueError: `to` is neither.
        RuntimeError: "nvtx", and this torch was built without CUDA.
    """
    global _begin
    if to not in _WAYS:
        raise ValueError(f"to must be one of {', '.join(_WAYS)}, not {to!r}")
    if to == "nvtx" and torch.version.cuda is None:
        raise RuntimeError(f"torch {torch.__version__} was built without CUDA, and so without NVTX")
    before, _begin = _begin, _WAYS[to]
    try:
        yield
    finally:
        _begin = before


@contextlib.contextmanager
def _nvtx(name: str) -> Iterator[None]:
    torch.cuda.nvtx.range_push(name)
    try:
        yield
    finally:
        torch.cuda.nvtx.range_pop()


_WAYS = {"nvtx": _nvtx, "torch": torch.profiler.record_function}
