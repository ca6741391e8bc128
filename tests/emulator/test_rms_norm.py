"""rms_norm's CUDA kernels under the emulator."""

import pytest
import torch
from accuracy import forward_backward
from emulator.schedules import run_on_every_schedule
from ops.test_rms_norm import PAIRS, case, check, heads_first, packed, pair_name
from tensors import spread, turned, unaligned

import minigpt_ext as mg

pytestmark = pytest.mark.usefixtures("built")

# A thread takes 4 (float64: 2) elements at once. A row is half a warp's up to C = 64, a warp's up to C = 1024, else a
# block's; a block has 16, 8 or 1 of them. The backward adds up runs of 4 or more rows by 32 columns; 256 runs at most,
# more rows make them longer.
SHAPES = [(1, 1), (7, 3), (9, 32), (2, 3, 33), (2, 65), (0, 8), (2, 1025)]
MORE_SHAPES = [(1,), (1, 1028), (5, 2), (7, 4), (8, 5), (9, 31), (17, 32)]
MORE_SHAPES += [(33, 33), (3, 63), (9, 64), (3, 129), (2, 1023), (3, 0, 8)]


@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
def test_accuracy(pair):
    for shape in SHAPES:
        run_on_every_schedule(
            f"rms_norm {pair_name(pair)} {shape}", lambda shape=shape: check(*case(*shape, pair=pair))
        )


@pytest.mark.parametrize("shape", MORE_SHAPES, ids=str)
def test_more_shapes(shape):
    run_on_every_schedule(f"rms_norm {shape}", lambda: check(*case(*shape)))


def test_more_rows_than_runs():
    """2,060 rows: 229 runs of 9, one more than a block takes at a time, and 27 that find no rows left."""
    run_on_every_schedule("rms_norm 2060 x 1", lambda: check(*case(2060, 1)))


def test_large_and_small_values():
    for factor, eps in ((1e15, 1e-6), (1e-10, 1e-6), (1e-3, 1e-12), (1.0, 1.0)):

        def run(factor=factor, eps=eps):
            inputs, dy = case(9, 33)
            inputs["x"] *= factor
            return check(inputs, dy, eps)

        run_on_every_schedule(f"rms_norm values of {factor}", run)


@pytest.mark.parametrize("C", [40, 1100])
def test_nan_spoils_its_row_alone(C):
    def run():
        inputs, dy = case(5, C)
        inputs["x"][3, C - 1] = float("nan")
        results = forward_backward(mg.ops.rms_norm, inputs, dy)
        others = torch.arange(5) != 3
        for name in ("out", "dx"):
            assert results[name][3].isnan().all() and results[name][others].isfinite().all(), name
        assert results["dweight"].isnan().all()
        return results

    run_on_every_schedule(f"rms_norm NaN {C}", run)


@pytest.mark.parametrize("layout", [unaligned, spread, turned])
@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
def test_unaligned_and_strided(layout, pair):
    """Views give the bits of dense tensors."""

    def run():
        inputs, dy = case(6, 36, pair=pair)
        plain = forward_backward(mg.ops.rms_norm, inputs, dy)
        views = {"x": layout(inputs["x"]), "weight": unaligned(inputs["weight"])}
        strided = forward_backward(mg.ops.rms_norm, views, layout(dy))
        assert all(torch.equal(plain[name], strided[name]) for name in plain)
        return plain

    run_on_every_schedule(f"rms_norm {pair_name(pair)} {layout.__name__}", run)


@pytest.mark.parametrize("layout", [packed, heads_first])
@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
def test_heads_of_a_packed_projection(layout, pair):
    def run():
        inputs, dy = case(2, 3, 3, 20, pair=pair)
        plain = check(inputs, dy)
        strided = check(dict(inputs, x=layout(inputs["x"])), layout(dy))
        assert all(torch.equal(plain[name], strided[name]) for name in plain)
        return plain

    run_on_every_schedule(f"rms_norm {pair_name(pair)} heads {layout.__name__}", run)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5)], ids=str)
def test_gradcheck(shape):
    inputs, _ = case(*shape, pair=(torch.float64, torch.float64))
    with mg.backend("emulated"):
        assert torch.autograd.gradcheck(mg.ops.rms_norm, [t.requires_grad_() for t in inputs.values()])
