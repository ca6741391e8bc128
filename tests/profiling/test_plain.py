"""The tool "none": what it runs, and on a GPU what a profiler sees of it."""

import pytest
import torch

from minigpt_ext.profiling import plain
from minigpt_ext.profiling.job import Job
from minigpt_ext.profiling.ranges import part
from minigpt_ext.profiling.workload import Workload


@pytest.fixture
def done(monkeypatch) -> list[str]:
    """What was done, in order; the job is "run", within a range."""
    done: list[str] = []

    def run() -> None:
        with part("range"):
            done.append("run")

    monkeypatch.setattr(plain, "prepare", lambda job: Workload("x", run, lambda name, shapes: None))
    return done


def test_on_a_cpu(done) -> None:
    plain.profile(Job("gelu", repeat=3))
    assert done == ["run"] * 5


def test_on_a_gpu_the_profiler_sees_the_job_after_its_warm_up(done, monkeypatch) -> None:
    """The calls are recorded where they would go to CUDA, so that no GPU is needed to see their order."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    monkeypatch.setattr(torch.cuda.profiler, "start", lambda: done.append("start"))
    monkeypatch.setattr(torch.cuda.profiler, "stop", lambda: done.append("stop"))
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", done.append)
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: done.append("/"))
    plain.profile(Job("gelu", device="cuda", repeat=2))
    assert done == ["run", "run", "wait", "start", *["range", "run", "/"] * 2, "wait", "stop"]
