"""bias_gelu's CUDA kernels under the emulator."""

import pytest
import torch
from accuracy import forward_backward
from emulator.schedules import run_on_every_schedule
from ops.test_bias_gelu import FORMS, PAIRS, case, check, pair_name
from tensors import spread, turned, unaligned

import minigpt_ext as mg

pytestmark = pytest.mark.usefixtures("built")

# Forward: a thread takes 2 (float64), 4 or 8 elements of a row. Backward: 32 columns by runs of 4 or more rows.
SHAPES = [(1, 1), (7, 3), (9, 32), (2, 3, 33), (2, 65), (0, 8), (1, 2051)]


@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
@pytest.mark.parametrize("approximate", FORMS)
def test_accuracy(approximate, pair):
    for shape in SHAPES:
        run_on_every_schedule(
            f"bias_gelu {approximate} {pair_name(pair)} {shape}",
            lambda shape=shape: check(*case(*shape, pair=pair), approximate),
        )


def test_more_rows_than_runs():
    """2,060 rows: 229 runs of 9, one more than a block takes at a time, and 27 that find no rows left."""
    run_on_every_schedule("bias_gelu 2060 x 1", lambda: check(*case(2060, 1), "none"))


@pytest.mark.parametrize("layout", [unaligned, spread, turned])
@pytest.mark.parametrize("pair", PAIRS[:2], ids=pair_name)
def test_unaligned_and_strided(layout, pair):
    def run():
        inputs, dy = case(6, 36, pair=pair)
        plain = forward_backward(mg.ops.bias_gelu, inputs, dy)
        views = {"x": layout(inputs["x"]), "bias": unaligned(inputs["bias"])}
        strided = forward_backward(mg.ops.bias_gelu, views, layout(dy))
        assert all(torch.equal(plain[name], strided[name]) for name in plain)
        return plain

    run_on_every_schedule(f"bias_gelu {pair_name(pair)} {layout.__name__}", run)


@pytest.mark.parametrize("approximate", FORMS)
def test_gradcheck(approximate):
    inputs, _ = case(3, 5, pair=PAIRS[3])
    with mg.backend("emulated"):
        given = [t.requires_grad_() for t in inputs.values()]
        assert torch.autograd.gradcheck(lambda *t: mg.ops.bias_gelu(*t, approximate), given)
