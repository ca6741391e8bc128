"""kv_append: every new token lands in its place, nothing else in the cache changes, and what is refused."""

import pytest
import torch
from accuracy import DTYPES, name_of
from paged import POISON, int32, poisoned_caches, shuffled_table, write
from tensors import normal, spread, turned, unaligned

import minigpt_ext as mg


def bits(t: torch.Tensor) -> torch.Tensor:
    """The tensor's bytes, so that NaN equals NaN."""
    return t.contiguous().view(torch.uint8)


def setting(before, fresh, block_size=4, H_kv=2, D=8, dtype=torch.float32, device="cpu"):
    """Caches, table and lengths for sequences of `before` tokens that get `fresh` new ones, and what must come out."""
    after = [b + f for b, f in zip(before, fresh, strict=True)]
    table, n_blocks = shuffled_table(after, block_size, max(after + [1]) // block_size + 2, device=device)
    caches = poisoned_caches(n_blocks, block_size, H_kv, D, dtype, device)
    new = [tuple(normal(n, H_kv, D, dtype=dtype, device=device) for _ in range(2)) for n in fresh]
    expected = [cache.clone() for cache in caches]
    for b, pair in enumerate(new):
        for cache, tokens in zip(expected, pair, strict=True):
            write(cache, table, b, tokens, before[b])
    return caches, new, table, int32(before, device), expected


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("block_size", [1, 4, 16, 64])
@pytest.mark.parametrize(
    "before, T", [([0], 1), ([7, 0, 16, 63], 1), ([3, 0, 64], 5), ([15, 16, 17], 70), ([5, 2], 0)], ids=str
)
def test_new_tokens_land_in_their_places(before, T, block_size, dtype, device):
    caches, new, table, lens, expected = setting(before, [T] * len(before), block_size, dtype=dtype, device=device)
    k, v = (torch.stack([pair[i] for pair in new]) for i in (0, 1))
    assert mg.ops.kv_append(*caches, k, v, table, lens) is None
    for cache, wanted in zip(caches, expected, strict=True):
        assert torch.equal(bits(cache), bits(wanted))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(
    "before, fresh", [([7, 0, 16, 3], [2, 0, 5, 1]), ([0, 5], [0, 0]), ([9, 4, 4], [0, 33, 0]), ([2], [3])]
)
def test_ragged(before, fresh, dtype, device):
    caches, new, table, lens, expected = setting(before, fresh, dtype=dtype, device=device)
    k, v = (torch.cat([pair[i] for pair in new]) for i in (0, 1))
    start = int32([sum(fresh[:b]) for b in range(len(fresh) + 1)], device)
    mg.ops.kv_append(*caches, k, v, table, lens, query_start=start)
    for cache, wanted in zip(caches, expected, strict=True):
        assert torch.equal(bits(cache), bits(wanted))


def packed(t: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.zeros_like(t), t, torch.ones_like(t)], 2)[:, :, 1]


def heads_first(t: torch.Tensor) -> torch.Tensor:
    return t.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize("layout", [unaligned, spread, packed, heads_first])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("H_kv, D", [(1, 7), (3, 8)])
def test_strided_keys_and_values(H_kv, D, layout, dtype, device):
    caches, new, table, lens, expected = setting([3, 6], [5, 5], H_kv=H_kv, D=D, dtype=dtype, device=device)
    k, v = (torch.stack([pair[i] for pair in new]) for i in (0, 1))
    mg.ops.kv_append(*caches, layout(k), heads_first(layout(v)) if layout is packed else layout(v), table, lens)
    for cache, wanted in zip(caches, expected, strict=True):
        assert torch.equal(bits(cache), bits(wanted))


def test_ragged_and_strided(device):
    caches, new, table, lens, expected = setting([3, 6], [2, 4], device=device)
    k, v = (spread(torch.cat([pair[i] for pair in new]).transpose(0, 1).contiguous()).transpose(0, 1) for i in (0, 1))
    mg.ops.kv_append(*caches, k, v, table, lens, query_start=int32([0, 2, 6], device))
    for cache, wanted in zip(caches, expected, strict=True):
        assert torch.equal(bits(cache), bits(wanted))


