"""What on_gpu.py keeps of what pytest, compute-sanitizer, ncu, the benchmarks, training and decoding say."""

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"

SUITE = """
import pytest

@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_right(device): pass

@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_wrong(device): assert device == "cpu", "it is " + device

def test_skipped(): pytest.skip("there is no tool")

@pytest.fixture
def broken(): raise OSError("no such thing")

def test_error(broken): pass
"""

MEMCHECK = """========= COMPUTE-SANITIZER
small shape gelu float32 1 none
  error 0.0e+00
small shape gelu float32 31 none
========= Invalid __global__ read of size 4 bytes
=========     at void gelu_forward_kernel<float>(GeluForwardParams)+0x90 in gelu.cuh:44
========= ERROR SUMMARY: 2 errors
"""
RACECHECK = "small shape gelu float32 1 none\n========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)\n"

NCU = """==PROF== Connected to process 77
==PROF== Profiling "gelu_forward_kernel": 0%....100% - 40 passes
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Metric Name","Metric Unit","Metric Value"
"0","77","python3","box","gelu_forward_kernel","1","7","Duration","us","1,234.50"
"0","77","python3","box","gelu_forward_kernel","1","7","Registers Per Thread","register/thread","32"
"1","77","python3","box","gelu_backward_kernel","1","7","Duration","us","3"
"""


@pytest.fixture(autouse=True)
def _on_path(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def results():
    return importlib.import_module("on_gpu_results")


def test_of_pytest(results, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=report.xml", "test_it.py"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 1
    report = results.pytest_report(tmp_path / "report.xml")
    assert report["counts"] == {"passed": 3, "failed": 2, "skipped": 1}
    assert report["on_cuda"] == {"passed": 1, "failed": 1, "skipped": 0}
    assert [failure["name"] for failure in report["failures"]] == ["test_it::test_wrong[cuda]", "test_it::test_error"]
    assert "it is cuda" in report["failures"][0]["message"] and "no such thing" in report["failures"][1]["message"]
    assert report["skipped"] == {"there is no tool": 1}
    assert report["told"] == "3 passed, 2 failed, 1 skipped; on CUDA 1 passed, 1 failed"


def test_of_pytest_that_wrote_none_or_half(results, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it wrote no report.xml"):
        results.pytest_report(tmp_path / "report.xml")
    (tmp_path / "report.xml").write_text("<testsuites><testsuite>")
    with pytest.raises(ValueError, match="report.xml is no XML"):
        results.pytest_report(tmp_path / "report.xml")


def test_of_the_sanitizer(results) -> None:
    report = results.sanitizer_report(MEMCHECK)
    assert (report["errors"], report["warnings"], report["cases"]) == (2, 0, 2)
    assert len(report["lines"]) == 4 and "gelu.cuh:44" in report["lines"][2]
    report = results.sanitizer_report(RACECHECK)
    assert (report["errors"], report["warnings"], report["cases"]) == (1, 2, 1)
    with pytest.raises(ValueError, match="no summary"):
        results.sanitizer_report("========= Error: the device is not supported\n")


def test_of_ncu_into_a_table(results, tmp_path: Path) -> None:
    files = importlib.import_module("on_gpu_files")
    (tmp_path / "one.csv").write_text(NCU)
    report = results.ncu_rows(tmp_path / "one.csv")
    assert report["told"] == "2 launches, 3 figures"
    for step, result in (("gelu float32", report), ("gelu bfloat16", report), ("gelu float32", {"rows": []})):
        files.put_result(tmp_path / "ncu.csv", {}, step, result)
    with (tmp_path / "ncu.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["step"] for row in rows] == ["gelu bfloat16"] * 3  # the second float32 took the first one's place
    assert rows[0] == {
        "step": "gelu bfloat16", "ID": "0", "Kernel Name": "gelu_forward_kernel", "Metric Name": "Duration",
        "Metric Unit": "us", "Metric Value": "1,234.50",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "==ERROR== The user does not have permission to access the counters\n"])
def test_of_ncu_without_a_table(results, tmp_path: Path, text: str) -> None:
    (tmp_path / "one.csv").write_text(text)
    with pytest.raises(ValueError, match="ncu wrote no table: " + text.strip()):
        results.ncu_rows(tmp_path / "one.csv")


def test_of_training_and_decoding_as_they_print_now(results, tmp_path: Path) -> None:
    """Through the commands themselves, so that a changed wording or file is noticed."""
    minigpt = [sys.executable, "-m", "minigpt_ext.cli"]
    text = tmp_path / "text.txt"
    text.write_text("a small text to learn by heart. " * 100)
    sizes = [f"--set={setting}" for setting in ("block_size=16", "batch_size=2", "eval_interval=5", "device=cpu")]
    train = [*minigpt, "train", "--data", str(text), "--steps", "10", *sizes, "--out", str(tmp_path / "run")]
    subprocess.run(train, check=True, capture_output=True)
    report = results.training_report(tmp_path / "run" / "metrics.jsonl")
    assert report["tokens_per_second"] > 0
    assert [step for step, _ in report["validation_losses"]] == [0, 5, 10]
    assert all(0 < loss < 5 for _, loss in report["validation_losses"])

    generate = [*minigpt, "generate", "--model", str(tmp_path / "run"), "--max-new-tokens", "20", "--device", "cpu"]
    done = subprocess.run(generate, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    report = results.generation_report(done.stdout)
    assert report["tokens_per_second"] > 0 and report["first_token_ms"] > 0
    with pytest.raises(ValueError, match="no speed"):
        results.generation_report("error: there is no model")


def test_of_a_benchmark_as_it_writes_now(results, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "minigpt_ext.cli", "bench", "gelu", "--quick", "--json", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    report = results.bench_report(file)
    assert report["card"]["device"] == "cpu" and report["told"].startswith(f"{len(report['rows'])} rows; ")


def test_of_the_build(results) -> None:
    assert results.build_report("Successfully installed\n")["by"] == "pip install -e ."
    text = "error: no permission\npip could not install it: building in place\n[19/19] c++\n"
    assert results.build_report(text)["by"] == "setup.py build_ext --inplace, as pip could not"


def test_the_last_json(results) -> None:
    assert results.last_json('warning\n{"a": 1}\n{"a": 2}\nerror: no GPU\n') == {"a": 2}
    for text in ("", "nothing", "{broken"):
        with pytest.raises(ValueError):
            results.last_json(text)


def test_paths_of_this_machine_are_not_kept(tmp_path: Path) -> None:
    files = importlib.import_module("on_gpu_files")
    files.write_json(
        tmp_path / "x.json", {"command": f"{sys.executable} {FOLDER}/small_shapes.py", "in": f"{files.ROOT}"}
    )
    assert json.loads((tmp_path / "x.json").read_text()) == {"command": "python benchmarks/small_shapes.py", "in": "."}
