"""Prints what this machine is and has, as a line of JSON: GPU, driver, torch, CUDA's tools, packages, the extension.

What is missing is null or comes with its error: the program itself needs nothing beside Python.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    *("torch", "numpy", "safetensors", "typer", "rich", "tqdm", "matplotlib", "pytest", "hypothesis", "transformers"),
    *("triton", "pip", "setuptools", "ninja", "pybind11", "wheel"),
)
TOOLS = ("nvcc", "ncu", "compute-sanitizer", "nsys", "c++")
NVIDIA_SMI = (
    *("name", "driver_version", "pstate", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem"),
    *("power.limit", "temperature.gpu", "memory.total", "memory.used", "ecc.mode.current"),
)
EXTENSION = "import json, minigpt_ext; print(json.dumps(minigpt_ext._C.build_info()))"


def main() -> None:
    facts = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "packages": {name: version(name) for name in PACKAGES},
        "tools": {name: tool(name) for name in TOOLS},
        "nvidia_smi": nvidia_smi(),
        "torch": torch_facts(),
        "extension": extension(),
    }
    gpu = facts["torch"].get("gpu")
    print(json.dumps({"told": f"{gpu['name']}, torch {facts['torch']['version']}" if gpu else "no GPU", **facts}))
    if gpu is None:
        sys.exit(f"error: torch sees no GPU here ({facts['torch'].get('error', 'torch.cuda.is_available() is False')})")


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def tool(name: str) -> dict[str, str] | None:
    """Where it is and what version it tells; CUDA's own folders are looked through too."""
    path = shutil.which(name) or next((str(each) for each in cuda_files(name) if os.access(each, os.X_OK)), None)
    if path is None:
        return None
    lines = answer(path, "--version").splitlines()
    lines += ["unknown"]
    return {"path": path, "version": next((line for line in lines if "ersion" in line or "elease" in line), lines[0])}


def cuda_files(name: str) -> list[Path]:
    homes = [Path(os.environ[key]) for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
    homes += sorted(Path("/usr/local").glob("cuda*"), reverse=True)
    homes += sorted(Path("/opt/nvidia/nsight-compute").glob("*"), reverse=True)
    return [path for home in homes for path in (home / "bin" / name, home / "compute-sanitizer" / name, home / name)
            if path.is_file()]  # fmt: skip


def answer(*command: str) -> str:
    """What a command prints; "" where it cannot be run, fails, or says nothing within 30 s."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, cwd=ROOT).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def nvidia_smi() -> dict[str, str] | None:
    told = answer("nvidia-smi", f"--query-gpu={','.join(NVIDIA_SMI)}", "--format=csv,noheader", "--id=0").strip()
    return dict(zip(NVIDIA_SMI, told.split(", "), strict=False)) if told else None


def torch_facts() -> dict[str, Any]:
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:  # OSError: one of its libraries cannot be loaded
        return {"error": f"torch cannot be imported: {error}"}
    facts = {"version": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts["gpu"] = {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
        }
    return facts


def extension() -> dict[str, Any] | None:
    """How the extension in this tree was built; None where there is none that can be loaded."""
    if not list((ROOT / "minigpt_ext").glob("_C*.so")):
        return None
    told = answer(sys.executable, "-c", EXTENSION)
    return json.loads(told) if told else None


if __name__ == "__main__":
    main()
