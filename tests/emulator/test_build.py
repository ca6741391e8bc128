"""Compiling kernels of one's own: the cache, and errors that say what is missing."""

import os
import shutil

import pytest
import torch

import minigpt_ext as mg
from minigpt_ext.emulator import build, headers

KERNEL = """#include "answer.h"
#include "common/device.cuh"

__global__ void answer_kernel(int* x) { x[threadIdx.x] = kAnswer; }

extern "C" void answer(int* x) { minigpt::launch("answer", answer_kernel, 1, 4, 0, nullptr, x); }
"""


@pytest.fixture
def source(tmp_path, monkeypatch, plain):
    """answer.cu, and a cache that has what `plain` was built from."""
    objects = build.cache_folder() / "objects"
    shutil.copytree(objects, tmp_path / "cache" / "emulator" / "objects", copy_function=os.link)
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "answer.cu").write_text(KERNEL)
    (tmp_path / "answer.h").write_text("constexpr int kAnswer = 42;\n")
    return tmp_path / "answer.cu"


def answer(source) -> int:
    x = torch.zeros(4, dtype=torch.int32)
    mg.emulator.compile(source).call("answer", x)
    return x[3].item()


def test_only_what_has_changed_is_built(source, capfd):
    assert answer(source) == 42
    assert "minigpt_ext: building answer (1 file) ..." in capfd.readouterr().err
    assert answer(source) == 42
    assert capfd.readouterr().err == ""
    source.write_text(KERNEL.replace("= kAnswer", "= kAnswer + 1"))
    assert answer(source) == 43
    assert "(1 file)" in capfd.readouterr().err
    source.with_suffix(".h").write_text("constexpr int kAnswer = 7;\n")
    assert answer(source) == 8
    assert "(1 file)" in capfd.readouterr().err
    source.write_text(KERNEL)
    source.with_suffix(".h").write_text("constexpr int kAnswer = 42;\n")
    assert answer(source) == 42
    assert capfd.readouterr().err == ""


def test_what_is_not_used_for_a_month_goes(source):
    answer(source)
    old = next(build.cache_folder().glob("answer-*.so"))
    os.utime(old, (0, 0))
    source.write_text(KERNEL + "// more\n")
    answer(source)
    assert not old.exists() and len(list(build.cache_folder().glob("answer-*.so"))) == 1


