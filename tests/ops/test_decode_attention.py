"""decode_attention: accuracy over paged caches of every kind, splits of long caches, and what is refused."""

import pytest
import torch
from accuracy import DTYPES, assert_accurate, name_of, scale_of
from attention_cases import sizes
from hypothesis import given, settings
from hypothesis import strategies as st
from paged import POISON, int32, poisoned_caches, shuffled_table, write
from tensors import normal, spread, turned, unaligned

import minigpt_ext as mg
from minigpt_ext.ops.attention import attention_reference


class Batch:
    """Sequences of lens[b] tokens, the last fresh[b] of them new, in a paged cache that is NaN where no token lies."""

    def __init__(self, lens, fresh, H=2, H_kv=1, D=8, block_size=16, dtype=torch.float32, device="cpu"):
        self.fresh = fresh
        self.q = [normal(n, H, D, dtype=dtype, device=device) for n in fresh]
        self.k, self.v = ([normal(n, H_kv, D, dtype=dtype, device=device) for n in lens] for _ in range(2))
        self.table, n_blocks = shuffled_table(lens, block_size, max([*lens, 1]) // block_size + 2, device=device)
        self.caches = poisoned_caches(n_blocks, block_size, H_kv, D, dtype, device)
        for b in range(len(lens)):
            for cache, tokens in zip(self.caches, (self.k[b], self.v[b]), strict=True):
                write(cache, self.table, b, tokens)
        self.lens = int32(lens, device)
        self.start = int32([sum(fresh[:b]) for b in range(len(fresh) + 1)], device)

    def run(self, layout=lambda q: q, ragged=False, **options) -> torch.Tensor:
        """(new tokens, H, D), whichever way they are handed over."""
        if ragged:
            q = layout(torch.cat(self.q))
            return mg.ops.decode_attention(q, *self.caches, self.table, self.lens, query_start=self.start, **options)
        q = layout(torch.stack(self.q))
        return mg.ops.decode_attention(q, *self.caches, self.table, self.lens, **options).flatten(0, 1)

    def reference(self, **options) -> torch.Tensor:
        """Each sequence by itself, in float64: attention aligns queries to the end, just as decoding does."""
        alone = [self.alone(b, **options) for b in range(len(self.fresh))]
        return torch.cat([attention_reference(**inputs, **options)[0] for inputs in alone])

    def alone(self, b, **options) -> dict:
        return {name: t[b][None].double() for name, t in (("q", self.q), ("k", self.k), ("v", self.v))}

    def check(self, ragged=False, **options) -> torch.Tensor:
        """The accuracy rule, against torch's own attention in the same dtype. Returns ours."""
        ours = self.run(ragged=ragged, **options)
        with mg.backend("torch"):
            torchs = self.run(ragged=ragged, **options)
        stored = added_up = 0.0
        for b, rows in enumerate(self.q):
            if rows.shape[0] and self.k[b].shape[0]:
                out = sizes(**self.alone(b), g=torch.zeros_like(rows[None]), **options)["out"]
                stored, added_up = max(stored, out[0]), max(added_up, out[1])
        scale = scale_of(ours.dtype, stored, added_up)
        assert_accurate("decode_attention out", ours, torchs, self.reference(**options), scale)
        return ours


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("block_size", [1, 16, 64])
@pytest.mark.parametrize(
    "lens, T", [([1], 1), ([5, 64, 0, 129], 1), ([65, 3, 16], 3), ([2, 0, 70], 5), ([33, 40], 33)], ids=str
)
def test_accuracy(lens, T, block_size, dtype, device):
    Batch(lens, [T] * len(lens), block_size=block_size, dtype=dtype, device=device).check()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("D", [1, 3, 16, 33, 64, 80, 128, 256])
def test_head_dims(D, dtype, device):
    Batch([70, 9], [2, 2], D=D, dtype=dtype, device=device).check()
    Batch([70, 9], [1, 1], D=D, dtype=dtype, device=device).check()


@pytest.mark.parametrize("H, H_kv", [(1, 1), (3, 3), (4, 2), (6, 2), (8, 1)])
@pytest.mark.parametrize("T", [1, 4])
def test_head_groups(H, H_kv, T, device):
    Batch([70, 9, 17], [T] * 3, H=H, H_kv=H_kv, D=17, device=device).check()


@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 1000])
@pytest.mark.parametrize("T", [1, 7])
def test_windows(window, T, device):
    Batch([130, 64, 3], [T] * 3, device=device).check(window=window)


