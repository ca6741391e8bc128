"""`minigpt doctor`: what was built, what there is to run it, and which implementation each op takes."""

import importlib
import json as json_format
import os
import platform
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from minigpt_ext.backend import OPS, environment_error, implementation, why_no_kernels
from minigpt_ext.emulator import BuildError, build, headers

GIB = 2**30
HOW_TO_BUILD = "build it: `pip install -e .` in the checkout"
HOW_TO_GET_CUDA = (
    "with a CUDA build of torch and the CUDA toolkit (nvcc, 12.0 or later), `pip install -e .` in the checkout again"
)
VARIABLES = (
    "MINIGPT_BACKEND",
    "MINIGPT_EMULATOR_CHECK",
    "MINIGPT_EMULATOR_SEED",
    "MINIGPT_EMULATOR_FLAGS",
    "MINIGPT_CHECK",
    "MINIGPT_CACHE",
    "MINIGPT_SIMD",
    "MINIGPT_DATA",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CXX",
)


def doctor(
    json: Annotated[bool, typer.Option("--json", help="The same as one JSON object.")] = False,
) -> None:
    """Tell what was built and what will run: versions, instruction set, CUDA, devices, and the kernels of each op.

    The exit status is 1 where the compiled extension is missing or cannot be loaded.
    """
    facts = examine()
    typer.echo(json_format.dumps(facts, indent=2) if json else as_text(facts))
    if facts["problems"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """All that doctor tells, ready for JSON."""
    extension = examine_extension()
    usable = extension["error"] is None
    facts = {
        "minigpt_ext": version(),
        "location": str(Path(__file__).resolve().parents[1]),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "extension": extension,
        "cpu": {"name": cpu_name(), "cores": usable_cores(), "threads": torch.get_num_threads(), "simd": None},
        "devices": examine_devices(usable),
        "emulator": examine_emulator(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "problems": [],
    }
    if not usable:
        facts["problems"].append(f"the compiled extension cannot be used ({extension['error']}); {HOW_TO_BUILD}")
    else:
        try:
            facts["cpu"]["simd"] = importlib.import_module("minigpt_ext._C").simd_level()
        except RuntimeError as error:  # a MINIGPT_SIMD that this CPU does not have
            facts["problems"].append(str(error))
    if environment_error is not None:
        facts["problems"].append(str(environment_error))
    facts["ops"] = {op: examine_op(op, facts["devices"], usable) for op in OPS}
    return facts


def examine_extension() -> dict[str, Any]:
    try:
        module = importlib.import_module("minigpt_ext._C")
    except ImportError as error:
        return {"file": None, "error": str(error).splitlines()[0]}
    info = module.build_info()
    return {
        "file": module.__file__,
        "error": None,
        "compiler": info["compiler"],
        "torch_abi": abi_version(info["torch_target"]),
        "pybind11": info["pybind11"],
        "cuda_toolkit": info["cuda_toolkit"],
        "cuda_archs": info["cuda_archs"].split(";") if info["cuda_archs"] else [],
    }


def examine_emulator() -> dict[str, Any]:
    """What the CUDA emulator would be built with; `missing` says what it lacks, None where nothing."""
    try:
        build.find_sources()
        command, version = build.compiler()
        found = {"compiler": version.splitlines()[0] if version else " ".join(command)}
        folders = [str(folder) for folder in headers.cuda_include_folders()]
        found |= {"cuda_headers": folders, "cuda_version": headers.cuda_version(), "cache": str(build.cache_folder())}
        return found | {"missing": None}
    except BuildError as error:
        return {"missing": str(error)}


def examine_devices(usable: bool) -> list[dict[str, Any]]:
    """The CPU, each GPU, and Apple's; `no_kernels` says why ours cannot run there, None where they can."""
    devices = [{"device": "cpu", "name": cpu_name()}]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        device = {"device": f"cuda:{index}", "name": properties.name, "compute_capability": capability}
        devices.append(device | {"memory_bytes": properties.total_memory})
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "name": "Apple GPU"})
    for device in devices:
        place = torch.device(device["device"])
        device["no_kernels"] = why_no_kernels(place) if usable else "the compiled extension cannot be used"
    return devices


