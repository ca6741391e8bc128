"""cross_entropy's CUDA kernels under the emulator."""

import pytest
import torch
from accuracy import DTYPES, name_of
from emulator.schedules import run_on_every_schedule
from ops.test_cross_entropy import case, check, run
from tensors import normal, spread, turned, unaligned

import minigpt_ext as mg

pytestmark = pytest.mark.usefixtures("built")

# Up to 1024 logits a row is a warp's, above a block's; a thread takes 2 (float64) or 4 at once.
SHAPES = [(1,), (7,), (9, 3), (2, 3, 65), (20, 128), (3, 1023), (2, 1025), (2, 2600)]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_accuracy(dtype):
    for shape in SHAPES:
        for ids, dloss in ((torch.int64, 1.0), (torch.int32, -3.7)):

            def run_case(shape=shape, ids=ids, dloss=dloss):
                return check(*case(*shape, dtype=dtype, ids=ids), dloss=dloss)

            run_on_every_schedule(f"cross_entropy {name_of(dtype)} {shape} {dloss}", run_case)


@pytest.mark.parametrize("V", [40, 1100])
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_what_is_not_finite(value, V):
    """As torch; and a row of minus infinity alone is nan, a row that does not count is 0."""

    def run_case():
        logits = normal(5, V)
        logits[0, 3] = logits[1, V - 1] = logits[3, 5] = value
        logits[4] = -float("inf")
        targets = torch.tensor([3, 0, 1, -1, 2])
        rows = [run(mg.ops.cross_entropy, logits[i : i + 1], targets[i : i + 1], 1.0) for i in (0, 1, 2, 4)]
        with mg.backend("torch"):
            torchs = [run(mg.ops.cross_entropy, logits[i : i + 1], targets[i : i + 1], 1.0) for i in (0, 1, 2, 4)]
        for ours, theirs in zip(rows, torchs, strict=True):
            for name in ours:
                torch.testing.assert_close(ours[name], theirs[name], equal_nan=True)
        results = run(mg.ops.cross_entropy, logits, targets, 1.0)
        assert not results["dlogits"][3].any()
        return results

    run_on_every_schedule(f"cross_entropy {value} {V}", run_case)


def test_no_row_and_none_that_counts():
    def run_case():
        results = run(mg.ops.cross_entropy, normal(3, 5), torch.full((3,), -1), 1.0)
        assert results["out"].isnan() and not results["dlogits"].any()
        empty = run(mg.ops.cross_entropy, normal(0, 5), torch.ones(0, dtype=torch.int64), 1.0)
        assert empty["out"].isnan() and empty["dlogits"].shape == (0, 5)
        return results

    run_on_every_schedule("cross_entropy nothing counts", run_case)


def test_a_target_out_of_range_makes_the_loss_nan_and_nothing_is_read_there():
    def run_case():
        targets = torch.tensor([1, 5, -3, 2**40])
        results = run(mg.ops.cross_entropy, normal(4, 5), targets, 1.0)
        assert results["out"].isnan()
        assert results["dlogits"].isnan().any(1).tolist() == [False, True, True, True]
        return results

    run_on_every_schedule("cross_entropy out of range", run_case)


def test_a_target_out_of_range_is_refused_where_values_are_checked(monkeypatch):
    monkeypatch.setenv("MINIGPT_CHECK", "1")
    with mg.backend("emulated"), pytest.raises(RuntimeError, match="targets must be in .* got 5 as element 1"):
        mg.ops.cross_entropy(normal(2, 5), torch.tensor([1, 5]))


@pytest.mark.parametrize("layout", [unaligned, spread, turned])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_unaligned_and_strided(layout, dtype):
    def run_case():
        logits, targets = case(7, 40, dtype=dtype)
        plain = run(mg.ops.cross_entropy, logits, targets, 2.0)
        strided = run(mg.ops.cross_entropy, layout(logits), targets, 2.0)
        assert all(torch.equal(plain[name], strided[name]) for name in plain)
        return strided

    run_on_every_schedule(f"cross_entropy {name_of(dtype)} {layout.__name__}", run_case)


def test_gradcheck():
    logits, targets = case(3, 5, dtype=torch.float64)
    with mg.backend("emulated"):
        assert torch.autograd.gradcheck(lambda x: mg.ops.cross_entropy(x, targets), logits.requires_grad_())
