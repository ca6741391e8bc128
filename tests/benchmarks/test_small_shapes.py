"""The small shapes for slow tools, and the launches for a profiler: they run every kernel, and find a wrong one."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import minigpt_ext as mg
from minigpt_ext.backend import OPS

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SCHEMAS = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("minigpt::")}


@pytest.fixture
def small_shapes(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("small_shapes")


def test_every_op_runs_and_is_right(small_shapes, device: str, capsys) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert small_shapes.main(["--device", device]) == 0
    assert {event.key for event in profile.key_averages()} >= SCHEMAS
    printed = capsys.readouterr().out
    cases = re.findall(r"^small shape (\w+) (\w+) .+\n  error \S+$", printed, re.MULTILINE)
    assert {op for op, _ in cases} == set(OPS)
    assert {dtype for _, dtype in cases} == {"float32", "float16", "bfloat16"}
    assert printed.endswith(f"\n{len(cases)} small shapes on {device}, 0 wrong\n") and len(cases) > 150


@pytest.mark.parametrize("op", OPS)
def test_a_wrong_op_is_found(small_shapes, monkeypatch, op: str, capsys) -> None:
    right = getattr(mg.ops, op)

    def wrong(*inputs, **options):
        if op == "kv_append":  # a token goes to its neighbour's place
            options["seq_lens"] = options["seq_lens"] + 1
        out = right(*inputs, **options)
        return out if out is None else out * 1.1

    monkeypatch.setattr(mg.ops, op, wrong)
    if op == "kv_append":  # where the CPU would refuse a place beyond the end
        monkeypatch.setattr(small_shapes, "BATCHES", (((3,), (2,)),))
    assert small_shapes.main([op]) == 1
    assert "WRONG, above" in capsys.readouterr().out


def test_a_wrong_gradient_is_found(small_shapes, monkeypatch, capsys) -> None:
    backward = torch.ops.minigpt.gelu_backward
    monkeypatch.setattr(torch.ops.minigpt, "gelu_backward", lambda *inputs: -backward(*inputs))
    assert small_shapes.main(["gelu"]) == 1


def test_unknown_ops_and_devices(small_shapes, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        small_shapes.main(["gelu", "softmax"])
    assert ended.value.code == 2 and "there is no op softmax; there are attention, " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(small_shapes, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        small_shapes.main(["--device", "cuda"])
    assert ended.value.code == 2 and "torch sees no GPU here" in capsys.readouterr().err


@pytest.mark.parametrize("op", OPS)
def test_each_case_of_a_benchmark_is_launched(op: str) -> None:
    command = [sys.executable, str(FOLDER / "launch_once.py"), op, "--device", "cpu", "--dtype", "float32", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{op} ") >= 2
