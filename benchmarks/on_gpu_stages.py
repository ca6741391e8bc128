"""The stages of on_gpu.py: which commands, with which bounds, and what of this machine each needs."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import on_gpu_results as results
from on_gpu_engine import Stage, Step
from on_gpu_files import ROOT

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
DTYPES = ("float32", "bfloat16")
COMMAND_PACKAGES = ("numpy", "safetensors", "typer", "rich", "tqdm", "matplotlib")  # the `minigpt` command's
CONFORMANCE = ROOT / "tests" / "emulator" / "record_conformance.py"
MINIGPT = (sys.executable, "-m", "minigpt_ext.cli")  # also where pip could not install the command
BUILT = "import json, minigpt_ext as m; print(json.dumps(m._C.build_info()))"
OLDEST_SETUPTOOLS = 77  # as pyproject.toml asks for
BENCHMARKS = ROOT / "benchmarks"


def machine_stage() -> Stage:
    facts = Step("facts", [sys.executable, str(BENCHMARKS / "on_gpu_machine.py")], 180, collect=results.last_json)
    return Stage("machine", [facts], extension=False)


def all_stages(machine: Mapping[str, Any] | None, out: Path, work: Path) -> list[Stage]:
    """machine: what on_gpu_machine.py told; None to describe what would run where nothing is missing.

    out: the folder of results. work: one for files on the way.
    """
    known = Needs(machine)
    return [
        build(known),
        tests("tests", ["tests/ops", "-k", "cuda"], 420, known, work),
        conformance(known, out),
        sanitizer(known),
        bench("bench", (*OPS, "training", "generation"), [], known, work),
        ncu(known, work),
        training_and_decoding(known, work),
        bench("compile", (*OPS, "training"), ["--compile"], known, work),
        tests("suite", ["tests"], 540, known, work),
    ]


class Needs:
    """What this machine has of what stages need."""

    def __init__(self, machine: Mapping[str, Any] | None) -> None:
        self.machine = machine

    def missing(self, *packages: str, gpu: bool = True, tool: str | None = None) -> str | None:
        """In words; None where all is there."""
        if self.machine is None:
            return None
        absent = [name for name in packages if not self.machine.get("packages", {}).get(name)]
        if absent:
            return f"Python has no {', '.join(absent)}"
        if gpu and not self.gpu:
            return "torch sees no GPU"
        if tool and not self.machine.get("tools", {}).get(tool):
            return f"there is no {tool} on PATH or in CUDA's folders"
        return None

    @property
    def old_setuptools(self) -> str | None:
        """An older one cannot read pyproject.toml, and says so at great length."""
        version = (self.machine or {}).get("packages", {}).get("setuptools")
        is_old = version is not None and int(version.partition(".")[0]) < OLDEST_SETUPTOOLS
        return f"setuptools {version} is older than {OLDEST_SETUPTOOLS}" if is_old else None

    @property
    def has_cuda_kernels(self) -> bool:
        """Whether the extension in this tree was built with them already."""
        return bool(((self.machine or {}).get("extension") or {}).get("cuda_toolkit"))

    @property
    def gpu(self) -> Mapping[str, Any] | None:
        return (self.machine or {}).get("torch", {}).get("gpu")

    def tool(self, name: str) -> str:
        return ((self.machine or {}).get("tools", {}).get(name) or {"path": name})["path"]

    @property
    def architecture(self) -> str | None:
        """The GPU's own, for TORCH_CUDA_ARCH_LIST: to compile for one takes a third of the time. None without a GPU."""
        if self.machine is None:
            return "OF_THE_GPU"
        capability = self.gpu and self.gpu["compute_capability"]
        return "9.0a" if capability == "9.0" else capability  # wgmma and setmaxnreg are 9.0a's


