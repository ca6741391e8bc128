import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt_ext.data.batches import NO_TARGET, EvaluationWindows, check_long_enough, random_windows


def test_targets_follow_ids():
    tokens = torch.arange(50, dtype=torch.int32)
    ids, targets = random_windows(tokens, 16, 8, torch.Generator().manual_seed(0))
    assert ids.shape == targets.shape == (16, 8) and ids.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, ids + 1)


def test_every_start_is_drawn_and_no_other():
    tokens = torch.arange(7, dtype=torch.int32)
    ids, targets = random_windows(tokens, 500, 4, torch.Generator().manual_seed(0))
    assert set(ids[:, 0].tolist()) == {0, 1, 2} and int(targets.max()) == 6


def test_the_generator_is_the_whole_cursor():
    tokens = torch.arange(100, dtype=torch.int32)
    generator = torch.Generator().manual_seed(5)
    random_windows(tokens, 4, 8, generator)
    state = generator.get_state()
    expected = random_windows(tokens, 4, 8, generator)
    again = torch.Generator()
    again.set_state(state)
    torch.manual_seed(99)
    assert torch.equal(random_windows(tokens, 4, 8, again)[0], expected[0])


@settings(deadline=None)
@given(n=st.integers(2, 300), block_size=st.integers(1, 70), batch_size=st.integers(1, 9))
def test_every_token_but_the_first_is_predicted_once(n, block_size, batch_size):
    tokens = torch.arange(n, dtype=torch.int32)
    windows = EvaluationWindows.over(tokens, block_size)
    predicted = []
    for ids, targets in windows.batches(batch_size):
        assert ids.shape == targets.shape and ids.shape[1] == block_size and len(ids) <= batch_size
        counts = targets != NO_TARGET
        assert torch.equal(targets[counts], ids[counts] + 1)
        predicted += targets[counts].tolist()
    assert predicted == list(range(1, n)) and windows.n_predictions == n - 1


def test_of_a_large_split_evenly_spaced_windows_are_kept():
    tokens = torch.arange(1001, dtype=torch.int32)
    windows = EvaluationWindows.over(tokens, 10, limit=250)
    assert windows.ids[:, 0].tolist() == list(range(0, 1000, 40))
    assert torch.equal(windows.ids, EvaluationWindows.over(tokens, 10, limit=250).ids)
    assert len(EvaluationWindows.over(tokens, 10, limit=3).ids) == 1


def test_all_of_tiny_shakespeare_is_evaluated():
    for block_size in (1, 8, 64, 128, 256):
        windows = EvaluationWindows.over(torch.zeros(111_540, dtype=torch.int32), block_size)
        assert windows.n_predictions == 111_539


@pytest.mark.parametrize(("n_training", "n_validation", "short"), [(100, 10, "validation"), (10, 100, "training")])
def test_too_short_a_corpus_is_refused(n_training, n_validation, short):
    with pytest.raises(ValueError, match=f"{short} split has 10 tokens; block_size 10 needs 11 at least"):
        check_long_enough(n_training, n_validation, 10)
    check_long_enough(11, 11, 10)
