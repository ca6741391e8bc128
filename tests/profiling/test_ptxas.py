"""What ptxas says of kernels: read from a text of its own, and asked of nvcc where there is one."""

import pytest

from minigpt_ext.profiling import ptxas
from minigpt_ext.profiling.job import ToolFailed
from minigpt_ext.profiling.ptxas import Resources

# As nvcc 13.0 printed it, through c++filt.
SAID = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'void minigpt::layer_norm_forward_kernel<__half, float, 256>\
(minigpt::LayerNormForwardParams)' for 'sm_90a'
ptxas info    : Function properties for void minigpt::layer_norm_forward_kernel<__half, float, 256>\
(minigpt::LayerNormForwardParams)
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 8 bytes cumulative stack size, 32 bytes smem
ptxas info    : Compile time = 25.262 ms
ptxas info    : Compiling entry function 'void minigpt::kv_append_kernel<minigpt::Vec<unsigned int, 4> >\
(minigpt::KvAppendParams)' for 'sm_90a'
ptxas info    : Function properties for void minigpt::kv_append_kernel<minigpt::Vec<unsigned int, 4> >\
(minigpt::KvAppendParams)
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 34 registers, used 0 barriers, 552 bytes cmem[0]
ptxas info    : Compile time = 12.310 ms
"""


def test_parse() -> None:
    assert ptxas.parse(SAID) == {
        "layer_norm_forward_kernel<__half, float, 256>": Resources(32, 8, 32),
        "kv_append_kernel<Vec<unsigned int, 4> >": Resources(34, 0, 0),
    }


def test_nvcc(monkeypatch, tmp_path) -> None:
    nvcc = ptxas.find_nvcc()
    if nvcc is None:
        pytest.skip("there is no nvcc here")
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    found = ptxas.resources("gelu", "9.0a", nvcc)
    names = {
        f"gelu_{a}ward_kernel<{b}, {c}>"
        for a in ("for", "back")
        for b in ("float", "__half")
        for c in ("false", "true")
    }
    assert names < set(found)
    assert all(16 <= found[name].registers <= 64 and found[name].static_bytes == 0 for name in names)
    monkeypatch.setattr(ptxas, "_compile", lambda *_: pytest.fail("it is in the cache"))
    assert ptxas.resources("gelu", "9.0a", nvcc) == found
    with pytest.raises(pytest.fail.Exception):
        ptxas.resources("gelu", "8.0", nvcc)


def test_nvcc_fails(monkeypatch, tmp_path) -> None:
    nvcc = ptxas.find_nvcc()
    if nvcc is None:
        pytest.skip("there is no nvcc here")
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    with pytest.raises(ToolFailed, match="nvcc failed:[^$]*sm_12345"):
        ptxas.resources("gelu", "123.45", nvcc)
    assert not list(tmp_path.rglob("*.txt"))


def test_no_nvcc(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(ptxas, "_USUAL_FOLDER", str(tmp_path))
    assert ptxas.find_nvcc() is None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch(mode=0o755)
    assert ptxas.find_nvcc() == f"{tmp_path}/bin/nvcc"
