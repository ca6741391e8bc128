"""decode_attention's CUDA kernels under the emulator: tables of every kind, splits, entries out of range."""

import math

import pytest
import torch
from accuracy import DTYPES, name_of
from emulator.schedules import run_on_every_schedule
from ops.test_decode_attention import Batch, arguments
from paged import POISON, int32, write
from tensors import normal, spread, unaligned

import minigpt_ext as mg

pytestmark = pytest.mark.usefixtures("built")


def run(case: str, lens, fresh, *, ragged=False, window=None, scale=None, **shape) -> None:
    """The accuracy rule on every schedule."""
    options = {"window": window} | ({} if scale is None else {"scale": scale})
    run_on_every_schedule(
        f"decode_attention {case} {lens} {fresh} {window} {shape}",
        lambda: Batch(lens, fresh, **shape).check(ragged=ragged, **options),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("block_size", [1, 16])
@pytest.mark.parametrize("lens, T", [([1], 1), ([5, 64, 0, 129], 1), ([33, 3, 16], 3), ([2, 0, 31], 5)], ids=str)
def test_accuracy(lens, T, block_size, dtype):
    run("", lens, [T] * len(lens), block_size=block_size, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_head_dims(dtype):
    for D in (1, 3, 16, 31, 32, 33, 64, 65, 80, 127, 128, 129, 255, 256):
        run("", [35, 9], [2, 2], D=D, dtype=dtype, H=1)


@pytest.mark.parametrize("H, H_kv", [(3, 3), (4, 2), (6, 2), (8, 1)])
def test_head_groups(H, H_kv):
    run("", [40, 9], [2, 2], H=H, H_kv=H_kv, D=17)


@pytest.mark.parametrize("window", [1, 2, 31, 32, 33, 1000])
@pytest.mark.parametrize("T", [1, 3])
def test_windows(window, T):
    run("", [70, 64, 2], [T] * 3, window=window)


@pytest.mark.parametrize("scale", [0.0, -0.5, 2.0])
def test_scale(scale):
    run(f"scale {scale}", [40, 9], [2, 2], scale=scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(
    "lens, fresh", [([7, 64, 65], [3, 0, 1]), ([5, 5], [0, 5]), ([0, 3], [0, 1]), ([33, 2, 40, 1], [7, 1, 2, 0])]
)
def test_ragged(lens, fresh, dtype):
    run("ragged", lens, fresh, ragged=True, H=4, H_kv=2, dtype=dtype)
    run("ragged", lens, fresh, ragged=True, H=4, H_kv=2, dtype=dtype, window=3)


# A table of 512 positions or more is cut into runs of 256 or more, which are merged at the end.
@pytest.mark.parametrize("longest", [511, 512, 513, 767])
def test_splits(longest):
    run("", [longest], [1], D=16)
    run("", [longest, 0, 100], [2] * 3, H=1, D=5, dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_splits_of_every_kernel(dtype):
    run("", [600], [1], H=1, D=100, dtype=dtype)


@pytest.mark.parametrize("window", [1, 200, 300, 600])
def test_splits_with_a_window(window):
    """Whole runs of keys then lie outside the window."""
    run("", [770, 2, 513], [2] * 3, H=1, window=window)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_large_scores(dtype):
    def large():
        batch = Batch([530, 40], [1, 1], H=1, D=16, dtype=dtype)
        batch.q = [q * 32 for q in batch.q]
        batch.k = [k * 32 for k in batch.k]
        batch.caches[0].mul_(32)
        return batch.check()

    run_on_every_schedule(f"decode_attention {name_of(dtype)} large scores", large)


def test_growing_scores_rescale_what_was_summed():
    for order in (1, -1):

        def growing(order=order):
            batch = Batch([530], [1], H=1, D=4)
            batch.q = [batch.q[0].abs() + 0.5]
            batch.k = [(torch.linspace(-3, 3, 530) * order)[:, None, None].expand(530, 1, 4).contiguous()]
            write(batch.caches[0], batch.table, 0, batch.k[0])
            return batch.check()

        run_on_every_schedule(f"decode_attention growing scores {order}", growing)


@pytest.mark.parametrize("length", [40, 600])
def test_scores_far_below_zero(length):
    """The highest of them is the one that counts, in a single split and where splits are merged."""

    def low():
        batch = Batch([length], [1], H=1, D=16)
        batch.q = [torch.full_like(batch.q[0], 20.0)]
        batch.k = [batch.k[0] / 100 - 2]
        write(batch.caches[0], batch.table, 0, batch.k[0])
        return batch.check()

    run_on_every_schedule(f"decode_attention scores far below zero {length}", low)


def test_sequences_without_tokens_give_zeros():
    def zeros():
        out = Batch([0, 2, 0], [4] * 3).run().view(3, 4, 2, 8)
        assert (out[0] == 0).all() and (out[2] == 0).all() and (out[1, :2] == 0).all() and (out[1, -1] != 0).all()
        return out

    run_on_every_schedule("decode_attention no tokens", zeros)


def test_shared_blocks():
    """Two sequences with one common beginning, kept once."""

    def shared():
        batch = Batch([40, 40], [1, 1])
        for part, cache in ((batch.k, batch.caches[0]), (batch.v, batch.caches[1])):
            part[1][:32] = part[0][:32]
            write(cache, batch.table, 1, part[1])
            cache[batch.table[1, :2].long()] = float("nan")
        batch.table[1, :2] = batch.table[0, :2]
        return batch.check()

    run_on_every_schedule("decode_attention shared blocks", shared)


@pytest.mark.parametrize("layout", [unaligned, spread, lambda q: q.transpose(0, 1).contiguous().transpose(0, 1)])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_strided_queries(layout, ragged, dtype):
    def views():
        batch = Batch([40, 9], [3, 3], H=4, H_kv=2, D=8, dtype=dtype)
        out = batch.run(layout, ragged)
        assert torch.equal(out, batch.run(ragged=ragged))
        if not ragged:
            packed = torch.stack([torch.stack(batch.q)] * 3, 2)[:, :, 1]
            assert torch.equal(batch.run(lambda q: packed), out)
        return out

    run_on_every_schedule(f"decode_attention {name_of(dtype)} {layout.__name__} {ragged}", views)


def test_unaligned_caches():
    def run():
        batch = Batch([40, 9], [1, 1])
        batch.caches = tuple(unaligned(cache) for cache in batch.caches)
        return batch.check()

    run_on_every_schedule("decode_attention unaligned caches", run)


def test_nan_is_passed_on():
    def nan():
        batch = Batch([530, 70], [1, 1], H=2, H_kv=2)
        batch.q[1][0, 0] = float("nan")
        write(batch.caches[0], batch.table, 0, torch.full((1, 2, 8), float("nan")), start=300)
        out = batch.run()
        assert out[0].isnan().all() and out[1, 0].isnan().all() and out[1, 1].isfinite().all()
        return out

    run_on_every_schedule("decode_attention NaN", nan)


def test_nothing_to_do():
    run("", [5, 2], [0, 0])
    run("", [5, 2], [0, 0], ragged=True)


# ---- what is out of range is skipped, and never read ----------------------------------------------------------------

BAD = [
    {"block_table": int32([[4, 0], [-1, 1]])},
    {"block_table": int32([[4, 5], [2, 1]])},
    {"block_table": int32([[POISON, 2**31 - 1], [2, 1]])},  # sequence 0 has no valid block at all
    {"seq_lens": int32([9, 5])},
    {"seq_lens": int32([2**31 - 1, 5])},
    {"seq_lens": int32([-5, 5])},
]


def expected(given: dict) -> torch.Tensor:
    """Attention over the positions that lie in a block of the cache; float64."""
    q, table, lens = given["q"].double(), given["block_table"], given["seq_lens"].tolist()
    n_blocks, block_size, H_kv, D = given["k_cache"].shape
    B, T, H, _ = q.shape
    out = torch.zeros_like(q)
    for b, i, h in torch.cartesian_prod(torch.arange(B), torch.arange(T), torch.arange(H)).tolist():
        places = [(int(table[b, p // block_size]), p % block_size) for p in range(table.shape[1] * block_size)]
        seen = [(block, row) for block, row in places[: max(0, lens[b] - T + i + 1)] if 0 <= block < n_blocks]
        if seen:
            k, v = (
                torch.stack([cache[block, row, h // (H // H_kv)].double() for block, row in seen])
                for cache in (given["k_cache"], given["v_cache"])
            )
            out[b, i, h] = torch.softmax(k @ q[b, i, h] / math.sqrt(D), 0) @ v
    return out


@pytest.mark.parametrize("changed", BAD, ids=str)
def test_entries_out_of_range_are_skipped(changed):
    def skipped():
        given = arguments(**changed)
        out = mg.ops.decode_attention(**given)
        torch.testing.assert_close(out.double(), expected(given), rtol=1e-5, atol=1e-6)
        return out

    run_on_every_schedule(f"decode_attention {changed}", skipped)


@pytest.mark.parametrize(
    "start, none",
    [([1, 3, 6], [0]), ([0, 3, 5], [5]), ([0, 3, 7], [3, 4, 5]), ([-2, 3, 6], [0, 1, 2]), ([0, 0, 0], range(6))],
    ids=str,
)
def test_rows_that_belong_to_no_sequence_give_zeros(start, none):
    def zeros():
        out = mg.ops.decode_attention(**arguments(q=normal(6, 4, 8), query_start=int32(start)))
        for row in range(6):
            assert (out[row] == 0).all() == (row in none), row
        return out

    run_on_every_schedule(f"decode_attention query_start {start}", zeros)


@pytest.mark.parametrize(
    "changed, message",
    [
        (BAD[0], r"block_table\[1\]\[0\] is -1"),
        (BAD[1], r"block_table\[0\]\[1\] is 5, the cache has 5 blocks"),
        (BAD[3], "sequence 0 would have 9 tokens"),
        (BAD[5], "seq_lens must not be negative"),
        ({"q": normal(6, 4, 8), "query_start": int32([1, 3, 6])}, "query_start must begin with 0"),
    ],
)
def test_minigpt_check_raises_instead(changed, message, monkeypatch):
    monkeypatch.setenv("MINIGPT_CHECK", "1")
    with mg.backend("emulated"), pytest.raises(RuntimeError, match=message):
        mg.ops.decode_attention(**arguments(**changed))
