"""The card and the ceilings: which machine was measured, and the most it can do, measured in the same run."""

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from timing import best_time

import minigpt_ext
from minigpt_ext.cli.doctor import cpu_name, usable_cores
from minigpt_ext.model.linear import linear

GIB, MIB = 2**30, 2**20
ROTATION_BUDGET = GIB  # the most memory that inputs may take so that they are cold
QUICK_ROTATION_BUDGET = 64 * MIB


def last_cache_bytes(device: torch.device) -> int:
    """Size of the cache nearest to memory; 32 MiB where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [
        int(f.read_text().strip().rstrip("K")) for f in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    ]
    return max(sizes) * 1024 if sizes else 32 * MIB


def rotation_bytes(device: torch.device, quick: bool) -> int:
    """What a case's inputs add up to, to be cold when their turn comes: twice the last cache, within the budget."""
    return min(2 * last_cache_bytes(device), QUICK_ROTATION_BUDGET if quick else ROTATION_BUDGET)


def commit() -> str:
    """The commit of the checkout, with "+changes" where files differ from it; MINIGPT_COMMIT where that is set."""
    if told := os.environ.get("MINIGPT_COMMIT"):
        return told
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        name = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.strip() + ("+changes" if changes else "")


def card(device: torch.device, dtype: torch.dtype, quick: bool) -> dict[str, Any]:
    """What must be known of the machine and the build to read the figures."""
    cache, rotated = last_cache_bytes(device), rotation_bytes(device, quick)
    facts = {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "simd": minigpt_ext._C.simd_level(),
        "device": "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "minigpt_ext": minigpt_ext.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "last_cache_bytes": cache,
        "rotation_bytes": rotated,
    }
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        facts |= {"device": f"{torch.cuda.get_device_name(device)} (sm_{major}{minor})", "cuda": torch.version.cuda}
    return facts


def card_text(facts: dict[str, Any], load: float | None) -> str:
    lines = [
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, {facts['simd']}",
        f"device {facts['device']}, {facts['dtype']}; torch {facts['torch']}, minigpt_ext {facts['minigpt_ext']}, "
        f"commit {facts['commit']}, {facts['date']}",
    ]
    cache, rotated = facts["last_cache_bytes"], facts["rotation_bytes"]
    rotation = f"last cache {cache / MIB:.0f} MiB; inputs of memory-bound cases rotate through {rotated / MIB:.0f} MiB"
    if rotated < cache:
        rotation += ": less than the cache, so bandwidths here are partly the cache's"
    elif rotated < 2 * cache:
        rotation += ": less than twice the cache, so some of it may still be there"
    lines.append("the inputs of a case are the same at each call: caches may hold them" if facts["warm"] else rotation)
    if load is not None and load > 0.5:
        lines.append(f"NOTE: other work is running (load average {load:.1f}); the times below are noisy")
    return "\n".join(lines)


def load_average() -> float | None:
    """Of the last minute; None where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def ceilings(device: torch.device, dtype: torch.dtype, quick: bool) -> dict[str, float]:
    """Bytes/s read and copied (read + written), over as much memory as inputs rotate through; FLOP/s of a square GEMM.

    Each is the best of some readers, copiers or products: which of torch's is fastest differs from machine to machine.
    """
    seconds = 0.2 if quick else 1.0
    footprint = 2 * GIB if device.type == "cuda" else rotation_bytes(device, quick)
    rows = footprint // 2 // 4 // 4096
    source, target = torch.ones(rows, 4096, device=device), torch.zeros(rows, 4096, device=device)
    vector = torch.ones(4096, device=device)
    readers = (torch.sum, lambda half: half.view(torch.int32).sum(), lambda half: half.mv(vector))
    copiers = (lambda: target.copy_(source), lambda: torch.mul(source, 1.0, out=target))
    read = min(
        best_time(lambda reader=reader: (reader(source), reader(target)), device, seconds / len(readers))
        for reader in readers
    )
    copy = min(best_time(copier, device, seconds / len(copiers)) for copier in copiers)
    side = 8192 if device.type == "cuda" else 1024 if quick else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    products = (torch.mm, linear)
    gemm = min(
        best_time(lambda product=product: product(a, b), device, seconds / len(products)) for product in products
    )
    moved = source.nbytes + target.nbytes
    return {"read": moved / read, "copy": moved / copy, "gemm": 2 * side**3 / gemm}


def ceilings_text(rates: dict[str, float], dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    return (
        f"ceilings of this run: read {rates['read'] / 1e9:.1f} GB/s, copy {rates['copy'] / 1e9:.1f} GB/s "
        f"(read + written), {name} GEMM {rates['gemm'] / 1e9:.0f} GFLOP/s"
    )
