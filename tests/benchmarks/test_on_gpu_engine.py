"""The engine of on_gpu.py, with stages of small Python programs: bounds, kills, resumption, and what it keeps."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
FACTS = {"commit": "c0ffee", "sources": "1234"}

# A run that stops in the middle: it notes every step that begins, and its second one does not end the first time.
DRIVER = """
import signal, sys
from pathlib import Path
sys.path.insert(0, {folder!r})
import on_gpu
from on_gpu_engine import Run, Stage, Stopped, Step

here = Path({here!r})
note = "import pathlib, sys, time; here = pathlib.Path(sys.argv[1])\\nopen(here / 'began', 'a').write(sys.argv[2])"
wait = note + "\\nif (here / 'began').read_text().count('b') == 1: time.sleep(60)"
steps = [Step(name, [sys.executable, "-c", code, str(here), name], 60)
         for name, code in (("a", note), ("b", wait), ("c", note))]
signal.signal(signal.SIGTERM, on_gpu.stop)
run = Run(here, {facts!r})
try:
    run.run(Stage("fake", steps, whole={whole}))
except Stopped:
    print("stopped")
"""


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("on_gpu_engine")
    monkeypatch.setattr(module, "KILL_AFTER", 1)
    return module


@pytest.fixture
def make(engine, tmp_path: Path):
    """make(name=code, ...) is a stage whose steps run Python code, 20 s each unless `seconds` tells otherwise."""

    def make(stage: str = "fake", seconds: int = 20, collect=None, **codes: str):
        steps = [engine.Step(name, [sys.executable, "-c", code], seconds, {}, collect) for name, code in codes.items()]
        return engine.Stage(stage, steps, "results.json")

    return make


def summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def status_of(out: Path, step: str, stage: str = "fake") -> str:
    return summary(out)["stages"][stage]["steps"][step]["status"]


def test_a_failure_is_told_and_stops_no_other(engine, make, tmp_path: Path, capsys) -> None:
    run = engine.Run(tmp_path, FACTS)
    stage = make(a="print('one')", b="print('broke here'); raise SystemExit(3)", c="print('three')")
    run.run(stage)
    told = summary(tmp_path)
    assert told["commit"] == "c0ffee" and told["stages"]["fake"]["status"] == "failed"
    steps = told["stages"]["fake"]["steps"]
    assert [step["status"] for step in steps.values()] == ["passed", "failed", "passed"]
    assert steps["b"]["exit_code"] == 3 and steps["b"]["reason"] == "exit code 3"
    assert steps["a"]["command"] == "timeout --signal=INT --kill-after=1 20 python -c 'print('\"'\"'one'\"'\"')'"
    log = (tmp_path / "log.txt").read_text()
    assert log.index("\none\n") < log.index("\nbroke here\n") < log.index("\nthree\n")
    printed = capsys.readouterr().out
    assert "fake / b: failed, 0 s; exit code 3\n    | broke here\n" in printed and "fake: failed, " in printed


def test_results_are_kept(engine, make, tmp_path: Path, capsys) -> None:
    run = engine.Run(tmp_path, FACTS)
    run.run(
        make(collect=lambda text: {"told": f"{text.strip()} of them", "n": int(text)}, a="print(5)", b="print('x')")
    )
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept == {
        "format": "minigpt-on-gpu-results", "version": 1, **FACTS, "steps": {"a": {"told": "5 of them", "n": 5}}
    }  # fmt: skip
    assert "fake / a: passed, 0 s; 5 of them" in capsys.readouterr().out
    assert status_of(tmp_path, "b") == "failed"
    assert "invalid literal" in summary(tmp_path)["stages"]["fake"]["steps"]["b"]["reason"]


def test_a_result_that_cannot_be_read_costs_no_other_step(engine, make, tmp_path: Path) -> None:
    engine.Run(tmp_path, FACTS).run(make(collect=lambda text: {"rows": {}[text.strip()]}, a="print('x')", b="pass"))
    steps = summary(tmp_path)["stages"]["fake"]["steps"]
    assert steps["a"]["reason"] == "its result cannot be read: KeyError('x')" and steps["b"]["status"] == "failed"


def test_what_is_too_large_is_no_result(engine, make, monkeypatch, tmp_path: Path) -> None:
    run = engine.Run(tmp_path, FACTS)
    monkeypatch.setattr(engine.on_gpu_files, "LIMIT", 2000)
    run.run(make(collect=lambda text: {"text": text}, a="print('x' * 3000)"))
    assert summary(tmp_path)["stages"]["fake"]["steps"]["a"]["reason"].startswith("results.json would be larger than")
    assert not (tmp_path / "results.json").exists()


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
print(child.pid, flush=True)
{then}
"""


