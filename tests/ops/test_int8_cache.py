"""int8 caches: what kv_append writes, decode_attention over it, how far both may be from the unrounded ones, errors."""

import pytest
import torch
from accuracy import name_of
from attention_cases import RULES, rule_options
from ops.test_decode_attention import Batch
from paged import int32, shuffled_table, write
from tensors import normal, spread, turned, unaligned

import minigpt_ext as mg

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
POISON = 99  # values where no token lies; scales there are NaN


def heads_apart(t: torch.Tensor) -> torch.Tensor:
    return torch.stack([t, torch.zeros_like(t)], -2)[..., 0, :]


def quantised(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By definition: x (..., D) -> int8 values, float32 scales (...)."""
    scales = x.float().abs().amax(-1) / 127
    values = torch.round(x.float() / scales[..., None]).nan_to_num()  # 0 / 0 where all x are 0
    return values.to(torch.int8), scales


def empty_caches(n_blocks: int, block_size: int, H_kv: int, D: int, device="cpu") -> dict[str, torch.Tensor]:
    place = {"device": device}
    return {
        **{f"{n}_cache": torch.full((n_blocks, block_size, H_kv, D), POISON, dtype=torch.int8, **place) for n in "kv"},
        **{f"{n}_scales": torch.full((n_blocks, block_size, H_kv), float("nan"), **place) for n in "kv"},
    }


def assert_same(caches: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    for name, cache in caches.items():
        assert torch.equal(cache.view(torch.uint8), wanted[name].view(torch.uint8)), name


def append(before, fresh, H_kv=2, D=8, block_size=4, dtype=torch.float32, device="cpu", layout=lambda t: t, new=None):
    """The caches after sequences of `before` tokens got `fresh` new ones, checked bit for bit."""
    after = [b + f for b, f in zip(before, fresh, strict=True)]
    table, n_blocks = shuffled_table(after, block_size, max([*after, 1]) // block_size + 2, device=device)
    caches = empty_caches(n_blocks, block_size, H_kv, D, device)
    new = new or [[normal(n, H_kv, D, dtype=dtype, device=device, factor=3) for _ in "kv"] for n in fresh]
    wanted = {name: cache.clone() for name, cache in caches.items()}
    for b, tokens in enumerate(new):
        for name, x in zip("kv", tokens, strict=True):
            for kind, part in zip(("cache", "scales"), quantised(x), strict=True):
                write(wanted[f"{name}_{kind}"], table, b, part, before[b])
    ragged = len(set(fresh)) > 1
    k, v = (layout((torch.cat if ragged else torch.stack)([pair[i] for pair in new])) for i in (0, 1))
    start = int32([sum(fresh[:b]) for b in range(len(fresh) + 1)], device) if ragged else None
    mg.ops.kv_append(**caches, k=k, v=v, block_table=table, seq_lens=int32(before, device), query_start=start)
    assert_same(caches, wanted)
    return caches


class Int8Batch(Batch):
    """A batch whose caches are int8; its k and v are what those hold, exactly, and true_k, true_v what was rounded."""

    def __init__(self, lens, fresh, **shape):
        super().__init__(lens, fresh, **shape)
        self.true = {"k": self.k, "v": self.v}
        n_blocks, block_size, H_kv, D = self.caches[0].shape
        self.int8 = empty_caches(n_blocks, block_size, H_kv, D, self.lens.device)
        self.scales = {}
        for name, tokens in self.true.items():
            parts = [quantised(x) for x in tokens]
            for b, (values, scales) in enumerate(parts):
                write(self.int8[f"{name}_cache"], self.table, b, values)
                write(self.int8[f"{name}_scales"], self.table, b, scales)
            self.scales[name] = [scales for _, scales in parts]
            setattr(self, name, [values.double() * scales.double()[..., None] for values, scales in parts])
        self.caches = (self.int8["k_cache"], self.int8["v_cache"])

    def run(self, layout=lambda q: q, ragged=False, **options) -> torch.Tensor:
        scales = {name: self.int8[name] for name in ("k_scales", "v_scales")}
        return super().run(layout, ragged, **scales, **options)


# ---- kv_append ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kernels", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("H_kv, D", [(1, 1), (2, 7), (3, 16), (1, 33), (2, 64), (1, 300)])
def test_new_tokens_are_quantised_in_their_places(H_kv, D, dtype, name):
    with mg.backend(name):
        for before, fresh in (([0], [1]), ([7, 0, 16, 3], [1] * 4), ([3, 0, 6], [5] * 3), ([2, 9, 1], [3, 0, 2])):
            append(before, fresh, H_kv=H_kv, D=D, dtype=dtype)


@pytest.mark.parametrize("layout", [unaligned, spread, heads_apart])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_strided_keys_and_values(layout, dtype):
    append([3, 6], [5, 5], D=9, dtype=dtype, layout=layout)
    append([3, 6], [5, 2], D=9, dtype=dtype, layout=layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_what_is_read_back_is_within_half_a_scale(dtype):
    x = normal(50, 3, 64, dtype=dtype) * torch.logspace(-4, 4, 50)[:, None, None].to(dtype)
    caches = append([0], [50], H_kv=3, D=64, block_size=50, new=[[x, x]])
    block = caches["k_scales"].isfinite().all(-1).all(-1).nonzero().item()
    scales = caches["k_scales"][block].double()
    error = (caches["k_cache"][block] * scales[..., None] - x.double()).abs()
    # A quotient of at most 127 is rounded to float32: 127 x 2^-24 < 1e-5 of a scale.
    assert (error <= scales[..., None] * (0.5 + 1e-5)).all()
    assert (caches["k_cache"][block].abs().amax(-1) == 127).all()


@pytest.mark.parametrize("name", ["kernels", "torch"])
def test_zeros_and_what_is_nearly_zero(name):
    x = torch.zeros(3, 1, 20)
    x[1], x[2, 0, 3] = 1e-37, -1e-30  # scales of 0, below 2^-126, and 1e-30 / 127
    caches = empty_caches(1, 3, 1, 20)
    with mg.backend(name):
        mg.ops.kv_append(**caches, k=x[None], v=x[None], block_table=int32([[0]]), seq_lens=int32([0]))
    assert caches["k_scales"].flatten().tolist() == [0, 0, float(torch.tensor(1e-30) / 127)]
    assert (caches["v_cache"][0, :2] == 0).all() and caches["v_cache"][0, 2, 0, 3] == -127
    assert caches["v_cache"][0, 2].count_nonzero() == 1


@pytest.mark.parametrize("name", ["kernels", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("at", [0, 15, 32])
def test_a_head_that_is_not_finite_reads_as_nan(at, bad, dtype, name):
    x = normal(1, 2, 2, 33, dtype=dtype)
    x[0, 1, 0, at] = bad
    caches = empty_caches(1, 2, 2, 33)
    with mg.backend(name):
        mg.ops.kv_append(**caches, k=x, v=x, block_table=int32([[0]]), seq_lens=int32([0]))
    for which in "kv":
        assert caches[f"{which}_scales"][0].isnan().tolist() == [[False, False], [True, False]]
        assert (caches[f"{which}_cache"][0, 1, 0] == 0).all() and (caches[f"{which}_cache"][0, 1, 1] != 0).any()


def test_appending_never_touches_older_tokens():
    caches = empty_caches(2, 4, 2, 8)
    table = int32([[1, 0]])
    mg.ops.kv_append(**caches, k=normal(1, 5, 2, 8), v=normal(1, 5, 2, 8), block_table=table, seq_lens=int32([0]))
    wanted = {name: cache.clone() for name, cache in caches.items()}
    k, v = normal(1, 1, 2, 8, factor=1000), normal(1, 1, 2, 8, factor=1000)
    mg.ops.kv_append(**caches, k=k, v=v, block_table=table, seq_lens=int32([5]))
    for which, x in zip("kv", (k, v), strict=True):
        wanted[f"{which}_cache"][0, 1], wanted[f"{which}_scales"][0, 1] = quantised(x[0, 0])
    assert_same(caches, wanted)


# ---- decode_attention -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("block_size", [1, 16])
@pytest.mark.parametrize(
    "lens, T", [([1], 1), ([5, 64, 0, 129], 1), ([65, 3, 16], 3), ([2, 0, 70], 5), ([33, 40], 33), ([700], 1)], ids=str
)
def test_accuracy(lens, T, block_size, dtype, device):
    Int8Batch(lens, [T] * len(lens), block_size=block_size, dtype=dtype, device=device).check()


@pytest.mark.parametrize("D", [1, 3, 16, 33, 64, 80, 128, 256])
@pytest.mark.parametrize("T", [1, 2, 9])
def test_head_dims_and_groups(D, T, device):
    Int8Batch([70, 9], [T] * 2, D=D, H=4, H_kv=2, device=device).check()
    Int8Batch([70, 9], [T] * 2, D=D, H=3, H_kv=3, device=device).check(window=5)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("rule", RULES)
def test_rules_and_ragged_batches(rule, dtype, device):
    Int8Batch([70, 9, 300], [3, 0, 1], dtype=dtype, device=device).check(ragged=True, **rule_options(rule, 2, dtype))
    Int8Batch([70, 80], [40, 2], dtype=dtype, device=device).check(ragged=True, **rule_options(rule, 2, dtype))


@pytest.mark.parametrize("T", [1, 8])
@pytest.mark.parametrize("window", [None, 40])
def test_error_against_the_unrounded_cache_is_what_rounding_allows(T, window, device):
    """With |k' - k| <= a / 2 and |v' - v| <= c / 2 for scales a and c, a score is off by at most
    E = scale x sum |q| x max a / 2, so each weight by a factor within e^(+-2 E), and the result by at most
    (e^(2 E) - 1) max |v| + max c / 2."""
    batch = Int8Batch([130, 65], [T] * 2, H=4, H_kv=2, D=16, device=device)
    ours = batch.run(window=window).double()
    batch.k, batch.v = batch.true["k"], batch.true["v"]
    true = batch.reference(window=window)
    a, c = (max(scales.max().item() for scales in batch.scales[name]) * (1 + 2e-5) for name in "kv")
    largest_q = torch.cat(batch.q).double().abs().sum(-1, keepdim=True)
    spread_of = torch.expm1(2 * largest_q / 4 * a / 2) * max(v.abs().max().item() for v in batch.v)
    assert ((ours - true).abs() <= spread_of + c / 2 + 1e-5).all()
    assert (ours - true).abs().max() > 1e-4  # rounding is there to be seen


def test_a_token_that_reads_as_nan(device):
    batch = Int8Batch([600, 70], [1, 1], H=2, H_kv=2, device=device)
    clean = batch.run()
    write(batch.int8["k_scales"], batch.table, 0, torch.full((1, 2), float("nan"), device=device), start=300)
    write(batch.int8["v_scales"], batch.table, 1, torch.tensor([[float("nan"), 1.0]], device=device), start=69)
    out = batch.run()
    assert out[0].isnan().all() and out[1, 0].isnan().all()
    assert out[1, 1].isfinite().all() and clean.isfinite().all()


def test_runs_and_threads_do_not_change_the_result(threads):
    batch = Int8Batch([1025, 70], [1, 1], H=4, H_kv=2, D=33)
    first = batch.run()
    for n in (1, 2, 3):
        threads(n)
        assert torch.equal(batch.run(), first)


# ---- what is refused ------------------------------------------------------------------------------------------------


def arguments(op: str, **changed) -> dict:
    new = {"q": normal(2, 3, 4, 8)} if op == "decode_attention" else {"k": normal(2, 3, 2, 8), "v": normal(2, 3, 2, 8)}
    tables = {"block_table": int32([[4, 0], [2, 1]]), "seq_lens": int32([5, 4])}
    given = {**empty_caches(5, 4, 2, 8), **new, **tables}
    return {name: change(given[name]) if (change := changed.get(name)) else value for name, value in given.items()}


WRONG_SCALES = [
    (lambda t: None, "must be given with int8 caches"),
    (lambda t: t.double(), r"must be float32, got float64"),
    (lambda t: t[..., 0], r"must be \(n_blocks, block_size, H_kv\) = \(5, 4, 2\), got \(5, 4\)"),
    (lambda t: t[:4], r"must be \(n_blocks, block_size, H_kv\) = \(5, 4, 2\), got \(4, 4, 2\)"),
    (lambda t: turned(t), "must be contiguous"),
    (lambda t: t.to("meta"), "k_scales is on|v_scales is on|device"),
]


@pytest.mark.parametrize("op", ["kv_append", "decode_attention"])
@pytest.mark.parametrize("which", ["k_scales", "v_scales"])
@pytest.mark.parametrize("change, message", WRONG_SCALES)
def test_wrong_scales_are_refused_by_name_and_change_nothing(op, which, change, message):
    given = arguments(op, **{which: change})
    before = {name: t.clone() for name, t in given.items() if name.endswith("cache")}
    with pytest.raises(RuntimeError, match=message) as error:
        getattr(mg.ops, op)(**given)
    assert which in str(error.value)
    assert all(torch.equal(given[name], t) for name, t in before.items())


@pytest.mark.parametrize("name", ["kernels", "torch"])
@pytest.mark.parametrize("op", ["kv_append", "decode_attention"])
def test_scales_come_with_int8_caches_only(op, name):
    def floats(t):
        return torch.zeros(t.shape)

    with mg.backend(name):
        for which in ("k_scales", "v_scales"):
            with pytest.raises(RuntimeError, match=f"{op}: {which} must be given with int8 caches"):
                getattr(mg.ops, op)(**arguments(op, **{which: lambda t: None}))
        for kept, other in (("k_scales", "v_scales"), ("v_scales", "k_scales")):
            given = arguments(op, k_cache=floats, v_cache=floats, **{other: lambda t: None})
            with pytest.raises(RuntimeError, match=f"{op}: {kept} belongs to int8 caches, and k_cache is .*float32"):
                getattr(mg.ops, op)(**given)


@pytest.mark.parametrize(
    "op, changed, message",
    [
        ("kv_append", {"v_cache": torch.Tensor.float}, "v_cache must be int8, got float32"),
        ("decode_attention", {"k_cache": torch.Tensor.float}, "v_cache must be float32, got int8"),
        (
            "kv_append",
            {"k": torch.Tensor.double},
            "k must be float32, bfloat16 or float16 with int8 caches, got float64",
        ),
        ("kv_append", {"k": torch.Tensor.char}, "k must be float32, bfloat16 or float16 with int8 caches, got int8"),
        ("kv_append", {"v": torch.Tensor.half}, "v must be float32, got float16"),
        ("decode_attention", {"q": torch.Tensor.double}, "q must be float32, bfloat16 or float16 with int8 caches"),
    ],
)
def test_wrong_types_are_refused_by_name(op, changed, message):
    with pytest.raises(RuntimeError, match=message):
        getattr(mg.ops, op)(**arguments(op, **changed))


@pytest.mark.parametrize("ragged", [False, True])
def test_opcheck(ragged):
    batch = Int8Batch([7, 300], [2, 2])
    parts = {name: t.nan_to_num() for name, t in batch.int8.items()}
    caches, scales = (parts["k_cache"], parts["v_cache"]), (parts["k_scales"], parts["v_scales"])
    join, start = (torch.cat, batch.start) if ragged else (torch.stack, None)
    given = (join(batch.q), *caches, batch.table, batch.lens, start, 0.3, 0, None, 0.0, *scales)
    torch.library.opcheck(torch.ops.minigpt.decode_attention.default, given)
    new = [join([normal(2, 1, 8) for _ in range(2)]) for _ in "kv"]
    given = (*caches, *new, batch.table, batch.lens - 2, start, *scales)
    torch.library.opcheck(torch.ops.minigpt.kv_append.default, given)
