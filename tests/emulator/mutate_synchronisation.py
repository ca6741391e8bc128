"""Is every synchronisation of the kernels needed, and would its loss be noticed?

    python tests/emulator/mutate_synchronisation.py

Each barrier, commit, wait, fence and arrival in csrc's kernels is left out in turn, at run time, and its room's ops run
in order, under two random orders, and in the race checker. What none of them notices must say so in its line or the
line above: `// equivalent without: why`. Otherwise a case is missing here, or the call is not needed.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import minigpt_ext as mg
from minigpt_ext.emulator.build import CSRC

RUNS = {"in order": ("none", 0), "seed 1": ("none", 1), "seed 2": ("none", 2), "race checker": ("race", 0)}
CALL = re.compile(
    r"\b(__sync(?:threads|warp)|grid_barrier|\w*fence\w*"
    r"|(?:cp_async|tma_store|wgmma|mbarrier|named_barrier)_(?:commit|wait|arrive|sync)\w*)\s*(?:<[^<>]*>)?\("
)
WRAPPERS = {"device.cuh", "tensor_core.cuh", "hopper.cuh", "tensor_map.cuh"}  # in common/: they define the calls


@dataclass(frozen=True)
class Synchronisation:
    file: str  # within csrc
    line: int
    call: str
    reason: str | None  # why nothing notices where it is missing

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def synchronisations(csrc: Path = CSRC) -> list[Synchronisation]:
    """Every call in the kernels, in the order of their files."""
    found = []
    for path in sorted({*csrc.rglob("*.cuh"), *csrc.rglob("*.cu")}):
        if path.parent.name == "emulator" or (path.parent.name == "common" and path.name in WRAPPERS):
            continue
        lines = path.read_text().splitlines()
        for number, text in enumerate(lines, 1):
            calls = CALL.findall(text.partition("//")[0])
            if len(calls) > 1:
                raise ValueError(f"{path}:{number}: {len(calls)} calls in one line; they cannot be left out one by one")
            reason = re.search(r"// equivalent without: (\S.*)", "\n".join(lines[max(0, number - 2) : number]))
            for call in calls:
                found.append(Synchronisation(str(path.relative_to(csrc)), number, call, reason and reason[1]))
    return found


# ---- what is run ----------------------------------------------------------------------------------------------------


def with_gradients(out: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [out, *torch.autograd.grad(out, inputs, torch.randn_like(out))]


def layer_norm() -> list[Tensor]:
    """Rows of more than a warp; 9 of them make three runs, and 1,030 columns 33 tiles."""
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((9, 1030), (1030,), (1030,)))
    return with_gradients(mg.ops.layer_norm(x, weight, bias), x, weight, bias)


def rms_norm() -> list[Tensor]:
    """As layer_norm, whose barriers it shares."""
    x, weight = (torch.randn(*shape, requires_grad=True) for shape in ((9, 1030), (1030,)))
    return with_gradients(mg.ops.rms_norm(x, weight), x, weight)


def attention() -> list[Tensor]:
    """Several tiles of queries and of keys for two heads that share keys. In float64 tiles are small: the wide heads
    have 16 x 16 in the forward and 8 x 8 in the backward, the others 32 x 32."""
    results = []
    for T, D in ((20, 65), (40, 5)):
        q = torch.randn(1, T, 2, D, dtype=torch.float64, requires_grad=True)
        k, v = (torch.randn(1, T, 1, D, dtype=torch.float64, requires_grad=True) for _ in range(2))
        results += with_gradients(mg.ops.attention(q, k, v, causal=False), q, k, v)
    return results


def decode_attention() -> list[Tensor]:
    """A cache of two splits, and one of a single one."""
    results = []
    for block_size in (320, 20):
        q, k, v = torch.randn(1, 1, 2, 8), torch.randn(2, block_size, 1, 8), torch.randn(2, block_size, 1, 8)
        table, lens = (torch.tensor(t, dtype=torch.int32) for t in ([[1, 0]], [2 * block_size]))
        results.append(mg.ops.decode_attention(q, k, v, table, lens))
    return results


def cross_entropy() -> list[Tensor]:
    """Rows that a whole block shares."""
    logits = torch.randn(3, 2050, requires_grad=True)
    loss = mg.ops.cross_entropy(logits, torch.tensor([5, -1, 2049]))
    return [loss, *torch.autograd.grad(loss, logits)]


CASES: dict[str, Callable[[], list[Tensor]]] = {
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "attention": attention,
    "decode_attention": decode_attention,
    "cross_entropy": cross_entropy,
}


def run(case: Callable[[], list[Tensor]], check: str, seed: int) -> list[Tensor]:
    torch.manual_seed(0)
    with mg.backend("emulated", check=check, seed=seed):
        return [t.detach() for t in case()]


def notice(case: Callable[[], list[Tensor]], right: list[Tensor], check: str, seed: int) -> str | None:
    """What a run says: the first line of its error, that its values are others, or nothing."""
    try:
        results = run(case, check, seed)
    except mg.emulator.EmulatorError as error:
        return str(error).removeprefix("CUDA emulator: ").splitlines()[0]
    return None if all(torch.equal(a, b) for a, b in zip(results, right, strict=True)) else "other values"


def notices(one: Synchronisation, right: dict[str, list[Tensor]]) -> dict[str, str]:
    """What each of the runs says without this call, of those that say anything."""
    room = one.file.split("/")[0]
    found = {}
    with mg.emulator.without(one.file, one.line):
        for name in CASES if room == "common" else [room]:
            for label, (check, seed) in RUNS.items():
                if label not in found and (said := notice(CASES[name], right[name], check, seed)):
                    found[label] = said
    return found


def table() -> tuple[str, list[Synchronisation]]:
    """A line a call, and those that nothing noticed and no comment explains."""
    lines, survivors = [], []
    right = {name: run(case, "none", 0) for name, case in CASES.items()}
    run(CASES["layer_norm"], "race", 0)  # loads the race checker: `without` reaches what is loaded
    for one in synchronisations():
        found = notices(one, right)
        lines.append(f"{one}  {one.call}")
        lines += [f"    {label}: {said}" for label, said in found.items()]
        if not found:
            lines.append(f"    equivalent without: {one.reason}" if one.reason else "    SURVIVES")
            survivors += [] if one.reason else [one]
    return "\n".join(lines), survivors


if __name__ == "__main__":
    text, missed = table()
    print(text)
    print(f"{len(synchronisations())} calls, {len(missed)} survive")
    sys.exit(bool(missed))