def test_what_a_killed_build_has_left_goes_after_a_day(source):
    answer(source)
    old, new = (build.cache_folder() / "objects" / f".building-{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir()
        (folder / "answer.o").touch()
    os.utime(old, (0, 0))
    source.write_text(KERNEL + "// more\n")
    answer(source)
    assert not old.exists() and new.exists()


def cut(file, size: int) -> None:
    """Keeps the beginning of a file. Another file takes its place, as a loaded library must not change."""
    part = file.with_name("part")
    part.write_bytes(file.read_bytes()[:size])
    part.replace(file)


@pytest.mark.parametrize("size", [0, 10, 4096])
def test_what_is_cut_off_in_the_cache_is_built_again(source, capfd, size):
    answer(source)
    for pattern, built in (("answer-*.so", ""), ("objects/answer-*.o", "(1 file)")):
        source.write_text(source.read_text() + "// another library\n")
        answer(source)
        library = max(build.cache_folder().glob("answer-*.so"), key=os.path.getmtime)
        file = max(build.cache_folder().glob(pattern), key=os.path.getmtime)
        cut(file, size)
        if file != library:
            library.unlink()
        capfd.readouterr()
        assert answer(source) == 42
        said = capfd.readouterr().err
        assert f"minigpt_ext: {file} cannot be used, and is built again" in said and built in said


def test_a_library_that_cannot_be_loaded_is_built_again(source, capfd):
    """It is whole, and yet none of this machine's: its header names another one."""
    build_only = build.build_library("answer", [source], ["-fvisibility=default"], [], checked=False)
    text = bytearray(build_only.read_bytes())
    text[18:20] = b"\xf3\x00"  # e_machine: RISC-V
    build_only.write_bytes(text)
    capfd.readouterr()
    assert answer(source) == 42
    said = capfd.readouterr().err
    assert f"minigpt_ext: {build_only} cannot be used, and is built again" in said and "files) ..." in said


def test_a_cache_that_cannot_be_written(source, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        mg.emulator.BuildError, match="the cache .*file/.* cannot be written .*Not a dir.*MINIGPT_CACHE"
    ):
        mg.emulator.compile(source)


@pytest.mark.parametrize("jobs", ["0", "-1", "two", "1.5"])
def test_max_jobs(source, monkeypatch, jobs):
    monkeypatch.setenv("MAX_JOBS", jobs)
    with pytest.raises(mg.emulator.BuildError, match=f"MAX_JOBS must be a number of compilers from 1 on, got '{jobs}'"):
        mg.emulator.compile(source)


@pytest.mark.parametrize("plain_cuda", ["answer_kernel<<<1, 4>>>(x);", "__shared__ float part[64];"])
def test_plain_cuda_is_told_how_it_is_written_here(source, plain_cuda):
    source.write_text(
        KERNEL.replace('minigpt::launch("answer", answer_kernel, 1, 4, 0, nullptr, x);', plain_cuda + " }{")
    )
    with pytest.raises(
        mg.emulator.BuildError, match="compiling answer.cu failed:(.|\n)*\nhint: .*csrc/emulator/README.md"
    ):
        mg.emulator.compile(source)


def test_an_error_in_a_source_is_told_without_the_pool(source):
    source.write_text(KERNEL.replace("kAnswer;", "kQuestion;"))
    with pytest.raises(mg.emulator.BuildError) as caught:
        mg.emulator.compile(source)
    assert "hint:" not in str(caught.value) and caught.value.__suppress_context__
    assert not [entry for entry in caught.traceback if "concurrent" in str(entry.path)]


def test_nothing_half_built_is_left(source):
    source.write_text(KERNEL.replace("kAnswer;", "kQuestion;"))
    before = set(build.cache_folder().rglob(".building-*"))  # of a build that was killed, in the cache this one copies
    with pytest.raises(mg.emulator.BuildError, match="compiling answer.cu failed:(.|\n)*kQuestion"):
        mg.emulator.compile(source)
    assert not list(build.cache_folder().rglob("answer*"))
    assert set(build.cache_folder().rglob(".building-*")) == before


def test_wrong_arguments(source):
    with pytest.raises(FileNotFoundError, match="compile: there is no file .*question.cu"):
        mg.emulator.compile(source.with_name("question.cu"))
    with pytest.raises(ValueError, match="compile: check must be 'none' or 'race', got 'races'"):
        mg.emulator.compile(source, check="races")


@pytest.fixture
def forgetful():
    """What was found out about compiler and headers is asked again, in the test and after it."""
    for found in (build.compiler, headers.cuda_include_folders):
        found.cache_clear()
    yield
    for found in (build.compiler, headers.cuda_include_folders):
        found.cache_clear()


def test_no_compiler(source, monkeypatch, forgetful):
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    with pytest.raises(mg.emulator.BuildError, match=r"there is no C\+\+ compiler \(CXX=/nonexistent/c\+\+\)"):
        mg.emulator.compile(source)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(mg.emulator.BuildError, match=r"no C\+\+ compiler \(c\+\+, g\+\+ or clang\+\+\). Install one"):
        mg.emulator.compile(source)


def test_no_headers(source, monkeypatch, forgetful):
    monkeypatch.setattr(headers, "toolkit_folders", list)
    monkeypatch.setattr(headers, "package_folders", list)
    with pytest.raises(mg.emulator.BuildError, match="neither a CUDA toolkit nor pip's .*pip install nvidia-cuda-runt"):
        mg.emulator.compile(source)
    monkeypatch.setenv("MINIGPT_CUDA_HEADERS", "nowhere")
    with pytest.raises(mg.emulator.BuildError, match="MINIGPT_CUDA_HEADERS must be any, toolkit or packages, got"):
        mg.emulator.compile(source)


def test_no_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "CSRC", tmp_path)
    with pytest.raises(mg.emulator.BuildError, match="this installation has none"):
        build.build_library("x", [], [], [], checked=False)
