"""backend("emulated") and its variables: what runs where, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from emulator.mutate_synchronisation import synchronisations

import minigpt_ext as mg
from minigpt_ext.backend import OPS, implementation, library

pytestmark = pytest.mark.usefixtures("built")

CPU = torch.device("cpu")


def launches(checked: bool) -> int:
    return mg.emulator.statistics(checked=checked).launches


def test_what_is_chosen():
    with mg.backend("emulated"):
        assert {implementation(op, CPU) for op in OPS} == {"emulated"}
        with mg.backend(check="race", seed=7):
            assert implementation("gelu", CPU) == "emulated+race" and library("emulated+race").seed == 7
            with mg.backend(gelu="torch", seed=8):
                assert implementation("gelu", CPU) == "torch" and implementation("attention", CPU) == "emulated+race"
                assert library("emulated+race").seed == 8
        assert implementation("gelu", CPU) == "emulated" and library("emulated").seed == 0
    assert implementation("gelu", CPU) == "kernels"


@pytest.mark.parametrize("checked", [False, True])
def test_the_backward_runs_where_the_forward_ran(checked):
    x = torch.randn(5, requires_grad=True)
    before, others = launches(checked), launches(not checked)
    with mg.backend("emulated", check="race" if checked else "none"):
        y = mg.ops.gelu(x)
    assert launches(checked) == before + 1
    y.sum().backward()
    assert launches(checked) == before + 2 and launches(not checked) == others


@pytest.mark.parametrize("op", OPS)
def test_other_devices_are_refused(op):
    with mg.backend("emulated"):
        with pytest.raises(
            ValueError, match=f"{op}: the emulator runs the CUDA kernels on CPU tensors; these are on cuda"
        ):
            implementation(op, torch.device("cuda", 0))
        assert implementation(op, torch.device("meta")) == "kernels"  # shapes alone


@pytest.mark.parametrize(
    "options, message",
    [
        ({"check": "races"}, "backend: check: no check is called 'races'; there are none, race"),
        ({"check": ""}, "backend: check: no check is called ''"),
        ({"seed": -1}, r"backend: seed must be an integer from 0 \(in order\) up to 2\^63 - 1, got -1"),
        ({"seed": 2**63}, "backend: seed must be an integer"),
        ({"seed": 1.5}, "backend: seed must be an integer"),
        ({"seed": "x"}, "backend: seed must be an integer"),
    ],
)
def test_unknown_checks_and_seeds(options, message):
    with pytest.raises(ValueError, match=message), mg.backend("emulated", **options):
        pass
    assert implementation("gelu", CPU) == "kernels"


def test_the_ops_own_errors_are_theirs():
    """What an op refuses before its launch is no error of the emulator's."""
    with mg.backend("emulated"), pytest.raises(RuntimeError, match="gelu: x must be float32.*int64") as caught:
        mg.ops.gelu(torch.ones(3, dtype=torch.int64))
    assert not isinstance(caught.value, mg.emulator.EmulatorError)


def test_a_failed_op_leaves_its_outputs_and_the_next_call_alone():
    caches = [torch.zeros(2, 4, 1, 8) for _ in range(2)]
    places = torch.tensor([[1, 0]], dtype=torch.int32), torch.tensor([3], dtype=torch.int32)
    q = torch.ones(1, 1, 1, 8)
    with mg.backend("emulated", check="race"):
        wanted = mg.ops.decode_attention(q, *caches, *places)
        one = next(each for each in synchronisations() if each.file.startswith("decode_attention"))
        with mg.emulator.without(one.file, one.line), pytest.raises(mg.emulator.EmulatorError) as caught:
            mg.ops.decode_attention(q, *caches, *places)
        assert caught.value.kernel == "decode_attention_kernel" and caught.value.file.endswith(one.file)
        assert caught.value.line > one.line and caught.value.block == (0, 0, 0)
        assert torch.equal(mg.ops.decode_attention(q, *caches, *places), wanted)


def run(code: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True)


def test_the_environment_chooses():
    code = """
import torch, minigpt_ext as mg
from minigpt_ext.backend import library
mg.ops.gelu(torch.ones(3))
mg.ops.layer_norm(torch.ones(2, 3), torch.ones(3))
print(mg.emulator.statistics(checked=True).launches, mg.emulator.statistics().launches)
print(library("emulated+race").seed)
"""
    done = run(
        code,
        MINIGPT_BACKEND="gelu=emulated",
        MINIGPT_EMULATOR_CHECK="race",
        MINIGPT_EMULATOR_SEED="7",
    )
    assert done.stdout.split() == ["1", "0", "7"], done.stderr


def test_a_kernel_of_ones_own_runs_as_is_chosen(monkeypatch):
    """compile and call ask mg.backend; what they are told themselves goes before it."""
    source = Path(__file__).parent / "kernels" / "features.cu"

    def last(library, **options):
        x = torch.zeros(1, dtype=torch.int32)
        library.call("last_wins", x, **options)
        return x.item()

    with mg.backend(check="race"):
        assert hasattr(mg.emulator.compile(source).c, "minigpt_emulator_count")
        plain = mg.emulator.compile(source, check="none")
        assert not hasattr(plain.c, "minigpt_emulator_count")
    assert not hasattr(mg.emulator.compile(source).c, "minigpt_emulator_count")
    seed = next(seed for seed in range(1, 99) if last(plain, seed=seed) != 95)
    with mg.backend(seed=seed):
        assert last(plain) == last(plain, seed=seed) != 95 == last(plain, seed=0)
    assert last(plain) == 95
    monkeypatch.setattr(sys.modules["minigpt_ext.backend"], "environment_error", ValueError("MINIGPT_EMULATOR_SEED is"))
    for asks in (lambda: mg.emulator.compile(source), lambda: last(plain)):
        with pytest.raises(ValueError, match="MINIGPT_EMULATOR_SEED is"):
            asks()


def test_a_wrong_variable_is_told_by_the_first_op():
    code = "import torch, minigpt_ext as mg; print('imported'); mg.ops.gelu(torch.ones(3))"
    done = run(code, MINIGPT_BACKEND="emulated", MINIGPT_EMULATOR_SEED="seven")
    assert done.stdout == "imported\n" and done.returncode == 1
    assert "ValueError: MINIGPT_EMULATOR_SEED must be an integer" in done.stderr
