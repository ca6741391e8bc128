"""The CUDA kernels of residual_layer_norm and residual_rms_norm under the emulator."""

import pytest
import torch
from emulator.schedules import run_on_every_schedule
from residual_norm import FUNCTIONS, TYPES, case, check, run, types_name
from tensors import spread, turned, unaligned

import minigpt_ext as mg

pytestmark = [pytest.mark.usefixtures("built"), pytest.mark.parametrize("norm", FUNCTIONS)]


@pytest.mark.parametrize("types", TYPES, ids=types_name)
def test_accuracy(norm, types):
    for shape in ((1, 1), (7, 3), (2, 3, 33), (0, 8), (2, 1025)):
        run_on_every_schedule(
            f"residual_{norm} {types_name(types)} {shape}",
            lambda shape=shape: check(norm, *case(norm, *shape, types=types)),
        )


@pytest.mark.parametrize("types", TYPES[4:6], ids=types_name)
def test_the_sum_is_used_nowhere_else(norm, types):
    def without_ds():
        inputs, gradients = case(norm, 19, 33, types=types, bias=False)
        return check(norm, inputs, {"y": gradients["y"]})

    run_on_every_schedule(f"residual_{norm} {types_name(types)} without ds", without_ds)


@pytest.mark.parametrize("layout", [unaligned, spread, turned])
@pytest.mark.parametrize("types", TYPES[4:6], ids=types_name)
def test_unaligned_and_strided(norm, layout, types):
    """Views give the bits of dense tensors."""

    def both():
        inputs, gradients = case(norm, 6, 36, types=types)
        plain = run(norm, inputs, gradients)
        views = inputs | {name: layout(inputs[name]) for name in ("x", "residual")}
        strided = run(norm, views, {name: layout(t) for name, t in gradients.items()})
        assert all(torch.equal(plain[name], strided[name]) for name in plain)
        return plain

    run_on_every_schedule(f"residual_{norm} {types_name(types)} {layout.__name__}", both)


def test_gradcheck(norm):
    inputs, _ = case(norm, 3, 5, types=TYPES[3])
    with mg.backend("emulated"):
        assert torch.autograd.gradcheck(FUNCTIONS[norm], [t.requires_grad_() for t in inputs.values()])
