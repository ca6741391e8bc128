"""No barrier of the kernels can go unnoticed; and the script that says so finds calls and says what survives."""

import pytest
from emulator import mutate_synchronisation
from emulator.mutate_synchronisation import RUNS, Synchronisation, notices, run, synchronisations, table

import minigpt_ext as mg

pytestmark = pytest.mark.usefixtures("built")


def test_every_synchronisation_is_needed_and_missed():
    text, survivors = table()
    assert not survivors, text
    print(text)


def test_rooms_with_synchronisation_have_a_case():
    rooms = {one.file.split("/")[0] for one in synchronisations()} - {"common"}
    assert rooms <= set(mutate_synchronisation.CASES)


def test_what_is_left_alone_is_not_noticed():
    right = {"layer_norm": run(mutate_synchronisation.CASES["layer_norm"], "none", 0)}
    nothing = Synchronisation("layer_norm/layer_norm_backward.cuh", 1, "__syncthreads", None)
    assert notices(nothing, right) == {}


def test_calls_are_found(tmp_path):
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "device.cuh").write_text("__syncthreads();\n")
    (tmp_path / "room.cuh").write_text(
        "__syncthreads();  // equivalent without: there is one thread\n"
        "// __syncthreads();\n"
        "  cp_async_wait<1>(); // equivalent to nothing\n"
        "x = __shfl_sync(~0u, x, 0); mbarrier_init(&b, 1);\n"
        "// equivalent without: nothing is asynchronous\n"
        "fence_proxy_async();\n"
        "if (x) __syncwarp(mask);\n"
        "mbarrier_arrive_expect_tx(&b, 64);\n"
    )
    assert [(one.line, one.call, one.reason) for one in synchronisations(tmp_path)] == [
        (1, "__syncthreads", "there is one thread"),
        (3, "cp_async_wait", None),
        (6, "fence_proxy_async", "nothing is asynchronous"),
        (7, "__syncwarp", None),
        (8, "mbarrier_arrive_expect_tx", None),
    ]
    (tmp_path / "room.cuh").write_text("__syncthreads(); __syncthreads();\n")
    with pytest.raises(ValueError, match="room.cuh:1: 2 calls in one line"):
        synchronisations(tmp_path)


def test_a_survivor_is_told(monkeypatch):
    monkeypatch.setattr(mutate_synchronisation, "notices", lambda one, right: {})
    text, survivors = table()
    assert len(survivors) == len([one for one in synchronisations() if not one.reason]) and "SURVIVES" in text


def test_the_runs_are_in_order_random_and_checked():
    assert [check for check, _ in RUNS.values()] == ["none", "none", "none", "race"]
    with pytest.raises(ValueError), mg.backend("emulated", check="races"):
        pass