def examine_op(op: str, devices: list[dict[str, Any]], usable: bool) -> dict[str, Any]:
    """The op's schemas, whether all of them have kernels for CPU and CUDA, and what a call takes now on each device."""
    schemas = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("minigpt::")]
    own = [name for name in schemas if name in (f"minigpt::{op}", f"minigpt::{op}_forward", f"minigpt::{op}_backward")]
    kernels = {
        key: bool(own) and all(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for name in own)
        for key in ("CPU", "CUDA")
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where torch must stand in, `no_kernels` says why
        chosen = {
            each["device"]: used_on(op, torch.device(each["device"]))
            for each in devices
            if usable and environment_error is None
        }
    return {"schemas": sorted(own), "kernels": kernels, "backend": chosen}


def used_on(op: str, device: torch.device) -> str:
    try:
        return implementation(op, device)
    except ValueError:  # emulation was asked for, which takes CPU tensors alone
        return "none"


def as_text(facts: dict[str, Any]) -> str:
    extension, cpu = facts["extension"], facts["cpu"]
    lines = [f"problem: {problem}\n" for problem in facts["problems"]]
    torch_cuda = f"with CUDA {facts['torch_cuda']}" if facts["torch_cuda"] else "without CUDA"
    lines += [
        field("minigpt_ext", f"{facts['minigpt_ext']}, in {facts['location']}"),
        field("Python", f"{facts['python']}, {facts['system']}"),
        field("torch", f"{facts['torch']}, built {torch_cuda}"),
        field("CPU", f"{cpu['name']}, {cpu['cores']} cores, {cpu['threads']} threads"),
    ]
    if cpu["simd"]:
        note = (
            ""
            if "MINIGPT_SIMD" in facts["environment"]
            else " (chosen for this CPU; MINIGPT_SIMD can ask for a lower one)"
        )
        lines.append(field("instructions", cpu["simd"] + note))
    lines += ["", "Extension"]
    if extension["error"]:
        lines.append(field("  not loaded", extension["error"]))
    else:
        lines += [
            field("  module", Path(extension["file"]).name),
            field("  compiled by", f"{extension['compiler']}, pybind11 {extension['pybind11']}"),
            field("  runs with", f"torch {extension['torch_abi']} and later (torch's stable ABI)"),
        ]
        if extension["cuda_toolkit"]:
            archs = ", ".join(extension["cuda_archs"])
            lines.append(field("  CUDA kernels", f"toolkit {extension['cuda_toolkit']}, for {archs}"))
        else:
            lines += [
                field("  CUDA kernels", "left out, as torch has no CUDA or nvcc was not there. For a GPU:"),
                field("", HOW_TO_GET_CUDA),
            ]
    lines += ["", "Devices", *(field(f"  {each['device']}", device_text(each, facts)) for each in facts["devices"])]
    if len(facts["devices"]) == 1:
        lines.append(field("  no GPU", "torch sees none"))
    emulator = facts["emulator"]
    lines += ["", "CUDA emulator, built when MINIGPT_BACKEND=emulated first asks for it"]
    if emulator["missing"]:
        lines.append(field("  cannot be built", emulator["missing"]))
    else:
        lines += [
            field("  compiler", emulator["compiler"]),
            field("  CUDA's headers", ", ".join(emulator["cuda_headers"])),
            field("  kept in", emulator["cache"]),
        ]
    lines += ["", *ops_table(facts["ops"])]
    if "MINIGPT_BACKEND" not in facts["environment"]:
        lines += [
            "MINIGPT_BACKEND=torch runs every op on torch's own, MINIGPT_BACKEND=gelu=torch only that one;",
            "MINIGPT_BACKEND=emulated runs the CUDA kernels on CPU tensors, slowly.",
        ]
    if facts["environment"]:
        lines += ["", "Environment", *(field(f"  {name}", value) for name, value in facts["environment"].items())]
    return "\n".join(lines)


def device_text(device: dict[str, Any], facts: dict[str, Any]) -> str:
    text = device["name"]
    if "compute_capability" in device:
        text += f", compute capability {device['compute_capability']}, {device['memory_bytes'] / GIB:.0f} GiB"
    if facts["extension"]["error"]:
        return text
    return text + (f": uses torch's ops; {device['no_kernels']}" if device["no_kernels"] else ": runs the kernels")


def ops_table(ops: dict[str, dict[str, Any]]) -> list[str]:
    """A line an op: has it a kernel for CPU and CUDA, and which backend does a call take now on each device."""
    places = list(next(iter(ops.values()))["backend"])
    lines = [f"{'Op':<18} {'CPU kernel':<12} {'CUDA kernel':<12} " + " ".join(f"{'now on ' + p:<14}" for p in places)]
    for op, facts in ops.items():
        has = [f"{'yes' if facts['kernels'][key] else 'no':<12}" for key in ("CPU", "CUDA")]
        lines.append(" ".join([f"{op:<18}", *has, *(f"{facts['backend'][place]:<14}" for place in places)]))
    return [line.rstrip() for line in lines]


def field(name: str, value: str) -> str:
    return f"{name:<18} {value}".rstrip()


def version() -> str:
    """Of the installed package; from a source tree that is not installed, what the package says of itself."""
    try:
        return metadata.version("minigpt-ext")
    except metadata.PackageNotFoundError:
        return getattr(sys.modules["minigpt_ext"], "__version__", "unknown")


def abi_version(target: str) -> str:
    """ "2.11" of TORCH_TARGET_VERSION's 0x020b000000000000."""
    number = int(target, 16)
    return f"{number >> 56}.{number >> 48 & 0xFF}"


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor as it calls itself; its architecture where it does not."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        answer = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        if answer.returncode == 0:
            return answer.stdout.strip()
    return platform.processor() or platform.machine()
