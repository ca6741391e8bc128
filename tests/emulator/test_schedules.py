"""What every emulated case goes through: it sees results that depend on the order, and says how to repeat a failure."""

import itertools

import pytest
import torch
from emulator import schedules as module
from emulator.schedules import Count, run_on_every_schedule, schedules

import minigpt_ext as mg
from minigpt_ext.backend import implementation


@pytest.fixture(autouse=True)
def _not_counted(monkeypatch) -> None:
    monkeypatch.setattr(module, "count", Count())


def test_every_case_has_orders_of_its_own_and_always_the_same():
    (in_order, *random, checked) = schedules("a case")
    assert in_order == ("none", 0) and checked == ("race", 0)
    assert len({seed for _, seed in random} - {0}) == 2 and {check for check, _ in random} == {"none"}
    assert list(schedules("a case")) == list(schedules("a case")) != list(schedules("another"))


def test_a_case_runs_emulated_and_begins_with_the_same_random_numbers():
    ran = []

    def run():
        ran.append(implementation("gelu", torch.device("cpu")))
        return torch.rand(3)

    run_on_every_schedule("a case", run)
    assert ran == ["emulated", "emulated", "emulated", "emulated+race"]


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_failure_says_how_to_repeat_it(at):
    check, seed = list(schedules("a case"))[at]
    calls = itertools.count()

    def run():
        assert next(calls) != at, "wrong"
        return torch.zeros(1)

    with pytest.raises(AssertionError) as caught:
        run_on_every_schedule("a case", run)
    assert "wrong" in str(caught.value) and "case: a case" in str(caught.value)
    assert f'mg.backend("emulated", check={check!r}, seed={seed})' in str(caught.value)


def test_results_that_depend_on_the_order_fail():
    results = iter([0.0, 0.0, -0.0, 0.0])
    with pytest.raises(AssertionError, match="out depends on the order in which the threads run"):
        run_on_every_schedule("a case", lambda: torch.tensor([next(results)]))
    run_on_every_schedule("a case", lambda: {"out": torch.tensor(float("nan"))})


def test_an_error_of_the_emulator_says_how_to_repeat_it(checked):
    def run():
        checked.call("global_in_block", torch.zeros(64))

    with pytest.raises(AssertionError, match="race on global memory(.|\n)*repeat it in") as caught:
        run_on_every_schedule("a case", run)
    assert isinstance(caught.value.__cause__, mg.emulator.EmulatorError)