@pytest.mark.parametrize("scale", [0.0, -0.5, 2.0])
def test_scale(scale, device):
    Batch([70, 9], [2, 2], device=device).check(scale=scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(
    "lens, fresh",
    [([7, 64, 130], [3, 0, 1]), ([5, 5], [0, 5]), ([0, 3], [0, 1]), ([70, 2, 90, 1], [70, 1, 2, 0]), ([4, 9], [0, 0])],
)
def test_ragged(lens, fresh, dtype, device):
    Batch(lens, fresh, H=4, H_kv=2, dtype=dtype, device=device).check(ragged=True)
    Batch(lens, fresh, H=4, H_kv=2, dtype=dtype, device=device).check(ragged=True, window=3)


# A long cache is cut into runs of at least 128 keys (up to 8 queries a key/value head, of which a token here has 2) or
# 256, which are merged at the end.
@pytest.mark.parametrize("T", [1, 2, 5])
@pytest.mark.parametrize("longest", [127, 128, 129, 255, 256, 511, 512, 513, 767, 1025])
def test_long_caches(longest, T, device):
    Batch([longest], [T], D=16, device=device).check()
    Batch([longest, 0, 100, 300], [T] * 4, D=5, dtype=torch.bfloat16, device=device).check()


@pytest.mark.parametrize("window", [1, 64, 200, 600])
@pytest.mark.parametrize("T", [1, 3, 5])
def test_long_caches_with_a_window(window, T, device):
    """Whole runs of keys then lie outside the window."""
    Batch([1025, 2, 513], [T] * 3, device=device).check(window=window)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_large_scores(dtype, device):
    batch = Batch([600, 70], [2, 2], D=16, dtype=dtype, device=device)
    batch.q = [q * 32 for q in batch.q]
    batch.k = [k * 32 for k in batch.k]
    batch.caches[0].mul_(32)
    batch.check()


def test_growing_scores_rescale_what_was_summed(device):
    for order in (1, -1):
        batch = Batch([600], [2], D=4, device=device)
        batch.q = [batch.q[0].abs() + 0.5]
        batch.k = [(torch.linspace(-3, 3, 600, device=device) * order)[:, None, None].expand(600, 1, 4).contiguous()]
        write(batch.caches[0], batch.table, 0, batch.k[0])
        batch.check()


@pytest.mark.parametrize("T", [1, 4])
def test_sequences_without_tokens_give_zeros(T, device):
    batch = Batch([0, 2, 0], [T] * 3, device=device)
    out = batch.run().view(3, T, 2, 8)
    assert (out[0] == 0).all() and (out[2] == 0).all() and (out[1, : T - 2] == 0).all()
    assert (out[1, -1] != 0).all()


@pytest.mark.parametrize("lens, T", [([64, 64], 1), ([130, 130], 3), ([70, 70], 70)])
def test_equals_attention_over_the_contiguous_tensors(lens, T, device):
    batch = Batch(lens, [T] * 2, H=4, H_kv=2, device=device)
    q, k, v = torch.stack(batch.q), torch.stack(batch.k), torch.stack(batch.v)
    for window in (None, 5):
        torch.testing.assert_close(batch.run(window=window), mg.ops.attention(q, k, v, window=window).flatten(0, 1))


def test_shared_blocks(device):
    """Two sequences with one common beginning, kept once."""
    batch = Batch([40, 40], [1, 1], device=device)
    for part, cache in ((batch.k, batch.caches[0]), (batch.v, batch.caches[1])):
        part[1][:32] = part[0][:32]
        write(cache, batch.table, 1, part[1])
    before = batch.run()
    batch.caches[0][batch.table[1, :2].long()] = float("nan")
    batch.caches[1][batch.table[1, :2].long()] = float("nan")
    batch.table[1, :2] = batch.table[0, :2]
    assert torch.equal(batch.run(), before)
    batch.check()


@pytest.mark.parametrize("layout", [unaligned, spread, lambda q: q.transpose(0, 1).contiguous().transpose(0, 1)])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_strided_queries(layout, ragged, dtype, device):
    batch = Batch([70, 9], [3, 3], H=4, H_kv=2, D=9, dtype=dtype, device=device)
    assert torch.equal(batch.run(layout, ragged), batch.run(ragged=ragged))
    if not ragged:
        packed = torch.stack([torch.stack(batch.q)] * 3, 2)[:, :, 1]
        assert torch.equal(batch.run(lambda q: packed), batch.run())


def test_packed_and_ragged_agree(device):
    batch = Batch([70, 9, 400], [3, 3, 3], device=device)
    assert torch.equal(batch.run(), batch.run(ragged=True))


def test_nan_is_passed_on(device):
    batch = Batch([600, 70], [1, 1], H=2, H_kv=2, device=device)
    clean = batch.run()
    batch.q[1][0, 0] = float("nan")
    write(batch.caches[0], batch.table, 0, torch.full((1, 2, 8), float("nan"), device=device), start=300)
    out = batch.run()
    assert out[0].isnan().all() and out[1, 0].isnan().all() and torch.equal(out[1, 1], clean[1, 1])


def test_runs_and_threads_do_not_change_the_result(threads):
    batch = Batch([1025, 70], [1, 1], H=4, H_kv=2, D=33)
    first = batch.run()
    for n in (1, 2, 3) * 10:
        threads(n)
        assert torch.equal(batch.run(), first)


def test_a_sequence_does_not_depend_on_its_neighbours(device):
    """Beyond rounding: the runs into which a cache is cut depend on the longest of the batch."""
    batch = Batch([70, 600], [1, 1], device=device)
    together = batch.run()
    alone = mg.ops.decode_attention(batch.q[0][None], *batch.caches, batch.table[:1], batch.lens[:1])
    torch.testing.assert_close(together[:1], alone[0])


# ---- what is refused ------------------------------------------------------------------------------------------------


def arguments(**changed) -> dict:
    """Two sequences with 8 and 5 tokens, of at most 8, the last 3 of them new."""
    return {
        "q": normal(2, 3, 4, 8),
        "k_cache": normal(5, 4, 2, 8),
        "v_cache": normal(5, 4, 2, 8),
        "block_table": int32([[4, 0], [2, 1]]),
        "seq_lens": int32([8, 5]),
        **changed,
    }


RAGGED = {"q": normal(6, 4, 8)}
WIDE = {"q": normal(1, 1, 1, 257), "k_cache": normal(1, 1, 1, 257), "v_cache": normal(1, 1, 1, 257)}


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"q": normal(6, 4, 8)}, "q must be"),
        ({"q": torch.tensor(1.0)}, "decode_attention: q must"),
        ({"q": normal(3, 3, 4, 8)}, "q must be"),
        ({"q": normal(2, 3, 4, 7)}, "q must have the cache's D"),
        ({"q": normal(2, 3, 3, 8)}, "q must have a multiple of the cache's H_kv = 2 heads, got 3"),
        ({"q": normal(2, 3, 0, 8)}, "q must have a multiple of the cache's H_kv = 2 heads, got 0"),
        ({"q": normal(2, 3, 4, 8).bfloat16()}, "q must be float32, got bfloat16"),
        (
            {"q": torch.ones(2, 3, 4, 8, dtype=torch.int32)},
            "q must be float32, bfloat16, float16 or float64, got int32",
        ),
        ({"q": turned(normal(2, 3, 4, 8))}, "q must be contiguous in its last dimension"),
        ({"k_cache": normal(5, 4, 16)}, "k_cache must be"),
        ({"k_cache": normal(5, 4, 2, 16)[..., ::2]}, "k_cache and v_cache must be contiguous"),
        ({"v_cache": normal(5, 4, 1, 8)}, "v_cache must be"),
        ({"v_cache": normal(5, 4, 2, 8).double()}, "v_cache must be float32"),
        ({**WIDE, "block_table": int32([[0]]), "seq_lens": int32([1])}, "D must be at most 256, got 257"),
        ({"block_table": int32([4, 0])}, "block_table must be"),
        ({"block_table": int32([[4, 0], [2, 1]]).long()}, "block_table must be int32, got int64"),
        ({"block_table": int32([[4, 0], [2, 1]]).t()}, "block_table must be contiguous"),
        ({"seq_lens": int32([8])}, "seq_lens must be"),
        ({"seq_lens": int32([8, 5]).long()}, "seq_lens must be int32, got int64"),
        ({"seq_lens": int32([8, -5])}, "seq_lens must not be negative, got -5 for sequence 1"),
        ({"seq_lens": int32([9, 5])}, "sequence 0 would have 9 tokens"),
        ({"block_table": int32([[4, 0], [-1, 1]])}, r"block_table\[1\]\[0\] is -1"),
        ({"block_table": int32([[4, 5], [2, 1]])}, r"block_table\[0\]\[1\] is 5, the cache has 5 blocks"),
        ({"block_table": int32([[4, 0], [2, POISON]])}, r"block_table\[1\]\[1\] is"),
        ({**RAGGED, "query_start": int32([1, 3, 6])}, "query_start must begin with 0"),
        ({**RAGGED, "query_start": int32([0, 3, 7])}, "query_start must end with the number of new tokens, 6, got 7"),
        ({**RAGGED, "query_start": int32([0, 8, 6])}, "query_start must not decrease"),
        ({**RAGGED, "query_start": int32([0, 3, 6, 6])}, "query_start must be"),
        ({**RAGGED, "query_start": torch.tensor([0, 3, 6])}, "query_start must be int32"),
        ({"query_start": int32([0, 3, 6])}, "with query_start, q must be"),
        ({"window": 0}, "decode_attention: window must be at least 1, got 0"),
        ({"window": -1}, "decode_attention: window must be at least 1"),
        ({"scale": float("nan")}, "scale must be finite"),
        ({"scale": float("inf")}, "scale must be finite"),
        (
            {"alibi_slopes": normal(3)},
            r"decode_attention: alibi_slopes must be \(H,\) = \(4,\) in torch.float32, got \(3,\)",
        ),
        ({"alibi_slopes": normal(4).half()}, "decode_attention: alibi_slopes must be"),
        ({"alibi_slopes": normal(8)[::2]}, "decode_attention: alibi_slopes must be contiguous"),
        ({"alibi_slopes": normal(4).to("meta")}, "alibi_slopes is on"),
        ({"alibi_slopes": normal(4).requires_grad_()}, "decode_attention: alibi_slopes requires a gradient"),
        ({"softcap": 0.0}, "decode_attention: softcap must be positive and finite"),
        ({"softcap": float("nan")}, "decode_attention: softcap must be positive and finite"),
        ({"softcap": float("inf")}, "decode_attention: softcap must be positive and finite"),
        ({"q": normal(2, 3, 4, 8).to("meta")}, "q is on|device"),
        ({"k_cache": normal(5, 4, 2, 8).to("meta")}, "k_cache is on|device"),
        ({"v_cache": normal(5, 4, 2, 8).to("meta")}, "v_cache is on"),
        ({"block_table": int32([[4, 0], [2, 1]]).to("meta")}, "block_table is on"),
        ({"seq_lens": int32([8, 5]).to("meta")}, "seq_lens is on"),
        ({**RAGGED, "query_start": int32([0, 3, 6]).to("meta")}, "query_start is on"),
    ],
)
def test_wrong_input_is_refused_by_name(changed, message):
    with pytest.raises((RuntimeError, ValueError, TypeError), match=message):
        mg.ops.decode_attention(**arguments(**changed))


