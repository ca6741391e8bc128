"""The tool ncu: its command line, its table, its failures. The program itself is played by a script."""

import json
import math
import re
import sys
from pathlib import Path

import pytest

from minigpt_ext.profiling import ncu
from minigpt_ext.profiling.job import Job

# Made by hand in the form of `ncu --csv --page raw --print-units base` (Nsight Compute 2025): lines of ncu's own, a
# line of names, a line of units, a line a launch. No GPU wrote these figures; they are round so that means can be seen.
COLUMNS = [
    # name, unit, one cell a launch
    ("ID", "", "0", "1", "2"),
    ("Process ID", "", "4242", "4242", "4242"),
    ("Process Name", "", "python3.12", "python3.12", "python3.12"),
    ("Host Name", "", "127.0.0.1", "127.0.0.1", "127.0.0.1"),
    (
        "Kernel Name",
        "",
        "void minigpt::gelu_forward_kernel<float>(minigpt::GeluForwardParams)",
        "void minigpt::gelu_backward_kernel<float>(minigpt::GeluBackwardParams)",
        "void minigpt::gelu_forward_kernel<float>(minigpt::GeluForwardParams)",
    ),
    ("Context", "", "1", "1", "1"),
    ("Stream", "", "7", "7", "7"),
    ("Block Size", "", "(256, 1, 1)", "(256, 1, 1)", "(256, 1, 1)"),
    ("Grid Size", "", "(6144, 1, 1)", "(6144, 1, 1)", "(6144, 1, 1)"),
    ("Device", "", "0", "0", "0"),
    ("CC", "", "9.0", "9.0", "9.0"),
    ("dram__bytes_read.sum", "byte", "3,000,000", "6,000,000", "3,000,000"),
    ("dram__bytes_write.sum", "byte", "1,000,000", "3,000,000", "1,000,000"),
    ("gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed", "%", "60.5", "80", "61.5"),
    ("gpu__time_duration.sum", "ns", "2,000", "9,000", "4,000"),
    ("l1tex__average_t_sectors_per_request_pipe_lsu_mem_global_op_ld.ratio", "sector/request", "16", "16", "16"),
    ("l1tex__average_t_sectors_per_request_pipe_lsu_mem_global_op_st.ratio", "sector/request", "16", "16", "16"),
    ("l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum", "", "0", "32", "0"),
    ("l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum", "", "0", "8", "0"),
    ("launch__registers_per_thread", "register/thread", "32", "40", "32"),
    ("sm__maximum_warps_per_active_cycle_pct", "%", "100", "75", "100"),
    ("sm__throughput.avg.pct_of_peak_sustained_elapsed", "%", "n/a", "31.25", "n/a"),
    ("sm__warps_active.avg.pct_of_peak_sustained_active", "%", "85", "70", "87"),
]
CSV = "==PROF== Connected to process 4242 (/usr/bin/python3.12)\n==PROF== Disconnected from process 4242\n"
CSV += "".join(",".join(f'"{cell}"' for cell in line) + "\n" for line in zip(*COLUMNS, strict=True))
DENIED = (
    "==PROF== Connected to process 4242 (/usr/bin/python3.12)\n"
    "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters on the "
    "target device 0.\n"
)
# Plays ncu: keeps its arguments, and writes TEXT to the file that --log-file names.
NCU = """
import json
pathlib.Path("asked.json").write_text(json.dumps(sys.argv[1:]))
log = next(word.partition("=")[2] for word in sys.argv if word.startswith("--log-file="))
pathlib.Path(log).write_text({text!r})
print("what the program under ncu says")
sys.exit({status})
"""


def test_the_table_is_read() -> None:
    forward, backward = ncu.parse(CSV)
    assert (forward.name, forward.count) == ("gelu_forward_kernel<float>", 2)
    assert (backward.name, backward.count) == ("gelu_backward_kernel<float>", 1)
    assert forward.seconds == pytest.approx(6e-6) and backward.seconds == pytest.approx(9e-6)
    assert forward.mean("time us") == pytest.approx(3e-6)  # (2,000 + 4,000) ns / 2
    assert forward.mean("DRAM MB") == 4e6 and backward.mean("DRAM MB") == 9e6  # read and written
    assert forward.mean("DRAM %") == 61
    assert backward.mean("bank conflicts") == 40
    assert math.isnan(forward.mean("SM %")) and backward.mean("SM %") == 31.25


def test_units_other_than_base() -> None:
    text = CSV.replace('"ns"', '"us"').replace('"2,000"', '"2.00"').replace('"4,000"', '"4.00"')
    assert ncu.parse(text.replace('"9,000"', '"9.00"'))[0].mean("time us") == pytest.approx(3e-6)


@pytest.mark.parametrize("text", ["", DENIED, "==WARNING== No kernels were profiled.\n"])
def test_no_table(text: str) -> None:
    assert ncu.parse(text) == []