def test_a_large_copy_by_several_threads(threads, device):
    caches, new, table, lens, expected = setting([5] * 5, [300] * 5, 16, H_kv=4, D=32, device=device)
    k, v = (torch.stack([pair[i] for pair in new]) for i in (0, 1))
    threads(3)
    mg.ops.kv_append(*caches, k, v, table, lens)
    assert all(torch.equal(bits(cache), bits(wanted)) for cache, wanted in zip(caches, expected, strict=True))


def test_a_cache_filled_to_the_last_row(device):
    """And the identity table: a contiguous cache."""
    k, v = normal(2, 8, 1, 4, device=device), normal(2, 8, 1, 4, device=device)
    caches = poisoned_caches(4, 4, 1, 4, torch.float32, device)
    mg.ops.kv_append(*caches, k, v, int32([[0, 1], [2, 3]], device), int32([0, 0], device))
    assert torch.equal(caches[0].view(2, 8, 1, 4), k) and torch.equal(caches[1].view(2, 8, 1, 4), v)


def test_an_empty_batch(device):
    caches = poisoned_caches(2, 4, 1, 4, torch.float32, device)
    none = normal(0, 3, 1, 4, device=device)
    mg.ops.kv_append(*caches, none, none, int32([], device).view(0, 2), int32([], device))
    assert all(cache.isnan().all() for cache in caches)


def arguments(**changed) -> dict:
    """Two sequences with 5 and 2 tokens, of at most 8, that get 3 more each."""
    caches = poisoned_caches(5, 4, 2, 8, torch.float32, "cpu")
    return {
        "k_cache": caches[0],
        "v_cache": caches[1],
        "k": normal(2, 3, 2, 8),
        "v": normal(2, 3, 2, 8),
        "block_table": int32([[4, 0], [2, 1]]),
        "seq_lens": int32([5, 2]),
        **changed,
    }


