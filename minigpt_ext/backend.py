"""Which implementation an op uses: this package's kernels, torch's own op, or the CUDA kernels in the emulator.

    with mg.backend("torch"): ...                      every op
    with mg.backend(attention="torch"): ...            one op, the others as before
    with mg.backend("emulated", check="race"): ...     the CUDA kernels, on CPU tensors, with the race checker
    MINIGPT_BACKEND=torch                              the same for a whole process,
    MINIGPT_BACKEND=attention=emulated,gelu=kernels    or op by op,
    MINIGPT_EMULATOR_CHECK=race MINIGPT_EMULATOR_SEED=7  and how the emulator runs them

The choice is made at each call of an op; the backward of a call uses what its forward used. It is held in plain module
globals: torch.compile guards on those, while a ContextVar would break a fullgraph compile. It is not per thread.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator

import torch

OPS = (
    "attention",
    "layer_norm",
    "gelu",
    "kv_append",
    "decode_attention",
    "rope",
    "rms_norm",
    "swiglu",
    "relu_squared",
    "cross_entropy",
    "dropout",
)
BACKENDS = ("kernels", "torch", "emulated")
CHECKS = ("none", "race")
OLDEST_CAPABILITY = (8, 0)


def _checked(op: str, name: str, where: str) -> tuple[str, str]:
    if op not in OPS:
        raise ValueError(f"{where}: no op is called {op!r}; there are {', '.join(OPS)}")
    if name not in BACKENDS:
        raise ValueError(f"{where}: no backend is called {name!r}; there are {', '.join(BACKENDS)}")
    return op, name


def _checked_emulation(check: str, seed: int | str, check_argument: str, seed_argument: str) -> dict[str, str | int]:
    if check not in CHECKS:
        raise ValueError(f"{check_argument}: no check is called {check!r}; there are {', '.join(CHECKS)}")
    if not str(seed).isdecimal() or int(seed) >= 2**63:
        raise ValueError(f"{seed_argument} must be an integer from 0 (in order) up to 2^63 - 1, got {seed!r}")
    return {"check": check, "seed": int(seed)}


def _from_environment(text: str) -> dict[str, str]:
    chosen = dict.fromkeys(OPS, "kernels")
    for part in filter(None, (part.strip() for part in text.split(","))):
        op, equals, name = (word.strip() for word in part.partition("="))
        if equals:
            chosen.update([_checked(op, name, "MINIGPT_BACKEND")])
        else:
            chosen.update(_checked(each, op, "MINIGPT_BACKEND") for each in OPS)
    return chosen


# A wrong variable is told when an op is called, not while the package is imported, so that the commands can tell it in
# one line.
environment_error: ValueError | None = None
_chosen, _emulation = dict.fromkeys(OPS, "kernels"), {"check": "none", "seed": 0}
try:
    _chosen = _from_environment(os.environ.get("MINIGPT_BACKEND", ""))
    _emulation = _checked_emulation(
        os.environ.get("MINIGPT_EMULATOR_CHECK") or "none",
        os.environ.get("MINIGPT_EMULATOR_SEED") or 0,
        "MINIGPT_EMULATOR_CHECK",
        "MINIGPT_EMULATOR_SEED",
    )
except ValueError as error:
    environment_error = error


@contextlib.contextmanager
def backend(
    name: str | None = None, /, *, check: str | None = None, seed: int | None = None, **ops: str
) -> Iterator[None]:
    """Chooses the implementation for the ops called inside the with block.

    name: "kernels", "torch" or "emulated", for every op; keyword arguments name single ops and go before it:
        `backend("torch", gelu="kernels")`. "emulated" runs the CUDA kernels on CPU tensors; the emulator is compiled
        when it is first used.
    check: of emulated ops: "race" for the build that sees every access to memory (races, bounds, uninitialised shared
        memory), "none" for the faster one.
    seed: of emulated ops: 0 runs threads in order, any other number in an order drawn from it.
    Blocks nest; what is not named stays as it was. Raises ValueError for a name that is none of these.
    """
    if name is None and not ops and check is None and seed is None:
        raise ValueError(f"backend: say which, one of {', '.join(BACKENDS)}, for all ops or as op=...")
    wanted = dict(_checked(op, name, "backend") for op in OPS) if name is not None else {}
    wanted.update(_checked(op, each, "backend") for op, each in ops.items())
    emulation = _checked_emulation(
        _emulation["check"] if check is None else check,
        _emulation["seed"] if seed is None else seed,
        "backend: check",
        "backend: seed",
    )
    before, emulation_before = dict(_chosen), dict(_emulation)
    _chosen.update(wanted)
    _emulation.update(emulation)
    try:
        yield
    finally:
        _chosen.update(before)
        _emulation.update(emulation_before)


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


def implementation(op: str, device: torch.device) -> str:
    """What a call of `op` on `device` uses: "kernels", "torch", "emulated", or "emulated+race".

    Says so once where torch's op must stand in for the kernels. Raises ValueError where an environment variable is
    wrong, or where emulation is asked for of a tensor that is not the CPU's.
    """
    if environment_error:
        raise environment_error
    chosen = _chosen[op]
    if chosen == "torch":
        return "torch"
    if chosen == "emulated" and device.type != "meta":
        if device.type != "cpu":
            raise ValueError(f"{op}: the emulator runs the CUDA kernels on CPU tensors; these are on {device}")
        return "emulated+race" if _emulation["check"] == "race" else "emulated"
    if device.type in ("cpu", "meta"):
        return "kernels"
    if device not in _usable:
        reason = why_no_kernels(device)
        _usable[device] = reason is None
        if reason:
            warnings.warn(f"minigpt_ext: {reason}; torch's ops run on {device} instead", stacklevel=3)
    return "kernels" if _usable[device] else "torch"


def emulation() -> tuple[str, int]:
    """The check and the seed the emulator is to run with now. Raises ValueError for a wrong environment variable."""
    if environment_error:
        raise environment_error
    return _emulation["check"], _emulation["seed"]


def library(implementation: str):
    """The ops of an implementation other than torch's, by the names of their schemas."""
    if implementation == "kernels":
        return torch.ops.minigpt
    from . import emulator

    return emulator.ops(checked=implementation == "emulated+race", seed=_emulation["seed"])