def test_a_counter_that_is_not_there_is_a_dash() -> None:
    line = next(line for line in ncu.counter_table(ncu.parse(CSV)).splitlines() if line.startswith("gelu_forward"))
    cells = dict(zip(["kernel", "launches", *ncu.COUNTERS], line.split(), strict=True))
    assert cells["SM %"] == "-"
    assert cells["time us"] == "3.0" and cells["DRAM MB"] == "4.0" and cells["occupancy %"] == "86.0"


@pytest.mark.parametrize(
    "what, is_ours, is_not",
    [
        ("gelu", ["gelu_forward_kernel", "minigpt::gelu_backward_kernel"], ["GeluCUDAKernelImpl", "fast_gelu_kernel"]),
        ("attention", ["attention_forward_kernel"], ["decode_attention_kernel"]),
        ("layer_norm", ["layer_norm_backward_dx_kernel"], ["vectorized_layer_norm_kernel"]),
        ("train", ["decode_attention_merge_kernel", "kv_append_kernel"], ["vectorized_layer_norm_kernel"]),
    ],
)
def test_the_filter_lets_our_kernels_through(what: str, is_ours: list[str], is_not: list[str]) -> None:
    option = next(word for word in ncu.command(Job(what, device="cuda")) if word.startswith("--kernel-name="))
    pattern = option.removeprefix("--kernel-name=regex:")
    assert all(re.search(pattern, name) for name in is_ours)
    assert not any(re.search(pattern, name) for name in is_not)


def test_the_command_and_the_tables(minigpt, tool, tmp_path: Path) -> None:
    tool("ncu", NCU.format(text=CSV, status=0))
    status, said, errors = minigpt(
        *("profile", "gelu", "--tool", "ncu", "--repeat", "2", "--dtype", "float32"),
        *("--shape", "rows=10,columns=100,approximate=tanh,backward=yes"),
    )
    assert status == 0, errors
    asked = json.loads((tmp_path / "asked.json").read_text())
    child = asked.index(sys.executable)
    assert asked[child:] == [
        *(sys.executable, "-m", "minigpt_ext.cli", "profile", "gelu", "--tool", "none", "--device", "cuda"),
        *("--dtype", "float32", "--repeat", "2"),
        *("--shape", "rows=10,columns=100,approximate=tanh,backward=yes"),
    ]
    options = dict(word.partition("=")[::2] for word in asked[:child])
    assert {"--csv", "--page", "--print-units", "--log-file"} <= options.keys()
    assert options["--page"] == "raw" and options["--print-units"] == "base"
    assert options["--profile-from-start"] == "off" and options["--clock-control"] == "none"
    assert set(options["--metrics"].split(",")) == {name for name, *_ in COLUMNS if "__" in name}
    assert not any(word.startswith("--nvtx") for word in options)

    assert "gelu tanh 10x100 forward+backward" in said
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line}
    # 2 calls: forward 6 us together, so 3 us a call; 2 x 1,000 floats are 8,000 bytes: 2.67 GB/s of 2 GB/s.
    assert rows["forward"] == ["3.0", "0.008", "MB", "2.7", "GB/s", "133%", "copy"]
    # backward 9 us in 2 calls; 12,000 bytes.
    assert rows["backward"] == ["4.5", "0.012", "MB", "2.7", "GB/s", "133%", "copy"]


def test_a_range_is_a_filter(minigpt, tool, tmp_path: Path) -> None:
    tool("ncu", NCU.format(text=CSV, status=0))
    status, _, errors = minigpt("profile", "train", "--tool", "ncu", "--range", "block 1", "--batch-size", "2")
    assert status == 0, errors
    asked = json.loads((tmp_path / "asked.json").read_text())
    assert {"--nvtx", "--nvtx-include=block 1/", "--nvtx-push-pop-scope=process"} <= set(asked)
    assert asked[-2:] == ["--batch-size", "2"]


@pytest.mark.parametrize("status", [0, 1, 255])
def test_no_permission_for_counters(minigpt, tool, status: int) -> None:
    tool("ncu", NCU.format(text=DENIED, status=status))
    ended, _, errors = minigpt("profile", "gelu", "--tool", "ncu")
    assert ended == 1
    assert "ERR_NVGPUCTRPERM" in errors and "NVreg_RestrictProfilingToAdminUsers=0" in errors
    assert "--cap-add=SYS_ADMIN" in errors and "--tool torch" in errors
    assert "--kernel-name" in errors  # the command, to be run again


def test_another_failure_is_told_as_ncu_tells_it(minigpt, tool) -> None:
    tool("ncu", NCU.format(text="==ERROR== Failed to find metric dram__bytes_read.sum\n", status=9))
    ended, _, errors = minigpt("profile", "gelu", "--tool", "ncu")
    assert ended == 1
    assert "ncu ended with status 9" in errors and "Failed to find metric dram__bytes_read.sum" in errors
    assert "what the program under ncu says" in errors


def test_no_kernel_in_the_range(minigpt, tool) -> None:
    tool("ncu", NCU.format(text="==WARNING== No kernels were profiled.\n", status=0))
    ended, _, errors = minigpt("profile", "train", "--tool", "ncu", "--range", "blok 1")
    assert ended == 1 and "no kernel of ours within a range called 'blok 1'" in errors
