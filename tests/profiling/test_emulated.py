"""`minigpt profile OP --tool emulator`: tables whose figures can be worked out by hand."""

import re

import pytest

from minigpt_ext.backend import OPS
from minigpt_ext.emulator import BuildError
from minigpt_ext.emulator.counters import Launches, Line
from minigpt_ext.profiling import emulated
from minigpt_ext.profiling.ptxas import Resources
from minigpt_ext.profiling.work import Work


def rows_of(output: str) -> dict[str, list[str]]:
    """The figures of each row, by its kernel, line's text and access."""
    rows, kernel = {}, ""
    for line in output.splitlines():
        if found := re.match(r"(\S+)_kernel<.*blocks of", line):
            kernel = found[1]
        if found := re.match(r"\S+\.cuh:\d+ +(\w+ \w+) +(.*?)  (\S.*)$", line):
            figures, source = re.match(r"(\S+ +\S+ +\S+ +\S+ +\S+ +\S+) +(\S.*)", f"{found[2]}  {found[3]}").groups()
            rows[f"{kernel} {found[1]} {source}"] = figures.split()
    return rows


def test_gelu(minigpt, monkeypatch) -> None:
    """64 x 32 floats: 2,048 of them, 4 a thread, so 512 threads, 16 warps, each of which moves 512 bytes at a time."""
    monkeypatch.setattr(emulated, "find_nvcc", lambda: None)
    shape = "rows=64,columns=32,approximate=tanh,backward=yes"
    status, output, errors = minigpt("profile", "gelu", "--tool", "emulator", "--shape", shape)
    assert status == 0, errors
    assert "Registers and occupancy are left out: no nvcc" in output
    assert "gelu_forward_kernel<float, true>: 2 blocks of 256 threads, 0 bytes of shared memory (0 dynamic)" in output
    whole = ["16", "8.2", "16.00", "16.00", "100%", "16"]
    assert rows_of(output) == {
        "gelu_forward global load auto v = load_part<W>(x + i, p.n - i);": whole,
        "gelu_forward global store store_part<W>(y + i, v, p.n - i);": whole,
        "gelu_backward global load auto gradient = load_part<W>(dy + i, p.n - i);": whole,
        "gelu_backward global load const auto v = load_part<W>(x + i, p.n - i);": whole,
        "gelu_backward global store store_part<W>(dx + i, gradient, p.n - i);": whole,
    }
    assert "forward: 0.02 MB by the formula; touches 0.02 MB, 1.00x; asks for 0.02 MB, 1.00x" in output
    assert "backward: 0.02 MB by the formula; touches 0.02 MB, 1.00x; asks for 0.02 MB, 1.00x" in output


def test_resources(minigpt, monkeypatch) -> None:
    """87,040 bytes of 128-thread-registers: two blocks on 9.0 and 10.0, one on 8.0 (see test_occupancy.py)."""
    known = {"attention_forward_kernel<float, 64, false>": Resources(128, 0, 0)}
    monkeypatch.setattr(emulated, "find_nvcc", lambda: "nvcc")
    asked = []
    monkeypatch.setattr(emulated, "resources", lambda *arguments: asked.append(arguments) or known)
    shape = "B=1,H=1,T=8,D=64,backward=no"
    status, output, errors = minigpt("profile", "attention", "--tool", "emulator", "--shape", shape, "--arch", "8.0")
    assert status == 0, errors
    assert asked == [("attention", "8.0", "nvcc")]
    # 256 threads of 128 registers: 8 warps of 4,096 registers, 2 blocks; 52,224 + 1,024 bytes: 3 of 164 KB, 4 of 228 KB
    assert "128 registers a thread, none spilled; with the registers of sm_80 a multiprocessor holds\n" in output
    assert "  8.0, 9.0, 10.0: 2 blocks, 16 warps, 25% of most; limited by registers\n" in output
    # 36 pairs of 8 x 8, two products of 64: 2 x 36 x 64 x 2 FLOPs; q, k, v, out of 8 x 64 floats, lse of 8
    assert f"FLOPs for each of {(4 * 8 * 64 + 8) * 4 / 1e6:.2f} MB touched; none by tensor cores" in output
    assert f"{9216 / 8224:,.1f} FLOPs" in output


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["train"], "--tool emulator looks at an op, not at train"),
        (["gelu", "--device", "cuda"], "--tool emulator looks at cpu, not at --device cuda"),
        (["kv_append", "--shape", "7x7"], "--shape 7x7: there is no such shape"),
        (["decode_attention", "--shape", "B=1,S=100"], "--shape B=1,S=100: "),
    ],
)
def test_it_refuses(minigpt, arguments: list[str], said: str) -> None:
    status, output, errors = minigpt("profile", *arguments, "--tool", "emulator")
    assert (status, output) == (2, "") and said in errors and len(errors.splitlines()) == 1


def test_without_a_compiler(minigpt, monkeypatch) -> None:
    def refuse(*_, **__):
        raise BuildError("there is no C++ compiler")

    monkeypatch.setattr(emulated, "counted", refuse)
    status, output, errors = minigpt("profile", "gelu", "--tool", "emulator")
    assert (status, output, errors) == (1, "", "error: there is no C++ compiler\n")


def test_nvcc_that_fails(minigpt, monkeypatch) -> None:
    """It is told, and what needs no nvcc is printed all the same."""
    if emulated.find_nvcc() is None:
        pytest.skip("there is no nvcc here")
    shape = "rows=1,columns=4,approximate=tanh,backward=no"
    status, output, errors = minigpt("profile", "gelu", "--tool", "emulator", "--shape", shape, "--arch", "99.9")
    assert status == 0, errors
    assert "Registers and occupancy are left out: nvcc failed:" in output and "sm_999" in output
    assert len(rows_of(output)) == 2 and "registers a thread" not in output


