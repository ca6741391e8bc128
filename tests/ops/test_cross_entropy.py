"""cross_entropy: accuracy in float64's eyes, rows that do not count, hard numbers, derivatives, what it refuses."""

import pytest
import torch
from accuracy import DTYPES, assert_all_accurate, largest, name_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import normal, spread, turned, unaligned
from torch import Tensor

import minigpt_ext as mg
from minigpt_ext.ops.cross_entropy import cross_entropy_reference


def run(function, logits: Tensor, targets: Tensor, dloss: float, **options) -> dict[str, Tensor]:
    leaf = logits.detach().requires_grad_()
    loss = function(leaf, targets, **options)
    (dlogits,) = torch.autograd.grad(loss, leaf, torch.full_like(loss, dloss))
    return {"out": loss.detach(), "dlogits": dlogits}


def check(logits: Tensor, targets: Tensor, dloss: float = 1.0, **options) -> dict[str, Tensor]:
    """The accuracy rule for loss and gradient, against torch's in float32 at least. Returns ours."""
    ours = run(mg.ops.cross_entropy, logits, targets, dloss, **options)
    with mg.backend("torch"):
        torchs = run(mg.ops.cross_entropy, logits, targets, dloss, **options)
        unscaled = run(mg.ops.cross_entropy, logits, targets, 1.0, **options)["dlogits"]
    reference = run(cross_entropy_reference, logits.double(), targets, dloss, **options)
    # A row's loss is a difference of two logits and a logarithm; a gradient a difference of two shares of 1/count,
    # rounded once more where it is scaled: float16 is coarse below 6e-5.
    rows = max(1, int((targets != options.get("ignore_index", -1)).sum()))
    coarse = abs(dloss) * torch.finfo(logits.dtype).smallest_normal
    sizes = {
        "out": (largest(reference["out"]), 2 * largest(logits.double()) + 20),
        "dlogits": (2 * largest(reference["dlogits"]) + coarse + abs(dloss) * largest(unscaled), 4 * abs(dloss) / rows),
    }
    assert_all_accurate("cross_entropy", ours, torchs, reference, sizes)
    return ours


def case(*shape: int, dtype=torch.float32, device="cpu", ids=torch.int64, factor: float = 3.0) -> tuple[Tensor, Tensor]:
    """logits (..., V), and targets (...) of which about a quarter do not count (the first does)."""
    logits = normal(*shape, dtype=dtype, device=device, factor=factor)
    targets = torch.randint(shape[-1], shape[:-1], dtype=ids)
    skipped = torch.rand(shape[:-1]) < 0.25
    skipped.view(-1)[:1] = False
    return logits, targets.masked_fill(skipped, -1).to(device)


