"""Which implementation an op uses: this package's kernels, or torch's own op.

    with mg.backend("torch"): ...                      every op
    with mg.backend(attention="torch"): ...            one op, the others as before
    MINIGPT_BACKEND=torch                              the same for a whole process,
    MINIGPT_BACKEND=attention=torch,gelu=kernels       or op by op

The choice is made at each call of an op; the backward of a call uses what its forward used. It is held in a plain
module global: torch.compile guards on that, while a ContextVar would break a fullgraph compile. It is not per thread.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator

import torch

OPS = ("attention", "layer_norm", "gelu", "kv_append", "decode_attention")
BACKENDS = ("kernels", "torch")
OLDEST_CAPABILITY = (8, 0)


def _checked(op: str, name: str, where: str) -> tuple[str, str]:
    if op not in OPS:
        raise ValueError(f"{where}: no op is called {op!r}; there are {', '.join(OPS)}")
    if name not in BACKENDS:
        raise ValueError(f"{where}: no backend is called {name!r}; there are {', '.join(BACKENDS)}")
    return op, name


def _from_environment(text: str) -> dict[str, str]:
    chosen = dict.fromkeys(OPS, "kernels")
    for part in filter(None, (part.strip() for part in text.split(","))):
        op, equals, name = (word.strip() for word in part.partition("="))
        if equals:
            chosen.update([_checked(op, name, "MINIGPT_BACKEND")])
        else:
            chosen.update(_checked(each, op, "MINIGPT_BACKEND") for each in OPS)
    return chosen


# A wrong MINIGPT_BACKEND is told when an op is called, not while the package is imported, so that the commands can
# tell it in one line.
environment_error: ValueError | None = None
try:
    _chosen = _from_environment(os.environ.get("MINIGPT_BACKEND", ""))
except ValueError as error:
    environment_error, _chosen = error, dict.fromkeys(OPS, "kernels")


@contextlib.contextmanager
def backend(name: str | None = None, /, **ops: str) -> Iterator[None]:
    """Chooses the implementation for the ops called inside the with block.

    name: "kernels" or "torch", for every op; keyword arguments name single ops and go before it:
    `backend("torch", gelu="kernels")`. Blocks nest. Raises ValueError for a name that is neither an op nor a backend.
    """
    if name is None and not ops:
        raise ValueError(f"backend: say which, one of {', '.join(BACKENDS)}, for all ops or as op=...")
    wanted = dict(_checked(op, name, "backend") for op in OPS) if name is not None else {}
    wanted.update(_checked(op, each, "backend") for op, each in ops.items())
    before = dict(_chosen)
    _chosen.update(wanted)
    try:
        yield
    finally:
        _chosen.update(before)


def why_no_kernels(device: torch.device) -> str | None:
    """Why the kernels cannot run on a device, in words for a person; None where they can."""
    if device.type in ("cpu", "meta"):
        return None
    if device.type != "cuda":
        return f"there are no kernels for {device.type} devices"
    if not torch._C._dispatch_has_kernel_for_dispatch_key("minigpt::gelu_forward", "CUDA"):
        return "minigpt_ext was built without CUDA kernels (build it where nvcc is, or with MINIGPT_CUDA=1)"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_CAPABILITY:
        return "{} has compute capability {}.{}, the kernels need 8.0".format(
            torch.cuda.get_device_name(device), *capability
        )
    return None


_usable: dict[torch.device, bool] = {}


def uses_kernels(op: str, device: torch.device) -> bool:
    """Whether a call of `op` on `device` goes to this package's kernels. Says so once where torch's op must stand in.

    Raises ValueError where MINIGPT_BACKEND is wrong.
    """
    if environment_error:
        raise environment_error
    if _chosen[op] == "torch":
        return False
    if device.type == "cpu":
        return True
    if device not in _usable:
        reason = why_no_kernels(device)
        _usable[device] = reason is None
        if reason:
            warnings.warn(f"minigpt_ext: {reason}; torch's ops run on {device} instead", stacklevel=3)
    return _usable[device]
