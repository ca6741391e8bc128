"""`minigpt profile`: what it refuses, and what it prints where nothing can be measured."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minigpt_ext.backend import OPS
from minigpt_ext.profiling import external
from minigpt_ext.profiling.job import Job
from minigpt_ext.profiling.tools import TOOLS, default_tool

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (
            ["softmax"],
            f"cannot profile 'softmax'; there are {', '.join(OPS)}, tr",
        ),
        (["gelu", "--preset", "tiny"], "--preset means nothing to gelu"),
        (["train", "--shape", "1x1"], "--shape means nothing to train"),
        (["train", "--tokens", "3"], "--tokens means nothing to train"),
        (["generate", "--batch-size", "3"], "--batch-size means nothing to generate"),
        (["train", "--preset", "huge"], "--preset: expected one of tiny, small, medium, modern-tiny"),
        (["train", "--range", "mlp", "--device", "cpu"], "--range means nothing to the tool torch"),
        (["train", "--trace", "x", "--tool", "ncu"], "--trace means nothing to the tool ncu"),
        (["gelu", "--tool", "ncu", "--device", "cpu"], "--tool ncu looks at cuda, not at --device cpu"),
        (["generate", "--prompt", "250", "--device", "cpu"], "--prompt 250 and --tokens 32 do not fit the 256 tokens"),
        (["gelu", "--shape", "7x7", "--device", "cpu"], "--shape 7x7: there is no such shape"),
        (["decode_attention", "--shape", "B=1,S=100", "--device", "cpu"], "--shape B=1,S=100: "),
        pytest.param(["gelu", "--device", "cuda", "--tool", "torch"], "--device cuda: torch", marks=no_gpu),
    ],
)
def test_it_refuses(minigpt, tmp_path: Path, arguments: list[str], said: str) -> None:
    status, output, errors = minigpt("profile", *arguments)
    assert status == 2
    assert errors.startswith("error: ") and said in errors and len(errors.splitlines()) == 1
    assert output == "" and not list(tmp_path.iterdir())


def test_outside_a_checkout(minigpt, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules["minigpt_ext.cli.bench"], "FOLDER", tmp_path)
    status, _, errors = minigpt("profile", "gelu")
    assert status == 2 and "run from a checkout" in errors


@no_gpu
@pytest.mark.parametrize("what", ["gelu", "decode_attention", "train", "generate"])
@pytest.mark.parametrize("tool", ["ncu", "nsys"])
def test_without_a_gpu_the_command_is_printed(minigpt, what: str, tool: str) -> None:
    status, said, errors = minigpt("profile", what, "--tool", tool)
    assert (status, errors) == (0, "")
    assert "Nothing was measured: torch" in said and "sees no GPU here" in said
    assert f"profile {what} --tool none --device cuda" in said
    assert f"\n{tool} " in said


def test_without_the_tool_the_command_is_printed(minigpt, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(external, "_TOOLKIT", str(tmp_path / "cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(external, "why_no_kernels", lambda device: None)
    status, said, errors = minigpt("profile", "train", "--tool", "nsys", "--device", "cuda")
    assert (status, errors) == (0, "")
    assert f"Nothing was measured: nsys is neither on PATH nor in {tmp_path / 'cuda'}" in said


def test_a_printed_command_is_what_a_shell_runs(tmp_path: Path) -> None:
    """Quotes, line ends and all: the shell hands the tool the words of the list."""
    show = tmp_path / "show"
    show.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:])\n")
    show.chmod(0o755)
    words = ["--name=regex:(^|[^a-z_])(gelu)_", "--range=block 0/", *Job("gelu", shape="B1 it's").command()]
    ran = subprocess.run(external.layout([str(show), *words]), shell=True, capture_output=True, text=True, check=True)
    assert ran.stdout == f"{words}\n"


@pytest.mark.parametrize(
    "job",
    [
        Job("gelu", repeat=3, quick=True, shape="tanh 512x1536 forward"),
        Job("train", batch_size=1, dtype="bfloat16"),
        Job("generate", prompt=5, tokens=2),
    ],
    ids=lambda job: job.what,
)
def test_what_a_tool_starts_runs(job: Job, tmp_path: Path) -> None:
    ran = subprocess.run(job.command(), capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert f"{job.repeat} {job.unit}(s) after 2 to warm up" in ran.stdout
    assert not list(tmp_path.iterdir())


@no_gpu
def test_nobody_reads_on() -> None:
    """`minigpt profile ... | true`: it ends without a word."""
    command = [sys.executable, "-m", "minigpt_ext.cli", "profile", "gelu", "--tool", "ncu", "--quick"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        running.stdout.close()
        assert running.stderr.read() == ""


@pytest.mark.parametrize(
    "error, said",
    [
        (FileNotFoundError(2, "No such file", "nvcc"), "error: nvcc: No such file\n"),
        (OSError("odd"), "error: odd\n"),
        (PermissionError(13, "Permission denied", "x.json.partial"), "error: --trace: x.json.partial: Permission den"),
    ],
)
def test_what_cannot_be_written_or_found(minigpt, monkeypatch, error: OSError, said: str) -> None:
    """Only what lies where the trace goes is blamed on it."""

    def refuse(*_):
        raise error

    monkeypatch.setattr(sys.modules["minigpt_ext.cli.profile"], "profile_with", refuse)
    options = ["--trace", "x.json"] if "trace" in said else ["--trace", "/tmp/x.json"]
    status, _, errors = minigpt("profile", "gelu", "--tool", "torch", "--device", "cpu", *options)
    assert status == 2 and errors.startswith(said)


def test_the_tools_by_default() -> None:
    assert default_tool("gelu", "cpu") == default_tool("train", "cpu") == "torch"
    assert default_tool("gelu", "cuda") == "ncu"
    assert default_tool("train", "cuda") == default_tool("generate", "cuda") == "nsys"


def test_help_names_every_tool(minigpt) -> None:
    status, said, _ = minigpt("profile", "--help")
    assert status == 0 and all(name in said for name in TOOLS)


@pytest.mark.parametrize(
    "full, short",
    [
        ("void minigpt::gelu_forward_kernel<float>(minigpt::GeluForwardParams)", "gelu_forward_kernel<float>"),
        ("void f<(int)4, (bool)1>(T1)", "f<(int)4, (bool)1>"),
        ("kv_append_kernel", "kv_append_kernel"),
        ("void at::native::(anonymous namespace)::k<float>(int)", "at::native::(anonymous namespace)::k<float>"),
    ],
)
def test_short_names_of_kernels(full: str, short: str) -> None:
    assert external.short_name(full) == short
