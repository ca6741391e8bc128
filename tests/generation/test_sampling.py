"""How the next id is chosen."""

import pytest
import torch

from minigpt_ext.generation.sampling import greedy, sample


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_greedy_is_the_first_of_the_largest():
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, -1.0, 4.0]])
    assert greedy(logits).tolist() == [1, 0]
    assert sample(logits, temperature=0).tolist() == [1, 0]


@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature, top_k):
    logits = torch.tensor([0.3, -1.0, 2.0, float("-inf"), 1.0])
    n = 40_000
    ids = sample(logits.repeat(n, 1), temperature, top_k, seeded())
    kept = logits if top_k is None else logits.masked_fill(logits < logits.topk(top_k).values[-1], float("-inf"))
    p = (kept / temperature).softmax(-1)
    error = (p * (1 - p) / n).sqrt()
    frequency = torch.bincount(ids, minlength=5) / n
    assert ((frequency - p).abs() <= 4.5 * error).all()
    assert (frequency[p == 0] == 0).all()


def test_top_k_is_exact_among_equals():
    ids = sample(torch.zeros(2000, 10), top_k=3, generator=seeded())
    assert len(ids.unique()) == 3


def test_top_k_1_is_greedy_and_a_large_one_is_all():
    logits = torch.randn(50, 11, generator=seeded())
    assert torch.equal(sample(logits, top_k=1), greedy(logits))
    everything = sample(logits, generator=seeded(1))
    for top_k in (11, 12, 10**9):
        assert torch.equal(sample(logits, top_k=top_k, generator=seeded(1)), everything)


def test_one_draw_a_row():
    generator, expected = seeded(), seeded()
    sample(torch.randn(5, 7), generator=generator)
    torch.rand(5, generator=expected)
    assert torch.equal(generator.get_state(), expected.get_state())


def test_without_a_generator_torchs_default_one_is_used():
    logits = torch.randn(20, 7)
    torch.manual_seed(5)
    first = sample(logits)
    torch.manual_seed(5)
    assert torch.equal(first, sample(logits))
    assert torch.equal(first, sample(logits, generator=seeded(5)))


@pytest.mark.parametrize("draw", [0.0, 1 - 2.0**-24])
def test_the_ends_of_the_range_draw_no_impossible_id(monkeypatch, draw):
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, draw))
    logits = torch.tensor([[float("-inf"), 0.0, 1.0, float("-inf"), float("-inf")]])
    assert sample(logits).item() == (2 if draw == 0 else 1)


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6])
def test_tiny_temperatures_are_greedy(temperature):
    logits = torch.randn(100, 9, generator=seeded()) * 1e4
    assert torch.equal(sample(logits, temperature), greedy(logits))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype):
    logits = torch.randn(50, 11, generator=seeded()).to(dtype)
    assert torch.equal(sample(logits, generator=seeded(1)), sample(logits.float(), generator=seeded(1)))


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf"), "1", None, True])
def test_wrong_temperature(temperature):
    with pytest.raises(ValueError, match="temperature must be a finite number, 0"):
        sample(torch.zeros(1, 3), temperature)


@pytest.mark.parametrize("top_k", [0, -1, 1.0, "5", True])
def test_wrong_top_k(top_k):
    with pytest.raises(ValueError, match="top_k must be a positive integer or None"):
        sample(torch.zeros(1, 3), top_k=top_k)