def test_table_entries_past_the_length_are_not_asked_for():
    mg.ops.decode_attention(**arguments(block_table=int32([[4, 0], [2, POISON]]), seq_lens=int32([8, 4])))


def test_empty_batches_and_no_new_tokens(device):
    caches = poisoned_caches(2, 4, 1, 8, torch.float32, device)
    none, table, lens = normal(0, 3, 2, 8, device=device), int32([], device).view(0, 2), int32([], device)
    assert mg.ops.decode_attention(none, *caches, table, lens).shape == (0, 3, 2, 8)
    assert Batch([5, 2], [0, 0], device=device).run().shape == (0, 2, 8)


def test_a_gradient_is_refused_and_not_silently_nothing():
    given = arguments()
    given["q"].requires_grad_()
    with pytest.raises(RuntimeError):
        mg.ops.decode_attention(**given).sum().backward()


@pytest.mark.parametrize("lens, ragged, dtype", [([7, 3], False, torch.float32), ([300, 0], True, torch.float16)])
@pytest.mark.parametrize("with_rule", [False, True])
def test_opcheck(lens, ragged, dtype, with_rule, device):
    rule = (normal(2, device=device), 1.5) if with_rule else (None, 0.0)
    batch = Batch(lens, [2, 2], dtype=dtype, device=device)
    caches = [cache.nan_to_num() for cache in batch.caches]
    q = torch.cat(batch.q) if ragged else torch.stack(batch.q)
    given = (q, *caches, batch.table, batch.lens, batch.start if ragged else None, 0.3, 0, *rule)
    torch.library.opcheck(torch.ops.minigpt.decode_attention.default, given)


# ---- any shape ------------------------------------------------------------------------------------------------------


@st.composite
def batches(draw) -> tuple:
    H_kv, lens = draw(st.integers(1, 2)), draw(st.lists(st.integers(0, 300), min_size=1, max_size=4))
    shape = {"H": H_kv * draw(st.integers(1, 3)), "H_kv": H_kv, "D": draw(st.integers(1, 40))}
    shape |= {"block_size": draw(st.sampled_from([1, 3, 16, 64])), "dtype": draw(st.sampled_from(DTYPES))}
    fresh = [draw(st.integers(0, min(5, n))) for n in lens]
    return lens, fresh, shape, draw(st.none() | st.integers(1, 320))


@given(batches())
def test_any_shape(drawn):
    torch.manual_seed(0)
    lens, fresh, shape, window = drawn
    Batch(lens, fresh, **shape).check(ragged=True, window=window)


@pytest.mark.slow
@settings(max_examples=1000)
@given(batches())
def test_any_shape_at_length(drawn):
    torch.manual_seed(0)
    lens, fresh, shape, window = drawn
    Batch(lens, fresh, **shape).check(ragged=True, window=window)
