"""The CUDA kernels of kv_append and decode_attention over int8 caches, under the emulator."""

import pytest
import torch
from accuracy import name_of
from attention_cases import rule_options
from emulator.schedules import run_on_every_schedule
from ops.test_int8_cache import (
    DTYPES,
    Int8Batch,
    append,
    arguments,
    assert_same,
    empty_caches,
    heads_apart,
    quantised,
)
from paged import int32
from tensors import spread, unaligned

import minigpt_ext as mg

pytestmark = pytest.mark.usefixtures("built")


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("H_kv, D", [(1, 1), (5, 7), (2, 33), (3, 64), (1, 300)])
def test_new_tokens_are_quantised_in_their_places(H_kv, D, dtype):
    for before, fresh in (([7, 0, 16], [2] * 3), ([2, 9, 1], [3, 0, 2])):
        run_on_every_schedule(
            f"kv_append int8 {name_of(dtype)} {H_kv} {D} {before}",
            lambda before=before, fresh=fresh: append(before, fresh, H_kv=H_kv, D=D, dtype=dtype),
        )


@pytest.mark.parametrize("layout", [unaligned, spread, heads_apart])
def test_strided_keys_and_values(layout):
    run_on_every_schedule(f"kv_append int8 {layout.__name__}", lambda: append([3, 6], [5, 5], D=9, layout=layout))


def test_zeros_and_what_is_not_finite():
    def run():
        x = torch.zeros(4, 1, 40)
        x[1] = 1e-37
        x[2, 0, 3], x[2, 0, 4] = float("inf"), 1
        x[3, 0, 39], x[3, 0, 4] = float("nan"), 1
        caches = empty_caches(1, 4, 1, 40)
        mg.ops.kv_append(**caches, k=x[None], v=x[None], block_table=int32([[0]]), seq_lens=int32([0]))
        for which in "kv":
            scales = caches[f"{which}_scales"].flatten()
            assert scales[:2].tolist() == [0, 0] and scales[2:].isnan().all()
            assert (caches[f"{which}_cache"] == 0).all()
        return caches

    run_on_every_schedule("kv_append int8 zeros", run)


def test_entries_out_of_range_are_skipped():
    def run():
        given = arguments("kv_append") | {"block_table": int32([[4, 5], [2, -1]]), "seq_lens": int32([3, 3])}
        names = ("k_cache", "v_cache", "k_scales", "v_scales")
        wanted = {name: given[name].clone() for name in names}
        for which in "kv":  # of three tokens the first still has a place
            for b, block in ((0, 4), (1, 2)):
                values, scales = quantised(given[which][b, 0])
                wanted[f"{which}_cache"][block, 3], wanted[f"{which}_scales"][block, 3] = values, scales
        mg.ops.kv_append(**given)
        assert_same({name: given[name] for name in names}, wanted)
        return wanted

    run_on_every_schedule("kv_append int8 out of range", run)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("lens, T", [([5, 64, 0, 129], 1), ([33, 3, 16], 3), ([600], 1)], ids=str)
def test_accuracy(lens, T, dtype):
    run_on_every_schedule(
        f"decode_attention int8 {name_of(dtype)} {lens}", lambda: Int8Batch(lens, [T] * len(lens), dtype=dtype).check()
    )


@pytest.mark.parametrize("D", [1, 16, 32, 33, 64, 65, 80, 128, 256])
def test_head_dims(D):
    run_on_every_schedule(
        f"decode_attention int8 D{D}", lambda: Int8Batch([35, 9], [2, 2], D=D, H=2, H_kv=2).check(window=20)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_rules_and_ragged_batches(dtype):
    rule = rule_options("both", 4, dtype)
    run_on_every_schedule(
        f"decode_attention int8 ragged {name_of(dtype)}",
        lambda: Int8Batch([33, 2, 40], [3, 0, 1], H=4, H_kv=2, dtype=dtype).check(ragged=True, **rule),
    )


def test_blocks_out_of_range_and_tokens_that_read_as_nan():
    def run():
        given = arguments("decode_attention", k_scales=torch.zeros_like, v_scales=torch.zeros_like)
        given["block_table"] = int32([[4, 9], [2, 1]])
        given["v_scales"][1] = float("nan")  # the fifth token of sequence 1, seen by its last query alone, and on
        given["seq_lens"] = int32([6, 5])
        out = mg.ops.decode_attention(**given)
        assert (out[0] == 0).all() and (out[1, :2] == 0).all() and out[1, 2].isnan().all()
        return out

    run_on_every_schedule("decode_attention int8 out of range", run)


def test_unaligned_caches():
    def run():
        batch = Int8Batch([40, 9], [1, 1], D=16)
        batch.caches = tuple(unaligned(cache) for cache in batch.caches)
        return batch.check()

    run_on_every_schedule("decode_attention int8 unaligned", run)


def test_queries_of_any_layout():
    def run():
        batch = Int8Batch([40, 9], [3, 3], H=4, H_kv=2)
        out = batch.run(spread)
        assert torch.equal(out, batch.run())
        return out

    run_on_every_schedule("decode_attention int8 strided queries", run)
