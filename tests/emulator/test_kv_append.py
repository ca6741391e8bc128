"""kv_append's CUDA kernel under the emulator: every token lands in its place, and nothing else changes."""

import pytest
import torch
from accuracy import DTYPES, name_of
from emulator.schedules import bits, run_on_every_schedule
from ops.test_kv_append import arguments, heads_first, packed, setting
from paged import POISON, int32
from tensors import normal, spread, unaligned

import minigpt_ext as mg

pytestmark = pytest.mark.usefixtures("built")


def append(before, fresh, *, ragged=False, layout=lambda t: t, **options) -> dict:
    """The caches after appending `fresh` new tokens to sequences of `before`, checked byte for byte."""
    caches, new, table, lens, expected = setting(before, fresh, **options)
    join = torch.cat if ragged else torch.stack
    k, v = (layout(join([pair[i] for pair in new])) for i in (0, 1))
    start = int32([sum(fresh[:b]) for b in range(len(fresh) + 1)]) if ragged else None
    assert mg.ops.kv_append(*caches, k, v, table, lens, query_start=start) is None
    for name, cache, wanted in zip("kv", caches, expected, strict=True):
        assert torch.equal(bits(cache), bits(wanted)), f"{name}_cache"
    return dict(zip("kv", caches, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_new_tokens_land_in_their_places(block_size, dtype):
    for before, T in (([0], 1), ([7, 0, 16, 63], 1), ([3, 0, 64], 5), ([15, 16], 33), ([5, 2], 0)):
        run_on_every_schedule(
            f"kv_append {name_of(dtype)} {block_size} {before} {T}",
            lambda before=before, T=T: append(before, [T] * len(before), block_size=block_size, dtype=dtype),
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("H_kv, D", [(1, 1), (3, 2), (1, 7), (2, 31), (2, 33), (2, 64), (1, 255), (3, 256)])
def test_widths(H_kv, D, dtype):
    """Words of 1 to 16 bytes, and rows of more words than a block has threads."""
    run_on_every_schedule(
        f"kv_append {name_of(dtype)} {H_kv} {D}", lambda: append([3, 6], [2, 2], H_kv=H_kv, D=D, dtype=dtype)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_ragged(dtype):
    for before, fresh in (([7, 0, 16, 3], [2, 0, 5, 1]), ([0, 5], [0, 0]), ([9, 4, 4], [0, 33, 0]), ([2], [3])):
        run_on_every_schedule(
            f"kv_append ragged {name_of(dtype)} {before} {fresh}",
            lambda before=before, fresh=fresh: append(before, fresh, ragged=True, dtype=dtype),
        )


def gap_between_heads(t: torch.Tensor) -> torch.Tensor:
    return torch.stack([t, torch.zeros_like(t)], -2)[..., 0, :]


@pytest.mark.parametrize("layout", [unaligned, spread, packed, heads_first, gap_between_heads])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("H_kv, D", [(1, 7), (3, 8)])
def test_strided_keys_and_values(H_kv, D, layout, dtype):
    run_on_every_schedule(
        f"kv_append {name_of(dtype)} {H_kv} {D} {layout.__name__}",
        lambda: append([3, 6], [5, 5], layout=layout, H_kv=H_kv, D=D, dtype=dtype),
    )


def test_ragged_and_strided():
    run_on_every_schedule("kv_append ragged spread", lambda: append([3, 6], [2, 4], ragged=True, layout=spread))


# Of 8 values each; 4 floats are the widest word. In each row one stride alone is no multiple of it.
STRIDES = {"batch": (101, 16, 8), "token": (100, 17, 8), "head": (100, 20, 9), "none": (160, 32, 16)}


@pytest.mark.parametrize("ragged", [False, True], ids=["", "ragged"])
@pytest.mark.parametrize("odd", list(STRIDES))
@pytest.mark.parametrize("which", ["k", "v"])
def test_every_stride_of_both_decides_on_the_width_and_is_kept_to(which, odd, ragged):
    def lay(t: torch.Tensor) -> torch.Tensor:
        strides = (*STRIDES[odd][-t.dim() + 1 :], 1)
        return torch.zeros(400).as_strided(t.shape, strides).copy_(t)

    def run():
        caches, new, table, lens, expected = setting([3, 6], [5, 5])
        join = torch.cat if ragged else torch.stack
        given = {name: join([pair[i] for pair in new]) for i, name in enumerate("kv")}
        given[which] = lay(given[which])
        mg.ops.kv_append(*caches, *given.values(), table, lens, query_start=int32([0, 5, 10]) if ragged else None)
        for cache, wanted in zip(caches, expected, strict=True):
            assert torch.equal(bits(cache), bits(wanted))
        return dict(zip("kv", caches, strict=True))

    run_on_every_schedule(f"kv_append {which} with a {odd} stride {ragged}", run)


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)], ids=str)
def test_an_unaligned_cache(which):
    def run():
        caches = [normal(4, 4, 1, 8) for _ in range(2)]
        caches = [unaligned(cache) if i in which else cache for i, cache in enumerate(caches)]
        k, v = normal(2, 8, 1, 8), normal(2, 8, 1, 8)
        mg.ops.kv_append(*caches, k, v, int32([[3, 1], [2, 0]]), int32([0, 0]))
        for cache, new in zip(caches, (k, v), strict=True):
            assert torch.equal(cache[[3, 1, 2, 0]].view(2, 8, 1, 8), new)
        return dict(zip("kv", caches, strict=True))

    run_on_every_schedule(f"kv_append unaligned cache {which}", run)


# ---- what is out of range is skipped --------------------------------------------------------------------------------

BAD = [
    # (changed arguments, tokens (sequence, i) that still have a place). Two sequences with 5 and 2 tokens get 3 more.
    ({"block_table": int32([[4, 0], [2, -1]])}, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]),
    ({"block_table": int32([[4, 5], [2, 1]])}, [(1, 0), (1, 1), (1, 2)]),
    ({"block_table": int32([[4, POISON], [2**31 - 1, 1]])}, [(1, 2)]),
    ({"seq_lens": int32([6, 2])}, [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]),
    ({"seq_lens": int32([-1, 2])}, [(1, 0), (1, 1), (1, 2)]),
    ({"seq_lens": int32([2**31 - 1, 2])}, [(1, 0), (1, 1), (1, 2)]),
]


