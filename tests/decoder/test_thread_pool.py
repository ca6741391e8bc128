"""The decode engine's threads: every task runs on every thread, and a barrier holds all."""

import time

import pytest

from minigpt_ext import _C

ThreadPool = _C.decoder_kernels.ThreadPool


@pytest.mark.parametrize(("threads", "runs", "barriers"), [(1, 5000, 3), (2, 2000, 3), (7, 150, 3), (33, 10, 2)])
def test_no_thread_passes_a_barrier_before_all_have_come(threads, runs, barriers):
    pool = ThreadPool(threads)
    assert pool.missed(runs, barriers) == 0
    time.sleep(0.002)  # long enough that the others have gone to sleep
    assert ThreadPool(threads).missed(runs // 10, barriers) == 0


def test_pools_beside_each_other():
    pools = [ThreadPool(threads) for threads in (2, 3, 2)]
    for _ in range(20):
        assert [pool.missed(5, 2) for pool in pools] == [0, 0, 0]


def test_waking_after_sleep():
    pool = ThreadPool(3)
    for _ in range(30):
        assert pool.missed(1, 1) == 0
        time.sleep(0.002)


def test_an_idle_pool_takes_no_time():
    pool = ThreadPool(2)
    assert pool.missed(10, 1) == 0
    time.sleep(0.01)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.05


def test_no_thread_is_refused():
    with pytest.raises(ValueError, match="threads must be positive, got 0"):
        ThreadPool(0)
