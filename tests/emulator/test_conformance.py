"""Each wrapper of csrc/common does in the emulator what the PTX ISA says, and what a GPU once recorded.

The expectations in conformance/*_cases.py follow from the ISA's tables and CUDA's documents. conformance/golden.json,
where a GPU has recorded one (record_conformance.py), is replayed besides.
"""

import json
import re
import shutil
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from emulator.conformance import cases, golden

import minigpt_ext as mg
from minigpt_ext.emulator.build import CSRC

SOURCES = [cases.HERE / f"{file}.cu" for file in cases.ARCHITECTURES]
RUNS = cases.runs()
GOLDEN = cases.HERE / "golden.json"


@cache
def library(check: str):
    return mg.emulator.compile(*SOURCES, check=check)


@cache
def indices(file: str) -> dict[str, int]:
    return golden.case_indices(library("none").c, file)


def emulated(run: cases.Run, check: str = "none", seed: int = 0) -> np.ndarray:
    out = torch.from_numpy(run.out.view(np.uint8).copy())
    inputs = [0 if x is None else torch.from_numpy(x.view(np.uint8).copy()) for x in (run.a, run.b, run.c)]
    library(check).call(f"conformance_{run.file}", indices(run.file)[run.case], *inputs, out, *run.p, seed=seed)
    return out.numpy().view(run.out.dtype).reshape(run.out.shape)


@pytest.mark.parametrize("case", sorted({(run.file, run.case) for run in RUNS}), ids="-".join)
def test_the_emulator_does_what_the_isa_says(case):
    for run in (run for run in RUNS if (run.file, run.case) == case):
        for seed in (0, 1, 2, 3):
            got = emulated(run, seed=seed)
            wrong = run.differs(got, run.expected, run.limit)
            assert wrong is None, f"{run.name}, seed {seed}: {wrong}"


@pytest.mark.parametrize("case", sorted({(run.file, run.case) for run in RUNS}), ids="-".join)
def test_the_race_checker_finds_nothing_in_the_cases(case):
    runs = [run for run in RUNS if (run.file, run.case) == case]
    for run in (runs[0], runs[-1]):
        wrong = run.differs(emulated(run, "race"), run.expected, run.limit)
        assert wrong is None, f"{run.name}: {wrong}"


def test_a_gpu_gave_the_same():
    if not GOLDEN.exists():
        pytest.skip("no GPU has recorded conformance/golden.json yet; the ISA's tables alone are the judge")
    recorded = golden.read(json.loads(GOLDEN.read_text()), RUNS)
    assert recorded, "the recording holds no case of today's inputs: record it anew"
    wrong = []
    for run, gpu in recorded:
        # A GPU's own rounding may lie as far from the exact value as ours.
        wrong += [f"{run.name}: {what}" for what in [run.differs(emulated(run), gpu, 2 * run.limit)] if what]
        wrong += [
            f"{run.name}, GPU against ISA: {what}" for what in [run.differs(gpu, run.expected, run.limit)] if what
        ]
    assert not wrong, "\n".join(wrong)


def wrappers_of(header: str) -> set[str]:
    """The functions that a header declares for kernels."""
    text = (CSRC / "common" / header).read_text()
    text = text[: text.find("\nnamespace wgmma {")] + text[text.find("\n}  // namespace wgmma") :]
    names = re.findall(r"^DEVICE (?:[\w:]+[ &*]+)+(\w+)\(", text, re.MULTILINE)
    return set(names) - {"keep_in_order"}  # a step of wgmma_fence and wgmma_wait


@pytest.mark.parametrize("header", ["device.cuh", "tensor_core.cuh", "hopper.cuh"])
def test_every_wrapper_has_a_case(header):
    wrappers = wrappers_of(header)
    assert len(wrappers) >= {"device.cuh": 4, "tensor_core.cuh": 13, "hopper.cuh": 22}[header]
    used = "".join(source.read_text() for source in SOURCES)
    assert sorted(name for name in wrappers if not re.search(rf"\b{name}\b", used)) == []


@pytest.mark.parametrize("header", ["tensor_core.h", "hopper.h"])
def test_the_emulator_has_a_body_for_every_wrapper(header):
    text = (CSRC / "emulator" / header).read_text()
    declared = wrappers_of(header.replace(".h", ".cuh")) - {"wgmma_descriptor"}  # has one body for both
    assert sorted(name for name in declared if not re.search(rf"\b{name}\(", text)) == []


def test_every_case_is_run():
    compiled = {(file, name) for file in cases.ARCHITECTURES for name in indices(file)}
    assert compiled == {(run.file, run.case) for run in RUNS}


def test_every_wgmma_shape_has_a_case():
    shapes = set(re.findall(r"^SHAPE\((\d+),", (CSRC / "common" / "hopper.cuh").read_text(), re.MULTILINE))
    assert shapes
    for form in ("ss", "rs"):
        assert shapes == {n for run in RUNS for n in re.findall(rf"wgmma_{form}_bf16_n(\d+)_", run.case)}


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("nvcc"), reason="nvcc is not here: whether it takes the wrappers' PTX is not tested"
)
@pytest.mark.parametrize("file, architecture", [*cases.ARCHITECTURES.items(), ("sm80", "90a")])
def test_nvcc_takes_the_wrappers(file, architecture, tmp_path):
    command = golden.nvcc_command(file, tmp_path / "x.so", "-Werror", "all-warnings", architecture=architecture)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (done.stdout + done.stderr).strip(), "warnings"  # ptxas has some that -Werror does not reach


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here: the recorder records")
def test_the_recorder_says_that_there_is_no_gpu(tmp_path):
    command = [sys.executable, str(cases.HERE.parent / "record_conformance.py"), "--out", str(tmp_path / "c.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "GPU" in done.stderr
    assert not (tmp_path / "c.json").exists()


def test_a_recording_is_read_back(tmp_path):
    outputs = [(run, run.expected) for run in RUNS]
    read = golden.read(json.loads(json.dumps(golden.recording(outputs, {"GPU": "none: a test"}))), RUNS)
    assert len(read) == len(RUNS)
    assert all(run.differs(gpu, run.expected, 0.0) is None for run, gpu in read)
    changed = golden.recording(outputs, {})
    changed["runs"][0]["inputs"] = "0" * 16  # recorded with other inputs: not comparable
    assert len(golden.read(changed, RUNS)) == len(RUNS) - 1
