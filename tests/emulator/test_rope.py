"""rope's CUDA kernel under the emulator."""

import pytest
import torch
from accuracy import DTYPES, name_of
from emulator.schedules import run_on_every_schedule
from ops.test_rope import arguments, case, check, heads_first, packed
from paged import int32
from tensors import spread, turned, unaligned

import minigpt_ext as mg

pytestmark = pytest.mark.usefixtures("built")

# A thread takes 4 (float64: 2) pairs at once, a block of 128 threads a token. (B, T, H, D), R.
SHAPES = [((1, 1, 1, 2), 2), ((2, 3, 1, 1), 0), ((2, 3, 3, 8), 8), ((1, 3, 2, 9), 8), ((1, 3, 2, 33), 14)]
SHAPES += [((1, 2, 20, 64), 64), ((1, 2, 9, 80), 20), ((1, 2, 3, 256), 64), ((0, 3, 2, 8), 8), ((2, 3, 0, 8), 8)]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("positions", [False, True], ids=["in-order", "positions"])
def test_accuracy(positions, dtype):
    for shape, R in SHAPES:
        run_on_every_schedule(
            f"rope {name_of(dtype)} {shape} {R} {positions}",
            lambda shape=shape, R=R: check(**case(shape, R, dtype, positions=positions)),
        )


@pytest.mark.parametrize("layout", [unaligned, spread, turned, packed, heads_first])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("D, R", [(9, 8), (16, 16)])
def test_unaligned_and_strided(D, R, layout, dtype):
    """Views give the bits of dense tensors."""

    def run():
        inputs = case((2, 3, 3, D), R, dtype, positions=True)
        plain = check(**inputs)
        changed = {name: layout(inputs[name]) for name in ("x", "dy")}
        changed |= {name: unaligned(inputs[name]) for name in ("cos", "sin")}
        strided = check(**inputs | changed)
        assert all(torch.equal(plain[name], strided[name]) for name in plain)
        return plain

    run_on_every_schedule(f"rope {name_of(dtype)} {D} {layout.__name__}", run)


BAD = int32([[0, 6, 2], [-1, 4, 2**31 - 1]])


@pytest.mark.parametrize("R", [8, 4])
def test_a_position_out_of_range_gives_zeros(R):
    """And its rows of the tables are never read."""

    def run():
        inputs = case((2, 3, 2, 8), R)
        given = inputs["cos"], inputs["sin"]
        known = (BAD >= 0) & (BAD < 6)
        rotated = mg.ops.rope(inputs["x"], *given, positions=BAD)
        wanted = mg.ops.rope(inputs["x"], *given, positions=BAD * known)
        assert torch.equal(rotated, wanted * known[..., None, None])
        assert rotated[known].count_nonzero() == rotated[known].numel()
        return rotated

    run_on_every_schedule(f"rope out of range {R}", run)


def test_minigpt_check_raises_instead(monkeypatch):
    monkeypatch.setenv("MINIGPT_CHECK", "1")
    with (
        mg.backend("emulated"),
        pytest.raises(RuntimeError, match=r"rope: positions\[0\]\[1\] is 6, cos and sin have 6"),
    ):
        mg.ops.rope(**arguments(positions=BAD))


def test_gradcheck():
    inputs = case((2, 2, 2, 5), 4, torch.float64, positions=True)
    options = {name: inputs[name] for name in ("cos", "sin", "positions")}
    with mg.backend("emulated"):
        assert torch.autograd.gradcheck(lambda x: mg.ops.rope(x, **options), inputs["x"].requires_grad_())
