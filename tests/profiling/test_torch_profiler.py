"""The tool torch: its tables say what the trace beside them says, and its ranges hold the parts of the model."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.autograd import DeviceType

from minigpt_ext.profiling.torch_profiler import report
from minigpt_ext.profiling.work import Work
from minigpt_ext.profiling.workload import Workload


def rows_of(said: str, heading: str) -> dict[str, list[str]]:
    """The rows of the table whose first heading is that, by name (with its indent); a cell a word."""
    lines = said.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.split(" ")[0] == heading)
    rows = {}
    for line in lines[begin + 2 :]:
        if not line:
            break
        width = lines[begin + 1].index(" ")
        rows.setdefault(line[:width].rstrip(), line[width:].split())
    return rows


def trace_of(folder: Path, name: str) -> list[dict]:
    return [event for event in json.loads((folder / name).read_text())["traceEvents"] if event.get("ph") == "X"]


def test_an_op(minigpt, tmp_path: Path) -> None:
    status, said, errors = minigpt(
        "profile", "gelu", "--device", "cpu", "--quick", "--repeat", "4", "--shape", "tanh 512x1536 forward"
    )
    assert (status, errors) == (0, "")
    rows = rows_of(said, "op")
    calls, total_ms, _, each_us, amount, unit, rate, rate_unit, share, ceiling = rows["minigpt::gelu_forward"]
    assert (calls, amount, unit, rate_unit, ceiling) == ("4", "6.3", "MB", "GB/s", "copy")  # 2 x 512 x 1536 x 4 bytes
    assert 4 * float(each_us.replace(",", "")) == pytest.approx(1e3 * float(total_ms), rel=0.01)
    assert float(rate) == pytest.approx(6.291 / float(total_ms) * 4, rel=0.05)

    assert "Chrome trace: profile-gelu.json" in said
    assert [path.name for path in tmp_path.iterdir()] == ["profile-gelu.json"]
    traced = [
        event["dur"] for event in trace_of(tmp_path, "profile-gelu.json") if event["name"] == "minigpt::gelu_forward"
    ]
    assert len(traced) == 4
    assert 0.5 * sum(traced) < 1e3 * float(total_ms) <= 1.01 * sum(traced)  # its own time, without what it calls


def test_training(minigpt, tmp_path: Path) -> None:
    arguments = (
        "--device",
        "cpu",
        "--quick",
        "--repeat",
        "2",
        "--batch-size",
        "2",
        "--threads",
        "1",
        "--trace",
        "t.json",
    )
    status, said, errors = minigpt("profile", "train", *arguments)
    assert (status, errors) == (0, "")
    rows = rows_of(said, "range")
    parts = [
        "step",
        "  data",
        "  forward",
        "    embedding",
        "    block 0",
        "      attention",
        "      mlp",
        "    block 1",
    ]
    assert [name for name in rows if name.strip() in {part.strip() for part in parts}][: len(parts)] == parts
    assert {"    ln_f", "    head", "    loss", "  backward", "  optimizer"} <= rows.keys()
    assert all(cells[0] == "2" for name, cells in rows.items())
    milliseconds = {name: float(cells[1].replace(",", "")) for name, cells in rows.items()}
    within = sum(milliseconds[f"  {name}"] for name in ("data", "forward", "backward", "optimizer"))
    assert 0.8 * milliseconds["step"] < within <= milliseconds["step"]
    # tiny: 437,888 parameters, of which 256 x 128 are positions; 512 tokens, 2 layers of 128, windows of 256
    flops = 512 * (6 * (437_888 - 256 * 128) + 6 * 2 * 128 * 256)
    assert rows["step"][4:6] == [f"{flops / 1e6:,.1f}", "MFLOP"]

    ops = rows_of(said, "op")
    assert {"minigpt::attention_backward", "minigpt::attention_forward", "aten::mm"} <= ops.keys()
    assert ops["minigpt::attention_forward"][0] == "4"
    names = Counter(event["name"] for event in trace_of(tmp_path, "t.json"))
    assert names["backward"] >= 2 and names["minigpt::attention_backward"] == 4


def test_generation(minigpt) -> None:
    status, said, errors = minigpt(
        *("profile", "generate", "--device", "cpu", "--quick", "--prompt", "9", "--tokens", "4", "--threads", "1")
    )
    assert (status, errors) == (0, "")
    rows = rows_of(said, "range")
    assert rows["prefill"][0] == "1" and rows["token"][0] == "3"
    assert rows["prefill"][-1] == "gemm" and rows["token"][-1] == "read"
    # a token reads all weights but the positions, and 9 + 4 / 2 keys and values a layer; 4 bytes each
    assert rows["token"][4:6] == [f"{4 * (437_888 - 256 * 128 + 2 * 2 * 128 * 11) / 1e6:.1f}", "MB"]


def test_a_trace_that_cannot_be_written(minigpt, tmp_path: Path) -> None:
    status, said, errors = minigpt("profile", "gelu", "--device", "cpu", "--quick", "--trace", "no/t.json")
    assert status == 2 and f"--trace no/t.json: there is no folder {tmp_path / 'no'}" in errors
    assert said == ""
    (tmp_path / "folder").mkdir()
    status, said, errors = minigpt("profile", "gelu", "--device", "cpu", "--quick", "--trace", "folder")
    assert status == 2 and "--trace folder: that is a folder" in errors and said == ""
    assert list(tmp_path.rglob("*")) == [tmp_path / "folder"]


def event(name: str, start: float, end: float, *, gpu: float = 0, is_range: bool = False, parent=None):
    """What torch.profiler has of one event; times in us. gpu: of the kernels it launched."""
    return SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(start=start, end=end),
        cpu_time_total=end - start,
        self_cpu_time_total=end - start,
        self_device_time_total=gpu,
        device_type=DeviceType.CPU,
        is_user_annotation=is_range,
        cpu_parent=parent,
        input_shapes=[],
        flops=0,
    )


def test_on_a_gpu_time_is_that_of_kernels_and_a_range_has_all_that_was_launched_meanwhile() -> None:
    """By hand, since no GPU is needed to add up: autograd launches backward's kernels from a thread of its own, so that
    they are no children of the range."""
    forward, backward = event("forward", 0, 100, is_range=True), event("backward", 100, 200, is_range=True)
    events = [
        forward,
        event("minigpt::gelu_forward", 10, 30, gpu=1000, parent=forward),
        backward,
        event("minigpt::gelu_backward", 150, 160, gpu=3000),
        event("minigpt::gelu_backward", 190, 230, gpu=1000),
    ]
    load = Workload("x", lambda: None, lambda name, shapes: Work("copy", 1e6), {"backward": Work("gemm", 8e9)})
    said = report(events, load, 10e-3, {"copy": 2e9, "gemm": 4e12}, on_gpu=True)
    ranges, ops = rows_of(said, "range"), rows_of(said, "op")
    assert ranges["forward"] == ["1", "0.100", "1.0%", "1.000", "100.0"]
    rate = ["8,000.0", "MFLOP", "2,000.0", "GFLOP/s", "50%", "gemm"]
    assert ranges["backward"] == ["1", "0.100", "1.0%", "4.000", "100.0", *rate]
    assert ops["minigpt::gelu_backward"] == [
        "2",
        "4.000",
        "80.0%",
        "2,000.0",
        "1.0",
        "MB",
        "0.5",
        "GB/s",
        "25%",
        "copy",
    ]
    assert "The GPU computed for 50% of the time." in said