@pytest.mark.parametrize(("then", "status"), [("time.sleep(60)", "timed out"), ("pass", "passed")])
def test_no_process_is_left_behind(engine, make, tmp_path: Path, then: str, status: str) -> None:
    began = time.monotonic()
    engine.Run(tmp_path, FACTS).run(make(a=STUBBORN.format(then=then), seconds=2))
    assert status_of(tmp_path, "a") == status and time.monotonic() - began < 15
    log = (tmp_path / "log.txt").read_text()
    pid = next(int(line) for line in log.splitlines() if line.isdecimal())
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_pytest_still_writes_its_report_when_its_time_is_over(engine, make, tmp_path: Path) -> None:
    code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('a report')"
    engine.Run(tmp_path, FACTS).run(make(a=code, seconds=1, collect=lambda text: {"text": text}))
    assert status_of(tmp_path, "a") == "timed out"
    assert "a report" in json.loads((tmp_path / "results.json").read_text())["steps"]["a"]["text"]


def test_endless_output_ends(engine, make, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine, "OUTPUT_LIMIT", 2**20)
    engine.Run(tmp_path, FACTS).run(make(a="while True: print('x' * 1000)"))
    assert summary(tmp_path)["stages"]["fake"]["steps"]["a"]["reason"] == "it printed more than 1 MiB"
    assert (tmp_path / "log.txt").stat().st_size < 6 * 2**20


def test_the_log_loses_its_middle(engine, make, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine.on_gpu_files, "LIMIT", 100_000)
    monkeypatch.setattr(engine.on_gpu_files, "KEPT_OUTPUT", 20_000)
    run = engine.Run(tmp_path, FACTS)
    loud = "print('begin'); print('x' * 500_000); print('end')"
    run.run(make(a=loud, b=loud, c=loud))
    log = (tmp_path / "log.txt").read_text()
    assert 90_000 < len(log) <= 100_000
    assert log.startswith("\n=== fake / a\n") and log.endswith("\n=== fake / c: passed, 0 s\n")
    assert log.count("begin\n") >= 2 and log.count("bytes left out here") >= 2


def test_finished_steps_are_not_run_again_unless_asked(engine, tmp_path: Path) -> None:
    note = f"open({str(tmp_path / 'began')!r}, 'a').write('x')"

    def call(again: bool = False, **changes) -> int:
        stage = engine.Stage("fake", [engine.Step("a", [sys.executable, "-c", note], 20)], **changes)
        engine.Run(tmp_path, FACTS).run(stage, again)
        return len((tmp_path / "began").read_text())

    assert [call(), call(), call(again=True), call(gone=True), call(skip="no GPU")] == [1, 1, 2, 3, 3]
    assert summary(tmp_path)["stages"]["fake"]["status"] == "passed"


def test_skipped_stages_say_why_and_are_tried_again(engine, make, tmp_path: Path, capsys) -> None:
    engine.Run(tmp_path, FACTS).run(engine.Stage("fake", make(a="pass").steps, skip="there is no ncu"))
    assert summary(tmp_path)["stages"]["fake"] == {"steps": {}, "status": "skipped", "reason": "there is no ncu"}
    assert "fake: skipped: there is no ncu" in capsys.readouterr().out
    engine.Run(tmp_path, FACTS).run(make(a="pass"))
    assert summary(tmp_path)["stages"]["fake"]["status"] == "passed"


