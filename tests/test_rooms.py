"""One op, one room: kernels, Python face, test and benchmark of an op stand under one name."""

import ast
import re
from pathlib import Path

import pytest
import torch

import minigpt_ext as mg
from minigpt_ext.backend import OPS

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = re.findall(r'm\.def\(\s*"(\w+)\(', (ROOT / "csrc" / "ops.h").read_text())


NO_OPS = {"common", "decoder", "emulator", "tokenizer"}
FUSED = {"residual_layer_norm": "layer_norm", "residual_rms_norm": "rms_norm", "bias_gelu": "gelu"}


def op_of(schema: str) -> str:
    return re.sub(r"_(forward|backward)$", "", schema)


def room_of(schema: str) -> str:
    """A fused form lives in its base op's room."""
    return FUSED.get(op_of(schema), op_of(schema))


ROOMS = sorted({room_of(schema) for schema in SCHEMAS})


def test_the_rooms_are_the_ops():
    assert ROOMS == sorted(OPS)
    assert sorted({op_of(schema) for schema in SCHEMAS}) == sorted(mg.ops.__all__)


def test_no_room_without_a_schema():
    folders = {path.name for path in (ROOT / "csrc").iterdir() if path.is_dir()} - NO_OPS
    assert folders == set(ROOMS)
    benchmarks = {path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py")}
    assert set(ROOMS) <= benchmarks


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize(
    "path",
    [
        "csrc/{0}/{0}.h",
        "csrc/{0}/{0}_op.cpp",
        "csrc/{0}/{0}_cuda.cu",
        "minigpt_ext/ops/{0}.py",
        "tests/ops/test_{0}.py",
        "tests/emulator/test_{0}.py",
        "benchmarks/bench_{0}.py",
    ],
)
def test_a_room_has_its_files(room, path):
    assert (ROOT / path.format(room)).is_file(), path.format(room)


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("ending", ["_cpu.cpp", ".cuh"])
def test_a_room_has_kernels(room, ending):
    assert list((ROOT / "csrc" / room).glob(f"{room}*{ending}"))


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_schema_is_registered_has_a_fake_and_one_file_that_defines_it(schema):
    overload = getattr(torch.ops.minigpt, schema).default
    assert re.search(rf"\b{schema}\b", (ROOT / "csrc" / room_of(schema) / f"{room_of(schema)}_op.cpp").read_text())
    assert f'register_fake("minigpt::{schema}")' in (ROOT / "minigpt_ext/ops" / f"{room_of(schema)}.py").read_text()
    fake = torch._library.simple_registry.singleton.find(overload.name()).fake_impl
    assert fake.kernel is not None


@pytest.mark.parametrize("op", sorted({op_of(schema) for schema in SCHEMAS}))
def test_the_python_face(op):
    """A public function that says shapes and errors, a reference of the same signature, and the autograd Function."""
    module = ast.parse((ROOT / "minigpt_ext/ops" / f"{room_of(op)}.py").read_text())
    functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    assert ast.get_docstring(module)
    said = ast.get_docstring(functions[op])
    assert said and "Error" in said
    names = [[a.arg for a in functions[name].args.args] for name in (op, f"{op}_reference")]
    assert names[0] == names[1]
    if f"{op}_forward" in SCHEMAS:
        classes = {node.name for node in module.body if isinstance(node, ast.ClassDef)}
        assert "".join(word.title() for word in op.split("_")) + "Function" in classes


@pytest.mark.parametrize("path", sorted((ROOT / "csrc").rglob("*.cu*")), ids=lambda path: path.name)
def test_cuda_sources_include_no_torch(path):
    assert not re.search(r"#\s*include\s*<(torch|ATen|c10)/", path.read_text())


def test_sources_stay_short():
    """One idea a file: 300 lines aimed at, 400 the most."""
    files = [*ROOT.glob("csrc/**/*.[ch]*"), *ROOT.glob("minigpt_ext/**/*.py"), *ROOT.glob("tests/**/*.py")]
    long = {str(path.relative_to(ROOT)): n for path in files if (n := len(path.read_text().splitlines())) > 400}
    assert not long