@pytest.mark.parametrize("changed, kept", BAD, ids=lambda v: str(v) if isinstance(v, list) else "")
def test_entries_out_of_range_are_skipped(changed, kept):
    def run():
        given = arguments(**changed)
        wanted = {name: given[f"{name}_cache"].clone() for name in "kv"}
        for b, i in kept:
            position = int(given["seq_lens"][b]) + i
            block = int(given["block_table"][b, position // 4])
            for name in "kv":
                wanted[name][block, position % 4] = given[name][b, i]
        mg.ops.kv_append(**given)
        for name in "kv":
            assert torch.equal(bits(given[f"{name}_cache"]), bits(wanted[name])), name
        return wanted

    run_on_every_schedule(f"kv_append {changed}", run)


RAGGED = {"k": normal(6, 2, 8), "v": normal(6, 2, 8)}


@pytest.mark.parametrize(
    "start, kept",
    [
        ([1, 3, 6], {1: (0, 0), 2: (0, 1), 3: (1, 0), 4: (1, 1), 5: (1, 2)}),
        ([0, 3, 5], {0: (0, 0), 1: (0, 1), 2: (0, 2), 3: (1, 0), 4: (1, 1)}),
        ([0, 3, 7], {0: (0, 0), 1: (0, 1), 2: (0, 2)}),
        ([-2, 3, 6], {3: (1, 0), 4: (1, 1), 5: (1, 2)}),
    ],
)
def test_rows_that_belong_to_no_sequence_are_skipped(start, kept):
    def run():
        given = arguments(**RAGGED, query_start=int32(start))
        wanted = {name: given[f"{name}_cache"].clone() for name in "kv"}
        for row, (b, i) in kept.items():
            position = int(given["seq_lens"][b]) + i
            for name in "kv":
                wanted[name][given["block_table"][b, position // 4], position % 4] = given[name][row]
        mg.ops.kv_append(**given)
        for name in "kv":
            assert torch.equal(bits(given[f"{name}_cache"]), bits(wanted[name])), name
        return wanted

    run_on_every_schedule(f"kv_append query_start {start}", run)


@pytest.mark.parametrize(
    "changed, message",
    [
        (BAD[0][0], r"block_table\[1\]\[1\] is -1"),
        (BAD[1][0], r"block_table\[0\]\[1\] is 5, the cache has 5 blocks"),
        (BAD[3][0], "sequence 0 would have 9 tokens"),
        ({**RAGGED, "query_start": int32([1, 3, 6])}, "query_start must begin with 0"),
    ],
)
def test_minigpt_check_raises_instead(changed, message, monkeypatch):
    monkeypatch.setenv("MINIGPT_CHECK", "1")
    given = arguments(**changed)
    with mg.backend("emulated"), pytest.raises(RuntimeError, match=message):
        mg.ops.kv_append(**given)
    assert given["k_cache"].isnan().all() and given["v_cache"].isnan().all()