def build(known: Needs) -> Stage:
    environment = {"MINIGPT_CUDA": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if known.architecture:
        environment["TORCH_CUDA_ARCH_LIST"] = known.architecture
    pip = f"{sys.executable} -m pip install -v -e . --no-build-isolation --no-deps"
    in_place = f"{sys.executable} setup.py build_ext --inplace"
    script = f"{pip} || {{ echo 'pip could not install it: building in place'; {in_place}; }}"
    return Stage(
        "build",
        [
            Step("extension", ["bash", "-c", script], 540, environment, results.build_report),
            Step("import", [sys.executable, "-c", BUILT], 120, collect=results.last_json),
        ],
        skip=known.missing("setuptools", "ninja", "pybind11", gpu=False) or known.old_setuptools,
        whole=True,
        extension=False,
        gone=not known.has_cuda_kernels,
    )


def tests(name: str, selection: list[str], seconds: int, known: Needs, work: Path) -> Stage:
    report = work / f"{name}.xml"
    options = ["-v", "--tb=short", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=120", f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", *selection, *options]
    step = Step(name, command, seconds, offline(), lambda _: results.pytest_report(report))
    return Stage(name, [step], "tests.json", known.missing("pytest", "hypothesis"))


def conformance(known: Needs, out: Path) -> Stage:
    command = [sys.executable, str(CONFORMANCE), "--out", str(out / "conformance.json")]
    absent = None if CONFORMANCE.exists() else f"there is no {CONFORMANCE.relative_to(ROOT)}"
    return Stage("conformance", [Step("record", command, 300)], skip=absent or known.missing("numpy", tool="nvcc"))


def sanitizer(known: Needs) -> Stage:
    """One process a tool, for all ops: to start torch under the sanitizer takes longer than the kernels do."""

    def step(tool: str) -> Step:
        # Each tensor is an allocation of its own, with room behind it, so that a step beyond its end is seen.
        options = ["--tool", tool, "--error-exitcode", "99", "--print-limit", "50"]
        options += ["--padding", "256"] if tool == "memcheck" else []
        command = [known.tool("compute-sanitizer"), *options, sys.executable, str(BENCHMARKS / "small_shapes.py")]
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return Step(tool, [*command, "--device", "cuda"], 420, offline() | alone, results.sanitizer_report)

    steps = [step(tool) for tool in ("memcheck", "racecheck", "synccheck", "initcheck")]
    return Stage("sanitizer", steps, "sanitizer.json", known.missing(tool="compute-sanitizer"))


def bench(name: str, benchmarks: tuple[str, ...], options: list[str], known: Needs, work: Path) -> Stage:
    def step(benchmark: str, dtype: str) -> Step:
        report = work / f"{name}-{benchmark}-{dtype}.json"
        where = ["--device", "cuda", "--dtype", dtype, "--json", str(report)]
        command = [*MINIGPT, "bench", benchmark, *where, *options]
        seconds = 300 if benchmark in ("training", "generation") else 180
        title = " ".join([benchmark, dtype, *(["with torch.compile"] if options else [])])
        return Step(title, command, seconds, offline(), lambda _: results.bench_report(report))

    steps = [step(benchmark, dtype) for dtype in DTYPES for benchmark in benchmarks]
    return Stage(name, steps, "bench.json", known.missing(*COMMAND_PACKAGES, *(["triton"] if options else [])))


def ncu(known: Needs, work: Path) -> Stage:
    """Every kernel that an op's benchmark launches, once a case. The clocks stay as they are."""

    def step(op: str, dtype: str) -> Step:
        table = work / f"ncu-{op}-{dtype}.csv"
        which = ["--kernel-name-base", "function", "--kernel-name", f"regex:^{op}_", "--launch-count", "24"]
        how = ["--set", "full", "--clock-control", "none", "--csv", "--page", "details", "--log-file", str(table), "-f"]
        launch = [sys.executable, str(BENCHMARKS / "launch_once.py"), op, "--dtype", dtype]
        command = [known.tool("ncu"), *which, *how, *launch]
        return Step(f"{op} {dtype}", command, 240, offline(), lambda _: results.ncu_rows(table))

    steps = [step(op, dtype) for dtype in reversed(DTYPES) for op in OPS]
    return Stage("ncu", steps, "ncu.csv", known.missing(*COMMAND_PACKAGES, tool="ncu"))


def training_and_decoding(known: Needs, work: Path) -> Stage:
    model = str(work / "run")
    settings = ["--preset", "medium", "--steps", "300", "--set", "device=cuda", "--set", "dtype=bfloat16"]
    settings += ["--set", "eval_interval=100", "--set", "sample_interval=0"]
    train = [*MINIGPT, "train", "--data", "python", *settings, "--out", model]
    generate = [*MINIGPT, "generate", "--model", model, "--device", "cuda", "--max-new-tokens", "500", "--seed", "1"]
    metrics = work / "run" / "metrics.jsonl"
    return Stage(
        "run",
        [
            Step("train medium bfloat16", train, 300, offline(), lambda _: results.training_report(metrics)),
            Step("generate 500 float32", generate, 120, offline(), results.generation_report),
        ],
        "run.json",
        known.missing(*COMMAND_PACKAGES),
        whole=True,
    )


def offline() -> dict[str, str]:
    """The package of this tree, also where pip could not install it; and nothing waits for a network."""
    return {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
