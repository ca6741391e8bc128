"""dropout's CUDA kernel under the emulator."""

import pytest
import torch
from emulator.schedules import run_on_every_schedule
from ops.test_dropout import PAIRS, check, pair_name
from tensors import normal, spread, turned, unaligned

import minigpt_ext as mg

pytestmark = pytest.mark.usefixtures("built")

# A thread takes 4 elements at once, a block 1024.
SHAPES = [(), (0,), (1,), (3,), (2, 3, 5), (31,), (33,), (1023,), (1025,), (2049,)]


@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
def test_values(residual, pair):
    for shape in SHAPES:
        run_on_every_schedule(
            f"dropout {pair_name(pair)} {shape} {residual}", lambda shape=shape: check(shape, pair, 0.3, 7, residual)
        )


@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
def test_the_mask_is_the_cpus(pair):
    x = normal(700, dtype=pair[0])
    residual = normal(700, dtype=pair[1])
    wanted = mg.ops.dropout(x, 0.4, -9, residual)
    run_on_every_schedule(f"dropout mask {pair_name(pair)}", lambda: mg.ops.dropout(x, 0.4, -9, residual))
    with mg.backend("emulated"):
        assert torch.equal(mg.ops.dropout(x, 0.4, -9, residual) == residual, wanted == residual)


@pytest.mark.parametrize("layout", [unaligned, spread, turned])
def test_unaligned_and_strided(layout):
    run_on_every_schedule(
        f"dropout {layout.__name__}", lambda: check((7, 33), PAIRS[1], 0.3, 7, residual=True, layout=layout)
    )


def test_gradcheck():
    given = [normal(3, 7).double().requires_grad_() for _ in range(2)]
    with mg.backend("emulated"):
        assert torch.autograd.gradcheck(lambda x, r: mg.ops.dropout(x, 0.4, 8, r), given)
