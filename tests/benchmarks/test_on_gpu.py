"""on_gpu.sh: its usage, what it would run, what it skips where something is missing, and its build, really made."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
import torch

import minigpt_ext as mg
from minigpt_ext.backend import OPS
from minigpt_ext.cli.bench import BENCHMARKS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"
SCRIPT = FOLDER / "on_gpu.sh"
LONGEST_STEP = 600 - 15  # a command may last ten minutes, of which `timeout` takes 15 s to kill
# What on_gpu_machine.py tells of a machine that has everything.
EVERYTHING = {
    "packages": dict.fromkeys(
        (
            *("numpy", "safetensors", "typer", "rich", "tqdm", "matplotlib", "pytest", "hypothesis", "triton"),
            *("setuptools", "ninja", "pybind11"),
        ),
        "99.1",
    ),
    "tools": {name: {"path": f"/cuda/bin/{name}", "version": "13"} for name in ("nvcc", "ncu", "compute-sanitizer")},
    "torch": {"gpu": {"compute_capability": "9.0"}},
    "extension": {"cuda_toolkit": "13.0"},
}


@pytest.fixture(autouse=True)
def _on_path(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def stages():
    return importlib.import_module("on_gpu_stages")


def on_gpu(*arguments: str, script: Path = SCRIPT, **variables: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "MINIGPT_COMMIT"}
    environment |= {"PYTHON": sys.executable, **variables}
    return subprocess.run(["bash", str(script), *arguments], capture_output=True, text=True, env=environment)


def test_the_dry_run_tells_every_command_and_runs_none(tmp_path: Path) -> None:
    result = on_gpu("--out", str(tmp_path / "out"), "--dry-run")
    assert result.returncode == 0 and result.stderr == "" and not list(tmp_path.iterdir())
    names = re.findall(r"^(\w+): \d+ steps?, \d+ s at most", result.stdout, re.MULTILINE)
    assert names == [
        *("machine", "build", "tests", "conformance", "sanitizer", "bench", "ncu", "run", "compile", "suite")
    ]
    commands = [line for line in result.stdout.splitlines() if line.startswith("  ")]
    bounds = [int(re.search(r"timeout --signal=INT --kill-after=15 (\d+) ", line)[1]) for line in commands]
    assert len(commands) > 40 and max(bounds) <= LONGEST_STEP
    assert "MINIGPT_CUDA=1" in commands[1] and "pip install -v -e . --no-build-isolation --no-deps" in commands[1]
    assert sum("compute-sanitizer --tool" in line for line in commands) == 4
    for op in OPS:
        assert any(f"--kernel-name 'regex:^{op}_'" in line for line in commands)
    for name in set(BENCHMARKS) - {"tokenizer", "sweep", "decoding"}:  # which are the CPU's
        assert sum(f"bench {name} --device cuda --dtype" in line and "--compile" not in line for line in commands) == 2
    assert str(ROOT) not in result.stdout and "nothing has run.\n" in result.stdout
    assert result.stdout.splitlines()[-1].startswith(f"All bounds together: {sum(bounds):,} s, ")


def test_the_dry_run_of_some_stages() -> None:
    result = on_gpu("--out", "x", "--dry-run", "--stages", "ncu,build")
    assert re.findall(r"^(\w+): \d", result.stdout, re.MULTILINE) == ["machine", "build", "ncu"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "build,tset"], "there is no tset; there are build, tests, conformance, sanitizer, bench, ncu, "),
        (["--limit", "0"], "'0' is no number of seconds above 0"),
        (["--limit", "ten"], "'ten' is no number of seconds above 0"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = on_gpu("--out", str(tmp_path / "out"), *arguments)
    assert result.returncode == 2 and message in result.stderr and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = on_gpu("--out", str(tmp_path / "file"))
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == f"error: --out {tmp_path / 'file'}: File exists\n"
    result = on_gpu("--out", "/proc/minigpt")
    assert result.returncode == 2 and result.stderr == "error: --out /proc/minigpt: No such file or directory\n"


def test_results_of_other_sources_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"sources": "other", "commit": "c0ffee", "machine": {}, "stages": {}}')
    (tmp_path / "bench.json").write_text("{}")
    (tmp_path / "mine.txt").touch()
    result = on_gpu("--out", str(tmp_path), "--stages", "conformance")
    assert result.returncode == 2 and "holds results of other sources (commit c0ffee)" in result.stderr
    assert (tmp_path / "bench.json").exists()
    on_gpu("--out", str(tmp_path), "--stages", "conformance", "--again", CUDA_VISIBLE_DEVICES="")
    assert not (tmp_path / "bench.json").exists() and (tmp_path / "mine.txt").exists()
    assert json.loads((tmp_path / "summary.json").read_text())["sources"] != "other"


def test_sources_are_what_results_depend_on(monkeypatch, tmp_path: Path) -> None:
    module = importlib.import_module("on_gpu")
    monkeypatch.setattr(module, "ROOT", tmp_path)

    def after_writing(name: str, text: str) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return module.sources()

    first = after_writing("csrc/gelu/gelu.cuh", "x")
    for name in ("tests/__pycache__/x.pyc", "tests/.cache/x", "minigpt_ext/_C.so", "README.md", "benchmarks/results/x"):
        assert after_writing(name, "1") == first
    seen = {first, after_writing("csrc/gelu/gelu.cuh", "y"), after_writing("tests/ops/test_gelu.py", "y")}
    assert len(seen | {after_writing("benchmarks/on_gpu.sh", "y")}) == 4


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "{}", "5", '{"sources": 5}'),
        '{"sources": "a", "commit": "b", "machine": {}, "stages": {"build": 1}}',
        '{"sources": "a", "commit": "b", "machine": {}, "stages": {"build": {"steps": {"x": 1}}}}',
    ],
)
def test_a_summary_of_another_form(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    for options in ([], ["--again"]):
        result = on_gpu("--out", str(tmp_path), *options)
        assert result.returncode == 2 and result.stdout == ""
        assert (
            result.stderr
            == f"error: --out {tmp_path}: its summary.json is none of this command's; choose another folder\n"
        )
    assert (tmp_path / "summary.json").read_text() == text


def test_a_summary_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{broken")
    result = on_gpu("--out", str(tmp_path))
    assert result.returncode == 2 and "its summary.json cannot be read" in result.stderr


def test_without_a_gpu_every_stage_that_needs_one_is_skipped(tmp_path: Path) -> None:
    result = on_gpu(
        *("--out", str(tmp_path), "--stages", "tests,sanitizer,bench,ncu,run", "--commit", "c0ffee"),
        CUDA_VISIBLE_DEVICES="",
    )
    assert result.returncode == 1 and result.stderr == ""
    assert result.stdout.splitlines()[-1].startswith("0 of 6 stages passed: machine failed, tests skipped, sanitizer ")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["commit"] == "c0ffee" and summary["machine"]["torch"]["version"] == torch.__version__
    assert {name: stage.get("reason") for name, stage in summary["stages"].items() if name != "machine"} == (
        dict.fromkeys(("tests", "sanitizer", "bench", "ncu", "run"), "torch sees no GPU")
    )
    assert {file.name for file in tmp_path.iterdir()} == {"summary.json", "log.txt"}


def test_what_is_missing_costs_what_needs_it(stages) -> None:
    def skipped(**changes) -> dict[str, str]:
        found = stages.all_stages(EVERYTHING | changes, Path("out"), Path("work"))
        return {stage.name: stage.skip for stage in found if stage.skip and stage.name != "conformance"}

    def without(key: str, name: str) -> dict:
        return {key: EVERYTHING[key] | {name: None}}

    assert skipped() == {}
    assert skipped(**without("tools", "ncu")) == {"ncu": "there is no ncu on PATH or in CUDA's folders"}
    assert skipped(**without("tools", "compute-sanitizer")).keys() == {"sanitizer"}
    assert skipped(**without("packages", "hypothesis")) == dict.fromkeys(("tests", "suite"), "Python has no hypothesis")
    assert skipped(**without("packages", "typer")).keys() == {"bench", "ncu", "run", "compile"}
    assert skipped(**without("packages", "triton")).keys() == {"compile"}
    assert skipped(**without("packages", "ninja")).keys() == {"build"}
    assert skipped(packages=EVERYTHING["packages"] | {"setuptools": "65.5.1"}) == {
        "build": "setuptools 65.5.1 is older than 77"
    }
    assert skipped(torch={"error": "it cannot be imported"}).keys() == {
        *("tests", "sanitizer", "bench", "ncu", "run", "compile", "suite")
    }


@pytest.mark.parametrize(("capability", "architecture"), [("9.0", "9.0a"), ("8.6", "8.6"), ("10.0", "10.0")])
def test_the_build_is_for_the_gpu_that_is_there(stages, capability: str, architecture: str) -> None:
    machine = EVERYTHING | {"torch": {"gpu": {"compute_capability": capability}}}
    build = stages.all_stages(machine, Path("out"), Path("work"))[0]
    assert build.steps[0].environment["TORCH_CUDA_ARCH_LIST"] == architecture and not build.gone
    assert stages.all_stages(machine | {"extension": None}, Path("out"), Path("work"))[0].gone


def test_the_stages_know_the_ops_and_write_eight_files(stages) -> None:
    files = importlib.import_module("on_gpu").FILES
    everything = stages.all_stages(None, Path("out"), Path("work"))
    assert len(files) == 8
    assert {stage.file for stage in everything} - {None} == set(files) - {"summary.json", "log.txt", "conformance.json"}
    assert set(stages.OPS) == set(OPS)


def test_nothing_beside_python_is_needed_to_start() -> None:
    """Its modules import from Python's library and each other alone."""
    own = {file.stem: file for file in FOLDER.glob("on_gpu*.py")}
    for file in own.values():
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert all(name.partition(".")[0] in {*sys.stdlib_module_names, *own} for name in names), (file, names)


