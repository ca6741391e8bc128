"""Everything that a machine with a GPU should answer, in one command: `benchmarks/on_gpu.sh --out DIR`.

Builds the kernels without a network, then asks first whether they are right (tests, conformance, compute-sanitizer) and
then how fast they are (benchmarks, ncu, a training and a decoding run). Needs Python's own library alone; what else is
missing costs the stages that need it. Each step is bounded in time, and one that fails is told and stops no other.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import on_gpu_files
from on_gpu_engine import Run, Stage, Stopped, now
from on_gpu_files import ROOT
from on_gpu_stages import all_stages, machine_stage

RESULTS = ("summary", "tests", "conformance", "sanitizer", "bench", "run")
FILES = (*(f"{name}.json" for name in RESULTS), "ncu.csv", "log.txt")
SOURCES = ("setup.py", "pyproject.toml", "csrc/**/*", "minigpt_ext/**/*.py", "tests/**/*", "benchmarks/*.*")
STAGE_NAMES = [stage.name for stage in all_stages(None, Path(), Path())]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0: every stage asked for has passed; 1: not so; 2: wrong usage."""
    options = parser().parse_args(arguments)
    if options.dry_run:
        return describe(options)
    facts = {"commit": options.commit or commit(), "sources": sources()}
    os.environ["MINIGPT_COMMIT"] = facts["commit"]  # so that the benchmarks' cards tell the same
    try:
        prepare(options.out, facts["sources"], options.again)
        run = Run(options.out.resolve(), facts)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return answer(run, options.stages, options.again, options.limit)


def answer(run: Run, names: Sequence[str], again: bool, limit: int | None) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    (ROOT / "build").mkdir(exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="on_gpu-", dir=ROOT / "build") as work:
            began = time.monotonic()
            run.run(machine_stage(), again=True)
            run.deadline = began + limit if limit else None
            facts = run.summary["stages"]["machine"]["steps"].get("facts", {})
            run.summary["machine"] = facts.pop("result", {}) | {"date": now()}
            add_cuda_to_path(run.summary["machine"])
            for stage in all_stages(run.summary["machine"], run.out, Path(work)):
                if stage.name in names:
                    run.run(stage, again)
    except Stopped:
        print("stopped; the same command goes on")
    return conclude(run, names)


def add_cuda_to_path(machine: Mapping[str, Any]) -> None:
    """Where nvcc was found in CUDA's own folder alone."""
    nvcc = machine.get("tools", {}).get("nvcc")
    if nvcc and shutil.which("nvcc") is None:
        folder = str(Path(nvcc["path"]).parent)
        os.environ["PATH"] += os.pathsep + folder
        print(f"{folder} is added to PATH", flush=True)


def stop(number: int, frame: object) -> None:
    raise Stopped


def conclude(run: Run, names: Sequence[str]) -> int:
    """Prints the last line, and returns the exit code."""
    statuses = {name: run.status(name) or "not run" for name in ("machine", *names)}
    passed = [name for name, status in statuses.items() if status == "passed"]
    others = [f"{name} {status}" for name, status in statuses.items() if status != "passed"]
    rest = f": {', '.join(others)}" if others else ""
    print(f"{len(passed)} of {len(statuses)} stages passed{rest}; the results are in {run.out}.")
    return 1 if others else 0


def describe(options: argparse.Namespace) -> int:
    """Prints what would run where nothing is missing."""
    stages = [stage for stage in all_stages(None, options.out, Path("WORK")) if stage.name in options.stages]
    stages.insert(0, machine_stage())
    for stage in stages:
        print(f"{stage.name}: {bound(stage)}" + (f", into {stage.file}" if stage.file else ""))
        print("\n".join(f"  {on_gpu_files.without_own_paths(str(step))}" for step in stage.steps))
    print(f"{len(stages)} stages would run, with files on the way in WORK; nothing has run.")
    most = sum(step.seconds for stage in stages for step in stage.steps)
    print(f"All bounds together: {most:,} s, {most / 3600:.1f} hours.")
    return 0


def bound(stage: Stage) -> str:
    seconds = sum(step.seconds for step in stage.steps)
    return f"{len(stage.steps)} {'step' if len(stage.steps) == 1 else 'steps'}, {seconds} s at most"


def prepare(out: Path, sources_now: str, again: bool) -> None:
    """Makes the folder of results and sees that it can be written, and that it holds none of other sources."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out):
            pass
        kept = on_gpu_files.read_json(out / "summary.json")
    except OSError as error:
        raise OSError(f"--out {out}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"--out {out}: its summary.json cannot be read ({error}); choose another folder") from None
    if kept is not None and not is_summary(kept):
        raise ValueError(f"--out {out}: its summary.json is none of this command's; choose another folder")
    if kept is None or kept["sources"] == sources_now:
        return
    if not again:
        raise ValueError(
            f"--out {out} holds results of other sources (commit {kept['commit']}); choose another folder, or replace "
            "them all with --again"
        )
    for name in FILES:
        (out / name).unlink(missing_ok=True)


def is_summary(kept: Any) -> bool:
    """Whether it has the form that on_gpu_engine.Run gives it."""
    forms = {"sources": str, "commit": str, "machine": dict, "stages": dict}
    if not isinstance(kept, dict) or not all(isinstance(kept.get(name), form) for name, form in forms.items()):
        return False
    stages = kept["stages"].values()
    if not all(isinstance(stage, dict) and isinstance(stage.get("steps"), dict) for stage in stages):
        return False
    steps = [step for stage in stages for step in stage["steps"].values()]
    return all(isinstance(step, dict) and "status" in step for step in steps)


def commit() -> str:
    """As MINIGPT_COMMIT tells it, else as git does, with "+changes" where files differ from it."""
    if told := os.environ.get("MINIGPT_COMMIT"):
        return told
    git = ["git", "-c", "safe.directory=*", "-C", str(ROOT)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.strip() + ("+changes" if changes.stdout else "")


def sources() -> str:
    """A hash of all that the results depend on, whether or not git knows it; not of caches and what was built."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in SOURCES for path in ROOT.glob(pattern) if path.is_file()}):
        name = path.relative_to(ROOT)
        if path.suffix != ".so" and not any(part.startswith((".", "__pycache__")) for part in name.parts):
            digest.update(f"{name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def stage_names(text: str) -> list[str]:
    names = list(filter(None, text.split(",")))
    if unknown := [name for name in names if name not in STAGE_NAMES]:
        raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; there are {', '.join(STAGE_NAMES)}")
    return [name for name in STAGE_NAMES if name in names]


def seconds(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return int(text)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("on_gpu.sh", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", required=True, help="folder of the results; a later call goes on there")
    names = ", ".join(STAGE_NAMES)
    add("--stages", type=stage_names, default=STAGE_NAMES, metavar="A,B", help=f"of {names}; else all")
    add("--limit", type=seconds, metavar="SECONDS", help="for this call; what is left over is done by the next one")
    add("--again", action="store_true", help="run finished steps again too")
    add("--commit", help="of this tree, where git cannot tell; MINIGPT_COMMIT does the same")
    add("--dry-run", action="store_true", help="print each command with its bound, and run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
