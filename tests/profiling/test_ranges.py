"""Ranges: there when asked for, under the names the module tells, and nothing at all when not."""

import pytest
import torch

import minigpt_ext as mg
from minigpt_ext.generation import stream
from minigpt_ext.profiling import ranges

CONFIG = mg.GPTConfig(vocab_size=11, block_size=16, n_layer=2, n_head=2, n_embd=16)
IN_A_BLOCK = ["attention", "mlp"]
IN_A_PASS = ["embedding", "block 0", *IN_A_BLOCK, "block 1", *IN_A_BLOCK, "ln_f", "head"]


@pytest.fixture
def model() -> mg.GPT:
    return mg.GPT(CONFIG, seed=1)


@pytest.fixture
def nvtx(monkeypatch) -> list[str]:
    """What NVTX is told: the name of each range that opens, and "/" where one closes."""
    told: list[str] = []
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", told.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: told.append("/"))
    return told


def profiled(function) -> list[str]:
    """The names of the ranges that torch.profiler sees, in order; empty without any."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        function()
    events = sorted(profiler.events(), key=lambda event: event.time_range.start)
    return [event.name for event in events if event.is_user_annotation]


def forward(model: mg.GPT) -> None:
    ids = torch.arange(8).view(1, 8)
    model(ids, ids)


def test_off_nothing_is_recorded(model) -> None:
    assert profiled(lambda: forward(model)) == []
    assert ranges.part("a") is ranges.part("b")


def test_a_forward_pass(model) -> None:
    with ranges.shown("torch"):
        assert profiled(lambda: forward(model)) == [*IN_A_PASS, "loss"]
    assert profiled(lambda: forward(model)) == []


def test_generation_is_a_prefill_and_tokens(model) -> None:
    ids = torch.arange(3).view(1, 3)
    with ranges.shown("torch"):
        seen = profiled(lambda: list(stream(model, ids, 3, temperature=0, weights="model")))
    assert seen == ["prefill", *IN_A_PASS, *(["token", *IN_A_PASS] * 2)]


def test_a_full_context_is_prefilled_anew(model) -> None:
    ids = torch.zeros(1, 15, dtype=torch.int64)
    with ranges.shown("torch"):
        seen = profiled(lambda: list(stream(model, ids, 4, temperature=0)))
    assert [name for name in seen if name in ("prefill", "token")] == ["prefill", "token", "prefill", "token"]


def test_nvtx_ranges_nest(model, nvtx) -> None:
    with ranges.shown("nvtx"):
        forward(model)
    block = ["attention", "/", "mlp", "/", "/"]
    expected = ["embedding", "/", "block 0", *block, "block 1", *block, "ln_f", "/", "head", "/", "loss", "/"]
    assert nvtx == expected


def test_a_range_closes_when_an_error_leaves_it(nvtx) -> None:
    with pytest.raises(KeyError), ranges.shown("nvtx"), ranges.part("a"), ranges.part("b"):
        raise KeyError
    assert nvtx == ["a", "b", "/", "/"]
    with ranges.part("c"):
        pass
    assert len(nvtx) == 4


def test_unknown_way() -> None:
    with pytest.raises(ValueError, match="to must be one of nvtx, torch, not 'perf'"), ranges.shown("perf"):
        pass


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has NVTX")
def test_no_nvtx_in_a_torch_without_cuda() -> None:
    with pytest.raises(RuntimeError, match="without NVTX"), ranges.shown("nvtx"):
        pass


@pytest.mark.parametrize("on", [False, True], ids=["off", "on"])
def test_a_model_compiles_whole(model, nvtx, on: bool) -> None:
    """NVTX calls would break the graph; on or off, the compiled model makes none."""
    torch.compiler.reset()
    ids = torch.arange(8).view(1, 8)
    expected = model(ids, ids)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    if on:
        with ranges.shown("nvtx"):
            result = compiled(ids, ids)
    else:
        result = compiled(ids, ids)
    torch.testing.assert_close(result, expected)
    assert nvtx == []
    torch.compiler.reset()
