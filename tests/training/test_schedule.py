import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt_ext.training.schedule import learning_rate_at

RECIPE = dict(learning_rate=1e-3, min_lr=1e-4, warmup_iters=100, lr_decay_iters=1000)


@pytest.mark.parametrize(
    ("iteration", "expected"),
    [
        (0, 1e-3 / 101),
        (49, 1e-3 * 50 / 101),
        (99, 1e-3 * 100 / 101),
        (100, 1e-3),  # the top of the cosine
        (550, 5.5e-4),  # half way: the mean of both ends
        (325, 1e-4 + 9e-4 * (1 + math.cos(math.pi / 4)) / 2),
        (1000, 1e-4),
        (5000, 1e-4),
    ],
)
def test_values_worked_out_by_hand(iteration, expected):
    assert learning_rate_at(iteration, **RECIPE) == pytest.approx(expected, rel=1e-12)


def test_warmup_longer_than_the_run_stays_a_warmup():
    assert learning_rate_at(19, **RECIPE | {"lr_decay_iters": 20}) == pytest.approx(1e-3 * 20 / 101)
    assert learning_rate_at(100, **RECIPE | {"lr_decay_iters": 20}) == 1e-4


@given(warmup=st.integers(0, 50), decay=st.integers(1, 200))
def test_it_rises_then_falls_within_its_bounds(warmup, decay):
    rates = [
        learning_rate_at(i, learning_rate=1e-3, min_lr=1e-4, warmup_iters=warmup, lr_decay_iters=decay)
        for i in range(260)
    ]
    assert all(0 < rate <= 1e-3 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[-1] == 1e-4
