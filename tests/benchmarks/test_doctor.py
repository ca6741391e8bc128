"""`minigpt doctor` tells what is there, what runs, and what is wrong, and never dies of what it finds."""

import importlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import minigpt_ext as mg
from minigpt_ext.backend import OPS
from minigpt_ext.cli import app

doctor = sys.modules["minigpt_ext.cli.doctor"]
backend = sys.modules["minigpt_ext.backend"]


def run(*arguments: str):
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_text_is_complete() -> None:
    result = run()
    assert result.exit_code == 0, result.output
    info = mg._C.build_info()
    for told in (torch.__version__, mg._C.simd_level(), info["compiler"], "threads", "torch 2.11 and later", *OPS):
        assert told in result.stdout
    assert ("left out" in result.stdout) == (info["cuda_toolkit"] is None)
    assert "problem" not in result.stdout


def test_json_tells_the_same() -> None:
    result = run("--json")
    facts = json.loads(result.stdout)
    assert result.exit_code == 0 and facts["problems"] == []
    assert facts["torch"] == torch.__version__ and facts["minigpt_ext"] == mg.__version__
    assert facts["cpu"]["simd"] == mg._C.simd_level() and facts["cpu"]["threads"] == torch.get_num_threads()
    assert list(facts["ops"]) == list(OPS)
    has_cuda = mg._C.build_info()["cuda_toolkit"] is not None
    for op, told in facts["ops"].items():
        assert told["schemas"] and all(name.startswith(f"minigpt::{op}") for name in told["schemas"])
        assert told["kernels"] == {"CPU": True, "CUDA": has_cuda}
    assert facts["ops"]["attention"]["schemas"] == ["minigpt::attention_backward", "minigpt::attention_forward"]
    assert facts["ops"]["decode_attention"]["schemas"] == ["minigpt::decode_attention"]


def test_the_backend_chosen_now_is_told() -> None:
    with mg.backend(gelu="torch"):
        chosen = {op: told["backend"]["cpu"] for op, told in json.loads(run("--json").stdout)["ops"].items()}
    assert chosen == {op: "torch" if op == "gelu" else "kernels" for op in OPS}


def test_what_the_emulator_would_be_built_with(monkeypatch) -> None:
    monkeypatch.setenv("MINIGPT_CACHE", "/some/folder")
    told = run().stdout
    assert "CUDA emulator" in told and "/some/folder/emulator" in told
    monkeypatch.setenv("CXX", "no-such-compiler")
    mg.emulator.build.compiler.cache_clear()
    try:
        result = run("--json")
    finally:
        mg.emulator.build.compiler.cache_clear()
    assert result.exit_code == 0
    assert "no C++ compiler (CXX=no-such-compiler)" in json.loads(result.stdout)["emulator"]["missing"]


def test_a_gpu_that_is_too_old_is_told_so(monkeypatch) -> None:
    properties = SimpleNamespace(name="Tesla T4", major=7, minor=5, total_memory=16 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: True)
    monkeypatch.setattr(backend, "_usable", {})
    facts = doctor.examine()
    assert facts["devices"][1]["no_kernels"].endswith("compute capability 7.5, the kernels need 8.0")
    assert facts["ops"]["gelu"]["backend"] == {"cpu": "kernels", "cuda:0": "torch"}
    text = doctor.as_text(facts)
    assert "Tesla T4, compute capability 7.5, 16 GiB: uses torch's ops" in text and "need 8.0" in text


def test_apple_gpus_use_torch(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(backend, "_usable", {})
    facts = doctor.examine()
    assert "uses torch's ops; there are no kernels for mps devices" in doctor.as_text(facts)
    assert facts["ops"]["attention"]["backend"]["mps"] == "torch"


@pytest.mark.parametrize("words", ["No module named 'minigpt_ext._C'", "_C.so: undefined symbol: aoti_torch_x"])
def test_a_broken_extension_is_told(monkeypatch, words: str) -> None:
    real = importlib.import_module

    def broken(name: str):
        if name == "minigpt_ext._C":
            raise ImportError(words)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    result = run()
    assert result.exit_code == 1
    assert result.stdout.startswith(f"problem: the compiled extension cannot be used ({words}); build it: `pip install")
    assert "Traceback" not in result.output
    facts = json.loads(run("--json").stdout)
    assert facts["extension"] == {"file": None, "error": words} and len(facts["problems"]) == 1
    assert facts["devices"][0]["no_kernels"] and facts["ops"]["gelu"]["backend"] == {}


def test_an_instruction_set_that_is_not_there_is_told(monkeypatch) -> None:
    def refuse():
        raise RuntimeError("MINIGPT_SIMD=sse9: allowed are portable, avx2, avx512")

    monkeypatch.setattr(mg._C, "simd_level", refuse)
    result = run()
    assert result.exit_code == 1 and "problem: MINIGPT_SIMD=sse9" in result.stdout


def test_the_abi_that_the_module_keeps_to() -> None:
    assert doctor.abi_version("0x020b000000000000") == "2.11"