@pytest.mark.parametrize(
    "op, shape, said",
    [
        ("layer_norm", "rows=0,C=5,backward=yes", "kernel<float, float>: 2 blocks of 256 threads, "),
        ("layer_norm", "rows=0,C=5,backward=yes", "backward: 0.00 MB by the formula; touches 0.00 MB; asks for 0.00"),
        ("attention", "B=1,H=1,T=0,D=64,backward=yes", "backward: 0 MFLOP by the formula; no kernel was launched"),
        ("kv_append", "B=1,T=0,H=2,D=64,before=3", "forward: 0 MB by the formula; no kernel was launched"),
        ("gelu", "rows=0,columns=5,approximate=tanh,backward=yes", "backward: 0 MB by the formula; no kernel was"),
        ("rope", "B=1,T=0,H=2,D=8,backward=yes", "backward: 0 MB by the formula; no kernel was launched"),
    ],
)
def test_empty_shapes(minigpt, monkeypatch, op: str, shape: str, said: str) -> None:
    """Of no rows layer_norm's backward still writes zeros, 5 floats each of dw and db; the others launch nothing."""
    monkeypatch.setattr(emulated, "find_nvcc", lambda: None)
    status, output, errors = minigpt("profile", op, "--tool", "emulator", "--shape", shape)
    assert status == 0, errors
    assert said in output


@pytest.mark.parametrize("arch", ["sm_90", "90", "9.0z", "9", ""])
def test_an_arch_that_is_none(minigpt, arch: str) -> None:
    status, output, errors = minigpt("profile", "gelu", "--tool", "emulator", "--arch", arch)
    assert (status, output) == (2, "")
    assert errors == f"error: --arch: expected a compute capability as 8.0, 9.0a or 10.0, got {arch!r}\n"


def test_arch_is_the_emulators(minigpt) -> None:
    status, _, errors = minigpt("profile", "gelu", "--tool", "torch", "--arch", "8.0")
    assert status == 2 and "--arch means nothing to the tool torch" in errors


def test_line_table() -> None:
    """Ten requests that touch 320 sectors where 40 would hold the bytes: 12.5%."""
    lines = [
        Line("/no/such/x.cuh", 7, "global load", 10, 1280, 320, 40, 32),
        Line("x.cuh", 9, "shared load", 3, 1, 3, 3, 1),
    ]
    *_, bad, good = emulated.line_table(lines).splitlines()
    assert bad.split() == ["x.cuh:7", "global", "load", "10", "1.3", "32.00", "4.00", "12.5%", "32"]
    assert good.split()[-2:] == ["100%", "1"]


def test_formula_of_bytes_asked_for_again() -> None:
    """A kernel that reads 1 MB three times and writes 1 MB, where the formula has 2 MB."""
    lines = [
        Line("x.cuh", 1, "global load", 1, 3_000_000, 1, 1, 1),
        Line("x.cuh", 2, "global store", 1, 1_000_000, 1, 1, 1),
    ]
    lines.append(Line("x.cuh", 3, "shared load", 1, 5_000_000, 1, 1, 1))
    launch = Launches("gelu_forward_kernel", (1, 1, 1), (32, 1, 1), 0, 0, 1, 1_000_000, 1_000_000, 0, lines=lines)
    text = emulated.formula_text([launch], {"forward": Work("copy", 2e6)})
    assert text.startswith("forward: 2.00 MB by the formula; touches 2.00 MB, 1.00x; asks for 4.00 MB, 2.00x\n")
    launch.tensor_flops = 3_000_000
    text = emulated.formula_text([launch], {"forward": Work("gemm", 2e6)})
    assert (
        "1.0 FLOPs for each of 2.00 MB touched; tensor cores do 1.50x the formula; asked for are 4.00 MB, 2.00x" in text
    )


@pytest.mark.parametrize("op", OPS)
def test_every_room(minigpt, monkeypatch, op: str) -> None:
    """At the benchmark's shapes no line of ours asks for more sectors or wavefronts than it must."""
    monkeypatch.setattr(emulated, "find_nvcc", lambda: None)
    shapes = {"layer_norm": "rows=16,C=384,backward=yes", "kv_append": "B=2,T=1,H=12,D=64,before=63"}
    shapes |= {"decode_attention": "B=1,S=256,H=4,H_kv=4", "attention": "B=1,H=1,T=64,D=64,backward=yes"}
    shapes |= {"gelu": "rows=16,columns=96,approximate=none,backward=yes", "rope": "B=1,T=2,H=6,D=64,backward=yes"}
    shapes |= {"rms_norm": "rows=16,C=384,backward=yes", "swiglu": "rows=6,F=384,backward=yes"}
    shapes |= {"cross_entropy": "rows=8,V=1280,backward=yes"}
    shapes |= {op: "rows=16,columns=96,backward=yes" for op in ("relu_squared", "dropout")}
    for dtype in ("float32", "bfloat16"):
        arguments = ["--tool", "emulator", "--shape", shapes[op], "--dtype", dtype]
        status, output, errors = minigpt("profile", op, *arguments)
        assert status == 0, errors
        rows = rows_of(output)
        assert len(rows) >= 2 and {row: figures for row, figures in rows.items() if figures[4] != "100%"} == {}