RAGGED = {"k": normal(6, 2, 8), "v": normal(6, 2, 8)}


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"k_cache": normal(5, 4, 16)}, "k_cache must be"),
        ({"k_cache": torch.zeros(5, 4, 2, 8, dtype=torch.int32)}, "k_cache, unless it is int8, must be float32"),
        ({"k_cache": normal(5, 4, 2, 16)[..., ::2]}, "k_cache and v_cache must be contiguous"),
        ({"v_cache": normal(4, 5, 2, 8).transpose(0, 1)}, "k_cache and v_cache must be contiguous"),
        ({"v_cache": normal(5, 4, 2, 7)}, "v_cache must be"),
        ({"v_cache": normal(5, 4, 2, 8).double()}, "v_cache must be float32"),
        ({"k_cache": normal(5, 0, 2, 8), "v_cache": normal(5, 0, 2, 8)}, "k_cache must have block_size"),
        ({"k": normal(6, 2, 8)}, "k must be"),
        ({"k": normal(3, 3, 2, 8)}, "k must be"),
        ({"k": normal(2, 3, 1, 8), "v": normal(2, 3, 1, 8)}, "k must have the cache's H_kv"),
        ({"k": normal(2, 3, 2, 7)}, "k must have the cache's D"),
        ({"k": normal(2, 3, 2, 8).half()}, "k must be float32, got float16"),
        ({"k": turned(normal(2, 3, 2, 8))}, "k must be contiguous in its last dimension"),
        ({"v": turned(normal(2, 3, 2, 8))}, "v must be contiguous in its last dimension"),
        ({"v": normal(2, 4, 2, 8)}, "v must be"),
        ({"v": normal(2, 3, 2, 8).half()}, "v must be float32, got float16"),
        ({"block_table": int32([4, 0])}, "block_table must be"),
        ({"block_table": int32([[4, 0], [2, 1]]).long()}, "block_table must be int32, got int64"),
        ({"block_table": int32([[4, 0, 2], [2, 1, 3]])[:, :2]}, "block_table must be contiguous"),
        ({"seq_lens": int32([5, 2, 1])}, "seq_lens must be"),
        ({"seq_lens": int32([5, 2]).long()}, "seq_lens must be int32, got int64"),
        ({"seq_lens": torch.tensor([5.0, 2.0])}, "seq_lens must be int32"),
        ({"seq_lens": int32([5, -1])}, "seq_lens must not be negative, got -1 for sequence 1"),
        ({"seq_lens": int32([6, 2])}, "sequence 0 would have 9 tokens, its row of block_table holds 2 blocks of 4"),
        ({"seq_lens": int32([2**31 - 1, 2])}, "sequence 0 would have 2147483650 tokens"),
        ({"block_table": int32([[4, 0], [2, -1]])}, r"block_table\[1\]\[1\] is -1"),
        ({"block_table": int32([[4, 5], [2, 1]])}, r"block_table\[0\]\[1\] is 5, the cache has 5 blocks"),
        ({"block_table": int32([[4, 0], [POISON, 1]])}, r"block_table\[1\]\[0\] is"),
        ({**RAGGED, "query_start": int32([1, 3, 6])}, "query_start must begin with 0, got 1"),
        ({**RAGGED, "query_start": int32([0, 3, 5])}, "query_start must end with the number of new tokens, 6, got 5"),
        ({**RAGGED, "query_start": int32([0, 7, 6])}, "query_start must not decrease, got 7 then 6"),
        ({**RAGGED, "query_start": int32([0, -2, 6])}, "query_start must not decrease, got 0 then -2"),
        ({**RAGGED, "query_start": int32([0, 6])}, "query_start must be"),
        ({**RAGGED, "query_start": int32([0, 3, 6]).long()}, "query_start must be int32"),
        ({**RAGGED, "query_start": int32([0, 6, 6])}, "sequence 0 would have 11 tokens"),
        ({"query_start": int32([0, 3, 6])}, "with query_start, k must be"),
        ({"k_cache": normal(5, 4, 2, 8).to("meta")}, "device"),
        ({"k": normal(2, 3, 2, 8).to("meta")}, "k is on"),
        ({"v": normal(2, 3, 2, 8).to("meta")}, "v is on"),
        ({"v_cache": normal(5, 4, 2, 8).to("meta")}, "v_cache is on"),
        ({"block_table": int32([[4, 0], [2, 1]]).to("meta")}, "block_table is on"),
        ({"seq_lens": int32([5, 2]).to("meta")}, "seq_lens is on"),
        ({**RAGGED, "query_start": int32([0, 3, 6]).to("meta")}, "query_start is on"),
    ],
)
def test_wrong_input_is_refused_by_name_and_changes_nothing(changed, message):
    given = arguments(**changed)
    before = [bits(given[name]) if not given[name].is_meta else None for name in ("k_cache", "v_cache")]
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        mg.ops.kv_append(**given)
    for name, old in zip(("k_cache", "v_cache"), before, strict=True):
        assert old is None or torch.equal(bits(given[name]), old)


def test_table_entries_before_the_new_tokens_are_not_asked_for():
    """Only the entries in use are checked: sequence 0 writes to its second block alone."""
    given = arguments(block_table=int32([[POISON, 0], [2, 1]]))
    mg.ops.kv_append(**given)
    assert torch.equal(given["k_cache"][0, 1:4], given["k"][0])


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_opcheck(ragged, dtype, device):
    caches, new, table, lens, _ = setting([3, 6], [2, 2], dtype=dtype, device=device)
    k, v = (torch.stack([pair[i] for pair in new]) for i in (0, 1))
    caches = [cache.nan_to_num() for cache in caches]
    given = (*caches, k.flatten(0, 1), v.flatten(0, 1)) if ragged else (*caches, k, v)
    start = int32([0, 2, 4], device) if ragged else None
    torch.library.opcheck(torch.ops.minigpt.kv_append.default, (*given, table, lens, start))


@pytest.mark.parametrize("name", ["k_cache", "v_cache"])
def test_a_cache_that_requires_a_gradient_is_refused(name):
    caches = {each: torch.zeros(1, 4, 1, 8, requires_grad=each == name) for each in ("k_cache", "v_cache")}
    with torch.no_grad(), pytest.raises(RuntimeError, match="must not require gradients"):
        mg.ops.kv_append(
            **caches, k=normal(1, 1, 1, 8), v=normal(1, 1, 1, 8), block_table=int32([[0]]), seq_lens=int32([0])
        )