def test_the_script(tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    assert os.access(SCRIPT, os.X_OK)
    result = on_gpu("--help", PYTHON=str(tmp_path / "none"), PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin")
    assert result.returncode == 0 and "--out DIR" in result.stdout
    for name in ("dirname", "bash"):
        (tmp_path / name).symlink_to(shutil.which(name))
    result = on_gpu("--help", PYTHON="", PATH=str(tmp_path))
    assert result.returncode == 2 and "no Python 3.10 or later that has torch was found" in result.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck() -> None:
    subprocess.run(["shellcheck", str(SCRIPT)], check=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a build needs, without anything built."""
    shutil.copytree(
        ROOT, tmp_path / "checkout",
        ignore=shutil.ignore_patterns(".*", "build", "runs", "*.egg-info", "*.so", "__pycache__", "results"),
    )  # fmt: skip
    return tmp_path / "checkout"


@pytest.fixture
def python(tmp_path: Path) -> str:
    """Of an environment that has this one's packages, all but the project itself: an installation harms nobody."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    for source in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(source).iterdir():
            if "minigpt" not in entry.name and not (packages / entry.name).exists():
                (packages / entry.name).symlink_to(entry)
    return python


def tools_of_a_build() -> bool:
    if not all(importlib.util.find_spec(name) for name in ("setuptools", "ninja", "pybind11")):
        return False
    return int(metadata.version("setuptools").partition(".")[0]) >= 77


@pytest.mark.slow
@pytest.mark.skipif(mg._C.build_info()["cuda_toolkit"] is None, reason="built without CUDA kernels")
@pytest.mark.skipif(not tools_of_a_build(), reason="a build without isolation needs setuptools>=77, ninja and pybind11")
def test_the_build_stage_builds(checkout: Path, python: str, tmp_path: Path) -> None:
    """For one architecture, without a GPU."""
    out = tmp_path / "out"

    def call() -> str:
        return on_gpu(
            *("--out", str(out), "--stages", "build"), script=checkout / "benchmarks" / "on_gpu.sh",
            PYTHON=python, TORCH_CUDA_ARCH_LIST="9.0a", CUDA_VISIBLE_DEVICES="",
        ).stdout  # fmt: skip

    assert "build / extension: passed" in call(), (out / "log.txt").read_text()[-3000:]
    build = json.loads((out / "summary.json").read_text())["stages"]["build"]
    assert build["status"] == "passed" and build["steps"]["extension"]["told"] == "by pip install -e ."
    info = build["steps"]["import"]["result"]
    assert info["cuda_toolkit"] and info["cuda_archs"] == "9.0a"
    assert len(list((checkout / "minigpt_ext").glob("_C*.so"))) == 1
    assert str(tmp_path) not in (out / "summary.json").read_text()
    printed = call()
    assert "build: passed (before)" in printed and "build / " not in printed


def test_where_pip_cannot_build_setup_py_does(stages, monkeypatch, tmp_path: Path) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ "$2" != pip ]\n')
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    step = stages.all_stages(EVERYTHING, Path("out"), Path("work"))[0].steps[0]
    done = subprocess.run(step.command, capture_output=True, text=True, check=True)
    calls = (tmp_path / "calls").read_text()
    assert calls == "-m pip install -v -e . --no-build-isolation --no-deps\nsetup.py build_ext --inplace\n"
    assert step.collect(done.stdout)["told"] == "by setup.py build_ext --inplace, as pip could not"