def test_nothing_runs_on_an_extension_that_was_not_built(engine, make, tmp_path: Path) -> None:
    run = engine.Run(tmp_path, FACTS)
    run.run(engine.Stage("build", [engine.Step("a", ["false"], 20)], extension=False))
    run.run(make("tests", a="pass"))
    assert summary(tmp_path)["stages"]["tests"]["reason"] == "the extension was not built"


@pytest.fixture
def interrupted(tmp_path: Path):
    """interrupted(signal, whole) starts the DRIVER, sends it the signal within its step b, and runs it again.

    Returns the exit code of the first, the pid of the step that it left, and the two calls' summaries.
    """

    def interrupted(number: int, whole: bool) -> tuple[int, int, dict, dict]:
        code = DRIVER.format(folder=str(FOLDER), here=str(tmp_path), facts=FACTS, whole=whole)
        first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
        until = time.monotonic() + 30
        while not ((tmp_path / "began").exists() and (tmp_path / "began").read_text() == "ab"):
            assert time.monotonic() < until and first.poll() is None
            time.sleep(0.02)
        child = int(subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, text=True).stdout.split()[0])
        first.send_signal(number)
        ended = first.wait(30)
        before = summary(tmp_path)
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)
        return ended, child, before, summary(tmp_path)

    return interrupted


@pytest.mark.parametrize(("whole", "began"), [(False, "abbc"), (True, "ababc")])
def test_a_killed_run_goes_on(interrupted, tmp_path: Path, whole: bool, began: str) -> None:
    code, child, before, after = interrupted(signal.SIGKILL, whole)
    assert code == -signal.SIGKILL and before["stages"]["fake"]["steps"]["b"]["status"] == "running"
    assert (tmp_path / "began").read_text() == began
    assert after["stages"]["fake"]["status"] == "passed" and not is_running(child)


def test_a_stopped_run_leaves_nothing_and_goes_on(interrupted, tmp_path: Path) -> None:
    code, child, before, after = interrupted(signal.SIGTERM, False)
    assert code == 0 and not is_running(child)
    steps = before["stages"]["fake"]["steps"]
    assert steps["a"]["status"] == "passed" and steps["b"]["status"] == "cut off" and "c" not in steps
    assert (tmp_path / "began").read_text() == "abbc" and after["stages"]["fake"]["status"] == "passed"


def test_what_a_call_has_no_time_for_is_left_to_the_next(engine, make, tmp_path: Path, capsys) -> None:
    stage = make(a="pass", b="import time; time.sleep(3)", c="pass", seconds=7)
    run = engine.Run(tmp_path, FACTS)
    run.deadline = time.monotonic() + 2.5
    run.run(stage)
    steps = summary(tmp_path)["stages"]["fake"]["steps"]
    assert steps["a"]["status"] == "passed" and steps["b"]["status"] == "cut off" and "c" not in steps
    assert summary(tmp_path)["stages"]["fake"]["status"] == "not finished"
    engine.Run(tmp_path, FACTS).run(stage)
    assert [status_of(tmp_path, name) for name in "abc"] == ["passed"] * 3


def test_a_step_too_long_for_a_whole_call_is_over(engine, make, tmp_path: Path) -> None:
    run = engine.Run(tmp_path, FACTS)
    run.deadline = time.monotonic() + 2
    run.run(make(a="import time; time.sleep(60)", b="pass"))
    assert status_of(tmp_path, "a") == "timed out"


def test_marks_of_steps_within_steps(engine) -> None:
    environment = os.environ | {engine.MARK: "outerinner"}
    with subprocess.Popen(["sleep", "60"], env=environment) as process:
        try:
            # The kernel fills a new program's environment in a little after Popen has been told that it runs.
            deadline = time.monotonic() + 10
            while not engine.marked_processes("outer") and time.monotonic() < deadline:
                time.sleep(0.01)
            assert engine.marked_processes("outer") == engine.marked_processes("inner") == [process.pid]
            assert engine.marked_processes("other") == []
            engine.end_processes("outer")
            assert process.wait(5) == -signal.SIGKILL
        finally:
            process.kill()