# A vector is 2 ... 16 values, a piece of a row 4,096, a task 16,384 values.
SHAPES = [(1,), (7,), (1, 1), (3, 2), (2, 16), (5, 17), (2, 3, 65), (300, 33), (1, 4096), (3, 4097), (2, 9001)]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accuracy(shape, dtype, device):
    check(*case(*shape, dtype=dtype, device=device))
    check(*case(*shape, dtype=dtype, device=device, ids=torch.int32), dloss=-3.7)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_a_real_vocabulary(dtype, device):
    check(*case(9, 50257, dtype=dtype, device=device, factor=1.0), dloss=128.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("place", [0, 3, 4095, 4096, 8191, 8999])
def test_a_high_logit_anywhere(place, dtype, device):
    """The maximum may come in any vector of any piece, before or behind what it makes small."""
    logits, targets = case(4, 9000, dtype=dtype, device=device)
    logits[:, place] = 60.0
    targets[1:3] = place
    check(logits, targets)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_rows_that_do_not_count(dtype, device):
    logits, targets = case(6, 40, dtype=dtype, device=device)
    targets[:3], targets[3:] = 5, torch.tensor([1, 2, 7])
    results = check(logits, targets, ignore_index=5)
    assert not results["dlogits"][:3].any()
    logits[1], logits[2, 7] = float("inf"), float("nan")  # what such a row holds is not looked at
    again = run(mg.ops.cross_entropy, logits, targets, 1.0, ignore_index=5)
    assert all(torch.equal(again[name], results[name]) for name in results)


def test_where_no_row_counts(device):
    logits = normal(3, 5, device=device)
    results = run(mg.ops.cross_entropy, logits, torch.full((3,), -1, device=device), 1.0)
    assert results["out"].isnan() and not results["dlogits"].any()
    results = run(mg.ops.cross_entropy, normal(0, 5, device=device), torch.ones(0, dtype=torch.int64, device=device), 1)
    assert results["out"].isnan() and results["dlogits"].shape == (0, 5)


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("place", [0, 11, 4099])
@pytest.mark.parametrize("target", [0, 4099])
def test_what_is_not_finite(value, place, target, dtype, device):
    """As torch: -inf takes no part, and is an infinite loss as a target; inf and nan make the row nan."""
    logits = normal(1, 4100, dtype=dtype, device=device)
    logits[0, place] = value
    targets = torch.tensor([target], device=device)
    ours = run(mg.ops.cross_entropy, logits, targets, 1.0)
    with mg.backend("torch"):
        torchs = run(mg.ops.cross_entropy, logits, targets, 1.0)
    for name in ours:
        torch.testing.assert_close(ours[name], torchs[name], equal_nan=True)


def test_a_row_of_minus_infinity_and_of_the_largest_numbers(device):
    low, huge = torch.full((1, 40), -INF, device=device), torch.full((1, 40), torch.finfo(torch.float32).max)
    targets = torch.tensor([3], device=device)
    assert run(mg.ops.cross_entropy, low, targets, 1.0)["out"].isnan()
    check(huge.to(device), targets)
    check(-huge.to(device), targets)


@pytest.mark.parametrize("layout", [unaligned, spread, turned])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_unaligned_and_strided(layout, dtype, device):
    logits, targets = case(5, 33, dtype=dtype, device=device)
    plain = run(mg.ops.cross_entropy, logits, targets, 2.0)
    strided = run(mg.ops.cross_entropy, layout(logits), targets.repeat_interleave(2)[::2], 2.0)
    assert all(torch.equal(plain[name], strided[name]) for name in plain)


def test_the_same_loss_without_a_gradient(device):
    logits, targets = case(7, 65, device=device)
    with_gradient = mg.ops.cross_entropy(logits.requires_grad_(), targets)
    with torch.no_grad():
        assert torch.equal(mg.ops.cross_entropy(logits, targets), with_gradient.detach())
    assert not mg.ops.cross_entropy(logits.detach(), targets).requires_grad


def test_backward_twice_gives_the_gradient_twice(device):
    logits, targets = case(7, 65, device=device)
    logits.requires_grad_()
    loss = mg.ops.cross_entropy(logits, targets)
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    first = first.clone()
    for times in (1, 2):
        loss.backward(retain_graph=True)
        torch.testing.assert_close(logits.grad, times * first, rtol=0, atol=0)
    (third,) = torch.autograd.grad(3 * loss, logits)
    torch.testing.assert_close(third, 3 * first)


def test_runs_and_threads_do_not_change_the_result(threads):
    logits, targets = case(700, 65)
    first = run(mg.ops.cross_entropy, logits, targets, 0.3)
    for n in (1, 2, 3) * 5:
        threads(n)
        again = run(mg.ops.cross_entropy, logits, targets, 0.3)
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_gradcheck():
    logits, targets = case(3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: mg.ops.cross_entropy(x, targets), logits.requires_grad_())
    assert torch.autograd.gradcheck(lambda x: 2 * mg.ops.cross_entropy(x, targets), logits)


def test_a_second_derivative_is_refused():
    logits, targets = case(3, 5)
    logits.requires_grad_()
    loss = mg.ops.cross_entropy(logits, targets)
    (dlogits,) = torch.autograd.grad(loss, logits, torch.ones((), requires_grad=True), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dlogits.sum().backward()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, t: mg.ops.cross_entropy(x[0, 0], t[0]), r"logits must be \(..., V\) with V of at least 1, got \(\)"),
        (lambda x, t: mg.ops.cross_entropy(x[:, :0], t), "logits must be .* V of at least 1"),
        (lambda x, t: mg.ops.cross_entropy(x.long(), t), "logits must be float32.*got int64"),
        (lambda x, t: mg.ops.cross_entropy(x, t.float()), "targets must be int64 or int32, got float32"),
        (lambda x, t: mg.ops.cross_entropy(x, t[:2]), r"targets must be \(...\) = \(3\), got \(2\)"),
        (lambda x, t: mg.ops.cross_entropy(x, t + 3), r"targets must be in \[0, 5\) or ignore_index = -1, got 5 as el"),
        (lambda x, t: mg.ops.cross_entropy(x, -t), "targets must be .* got -2 as element 2"),
        (lambda x, t: mg.ops.cross_entropy(x, t - 1, ignore_index=-100), "ignore_index = -100, got -1 as element 0"),
        (lambda x, t: mg.ops.cross_entropy(x, t.to("meta")), "cross_entropy: targets is on meta"),
        (lambda x, t: torch.ops.minigpt.cross_entropy_backward(torch.ones(1), x), "dloss must be one number"),
        (lambda x, t: torch.ops.minigpt.cross_entropy_backward(torch.tensor(1), x), "dloss must be float32"),
    ],
)
def test_wrong_input_is_refused_by_name(call, message):
    with pytest.raises(RuntimeError, match=message):
        call(normal(3, 5), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("shape, dtype", [((2, 3, 4), torch.float32), ((1, 2), torch.float64), ((5,), torch.bfloat16)])
def test_opcheck(shape, dtype, device):
    logits, targets = case(*shape, dtype=dtype, device=device)
    one = torch.ones((), dtype=torch.promote_types(dtype, torch.float32), device=device)
    for gradient in (False, True):
        torch.library.opcheck(torch.ops.minigpt.cross_entropy_forward.default, (logits, targets, -1, gradient))
    torch.library.opcheck(torch.ops.minigpt.cross_entropy_backward.default, (one, logits))


ANY = {
    "rows": st.integers(1, 70),
    "V": st.integers(1, 150),
    "dtype": st.sampled_from(DTYPES),
    "dloss": st.floats(-9, 9).filter(lambda x: x == 0 or abs(x) > 1e-30),  # else gradients round to subnormal numbers
}


@given(**ANY)
def test_any_shape(rows, V, dtype, dloss):
    torch.manual_seed(0)
    check(*case(rows, V, dtype=dtype), dloss=dloss)


@pytest.mark.slow
@settings(max_examples=2000)
@given(**ANY)
def test_any_shape_at_length(rows, V, dtype, dloss):
    torch.manual_seed(0)
    check(*case(rows, V, dtype=dtype), dloss=dloss)
