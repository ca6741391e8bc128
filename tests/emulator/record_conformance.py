"""Has a GPU answer the conformance cases: `python tests/emulator/record_conformance.py --out FILE`.

Compiles conformance/*.cu by nvcc, runs every case on its seeded inputs, and writes inputs' hashes and outputs as JSON,
with GPU, driver, toolkit, commit and date. Needs no network. Copied to conformance/golden.json and committed, a
recording is replayed by test_conformance.py. Files that the GPU is too old for are left out, and named.

Exit code 0: all recorded, and as the ISA says; 1: recorded, but some are not as the ISA says, or failed; 2: nothing
could be recorded.
"""

import argparse
import ctypes
import datetime
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from emulator.conformance import cases, golden


def fail(message: str) -> int:
    print(f"record_conformance: {message}", file=sys.stderr)
    return 2


def text_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=cases.HERE).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def card(torch) -> dict:
    driver = text_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": "{}.{}".format(*torch.cuda.get_device_capability()),
        "driver": driver.splitlines()[0],
        "toolkit": text_of("nvcc", "--version").splitlines()[-1],
        "torch": torch.__version__,
        "commit": text_of("git", "rev-parse", "HEAD"),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def answer(torch, library: ctypes.CDLL, index: int, run: cases.Run) -> np.ndarray:
    """The GPU's output. Raises RuntimeError where a launch fails."""

    def on_gpu(x: np.ndarray | None):
        return None if x is None else torch.from_numpy(x.reshape(-1).view(np.uint8).copy()).cuda()

    inputs, out = [on_gpu(x) for x in (run.a, run.b, run.c)], on_gpu(run.out)
    torch.cuda.synchronize()
    function = getattr(library, f"conformance_{run.file}")
    function.restype = ctypes.c_char_p
    pointers = [ctypes.c_void_p(0 if x is None else x.data_ptr()) for x in (*inputs, out)]
    error = function(ctypes.c_int64(index), *pointers, *map(ctypes.c_int64, run.p))
    if error:
        raise RuntimeError(error.decode())
    return out.cpu().numpy().view(run.out.dtype).reshape(run.out.shape)


def record(torch, file: str, architecture: str, outputs: list, problems: list[str]) -> None:
    """Compiles a file and runs its cases; adds to outputs (run, output), and to problems what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{file}.so")
        command = golden.nvcc_command(file, path, architecture=architecture)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            problems.append(f"{file}.cu does not compile: {(done.stdout + done.stderr).strip()[-500:]}")
            return
        library = ctypes.CDLL(str(path))
    index = golden.case_indices(library, file)
    for run in (run for run in cases.runs() if run.file == file):
        try:
            got = answer(torch, library, index[run.case], run)
        except RuntimeError as error:  # after a fault nothing more runs in this process
            problems.append(f"{run.name}: {error}")
            return
        outputs.append((run, got))
        if wrong := run.differs(got, run.expected, run.limit):
            problems.append(f"{run.name}: not as the ISA says: {wrong}")


def write(out: Path, recorded: dict) -> None:
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(recorded, indent=1) + "\n")
    part.replace(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    out = parser.parse_args().out
    try:
        import torch
    except ImportError as error:
        return fail(f"torch is needed to reach the GPU: {error}")
    if not torch.cuda.is_available():
        return fail(
            "there is no GPU that torch can use; nothing was recorded. What a GPU records is copied to "
            "tests/emulator/conformance/golden.json and committed; CI then replays it"
        )
    if not shutil.which("nvcc"):
        return fail("nvcc is not on PATH; nothing was recorded")

    capability = torch.cuda.get_device_capability()
    present = "90a" if capability == (9, 0) else "{}{}".format(*capability)
    outputs, problems, left_out = [], [], []
    for file, needed in cases.ARCHITECTURES.items():
        if capability < (8, 0) or needed == "90a" and present != "90a":
            left_out.append(file)
            continue
        record(torch, file, present, outputs, problems)
        if outputs:  # file by file: a kernel that hangs takes only its own file's runs away
            write(out, golden.recording(outputs, {**card(torch), "left_out": left_out, "problems": problems}))
    if not outputs:
        return fail("nothing was recorded. " + " | ".join(problems or ["the GPU is too old"]))
    for problem in problems:
        print(f"record_conformance: {problem}", file=sys.stderr)
    print(f"recorded {len(outputs)} runs, {len(problems)} problems, left out: {', '.join(left_out) or 'nothing'}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
