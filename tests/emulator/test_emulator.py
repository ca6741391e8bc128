"""What the emulator does for right kernels: CUDA's own meanings, on every schedule and in both builds."""

import pytest
import torch

import minigpt_ext as mg

SEEDS = (0, 1, 2, 3)


def int32(*shape: int) -> torch.Tensor:
    return torch.full(shape, -9, dtype=torch.int32)


@pytest.mark.parametrize("width", [32, 16, 4])
@pytest.mark.parametrize("by", [0, 1, 3])
def test_shuffles(library, width, by):
    """By the tables of CUDA's programming guide: a lane whose source is outside its segment keeps its own value."""
    for seed in SEEDS:
        out = int32(64, 4)
        library.call("shuffles", out, 64, width, by, seed=seed)
        for thread in range(64):
            lane = thread % 32
            first, within = lane // width * width, lane % width
            wanted = [first + by, lane - by if within >= by else lane, lane + by if within + by < width else lane]
            assert out[thread].tolist() == [*wanted, lane ^ by], (thread, seed)


def test_a_block_of_part_of_a_warp(library):
    out = int32(5, 4)
    library.call("shuffles", out, 5, 32, 1)
    assert out[:, 0].tolist() == [1] * 5 and out[:4, 2].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("limit", [0, 1, 2, 7, 31, 32])
def test_votes_among_half_of_the_lanes(library, limit):
    for seed in SEEDS:
        out = int32(64, 3)
        library.call("votes", out, limit, seed=seed)
        for thread in range(64):
            lanes = range(thread % 2, 32, 2)
            ballot = sum(1 << lane for lane in lanes if lane < limit)
            wanted = [ballot, any(lane < limit for lane in lanes), all(lane < limit for lane in lanes)]
            assert [out[thread, 0].item() & 0xFFFFFFFF, *out[thread, 1:].tolist()] == wanted


@pytest.mark.parametrize("n", [1, 31, 33, 64])
def test_threads_that_have_returned_are_not_waited_for(library, n):
    for seed in SEEDS:
        x, out = torch.arange(float(n)), torch.full((64,), -9.0)
        library.call("early_return", x, out, n, seed=seed)
        assert out.tolist() == [n * (n - 1) / 2] * n + [-9.0] * (64 - n)


def test_grids_and_blocks_of_three_dimensions(library):
    out = int32(12, 24)
    library.call("places", out)
    threads = [x + 10 * y + 100 * z for z in range(4) for y in range(2) for x in range(3)]
    blocks = [1000 * x + 10000 * y + 100000 * z for z in range(2) for y in range(3) for x in range(2)]
    assert out.tolist() == [[block + thread for thread in threads] for block in blocks]


def test_every_instantiation_has_its_own_shared_memory(library):
    for seed in SEEDS:
        out = int32(32)
        library.call("templates", out, seed=seed)
        assert out.tolist() == [131 - i for i in range(32)]


@pytest.mark.parametrize("blocks", [1, 2, 16])
def test_blocks_of_a_cooperative_launch_wait_for_each_other(library, blocks):
    for seed in SEEDS:
        x, out, count = int32(blocks), int32(blocks, 3), torch.zeros(1, dtype=torch.int32)
        library.call("cooperative", x, out, count, blocks, seed=seed)
        total = blocks * (blocks - 1) // 2
        assert out.tolist() == [[total, total + blocks, total + 2 * blocks]] * blocks


def test_atomics(library):
    for seed in SEEDS:
        x = torch.zeros(5, dtype=torch.int32)
        library.call("atomics", x, seed=seed)
        assert x.tolist() == [191 * 192 // 2, 191, -191, 1, 7]


def test_seeds_change_the_order_and_repeat_it(plain):
    def last(seed: int) -> int:
        x = int32(1)
        plain.call("last_wins", x, seed=seed)
        return x.item()

    assert last(0) == 95
    by_seed = [last(seed) for seed in range(1, 13)]
    assert len(set(by_seed)) > 4 and by_seed == [last(seed) for seed in range(1, 13)]


def test_a_view_is_handed_over_as_it_lies(library):
    """With its strides, and what lies between its elements stays as it was."""
    storage = torch.full((12, 24, 2), 5, dtype=torch.int32)
    wanted = int32(12, 24)
    library.call("places", wanted)
    view = storage.view(-1)[1 : 1 + 288].view(12, 24)
    library.call("places", view)
    assert torch.equal(view, wanted) and storage.view(-1)[0] == 5 and (storage.view(-1)[289:] == 5).all()


def test_what_may_be_handed_to_a_launcher(library):
    with pytest.raises(TypeError, match="votes: argument 0 is on meta; the emulator takes CPU tensors"):
        library.call("votes", torch.empty(3, device="meta"), 3)
    with pytest.raises(TypeError, match="votes: argument 1 must be a tensor or an int, got float"):
        library.call("votes", int32(64, 3), 3.0)
    with pytest.raises(TypeError, match=r"^votes\(unsigned\* out, int64_t limit\) takes 2 arguments, got 3$"):
        library.call("votes", int32(64, 3), 3, 4)
    with pytest.raises(
        TypeError, match="votes: argument 0 has the layout torch.sparse_coo; the emulator takes strided"
    ):
        library.call("votes", torch.eye(3).to_sparse(), 3)
    with pytest.raises(TypeError, match=r"votes: argument 1 must be an int for 'int64_t limit', got a tensor"):
        library.call("votes", int32(64, 3), int32(1))
    with pytest.raises(
        TypeError, match=r"votes: argument 0 must be a tensor for 'unsigned\* out' \(or 0, a null pointer"
    ):
        library.call("votes", 64, 3)
    for value in (2**63, -(2**63) - 1):
        with pytest.raises(
            OverflowError, match=f"votes: argument 1 must fit the 64 bits of 'int64_t limit', got {value}"
        ):
            library.call("votes", int32(64, 3), value)
    for seed in (-1, 2**63, 1.5):
        with pytest.raises(ValueError, match=f"votes: seed must be an integer from 0 .in order. .*got {seed}"):
            library.call("votes", int32(64, 3), 3, seed=seed)
    library.call("votes", int32(64, 3), True)


@pytest.mark.parametrize("name", ["no_such_launcher", "getpid", "votes_kernel", "minigpt_emulator_seed"])
def test_only_launchers_are_called(library, name):
    with pytest.raises(AttributeError, match=f"there is no launcher '{name}'; there are shuffles\\(int.*extern \"C\"$"):
        library.call(name)


def test_a_tensor_handed_over_twice_is_one_place(plain):
    """In each round the one block writes the round to x[0], and then to out[round], which here is x[round]."""
    x = int32(3)
    plain.call("cooperative", x, x[:], torch.zeros(1, dtype=torch.int32), 1)
    assert x.tolist() == [2, 1, 2]


def test_views_that_share_elements(library):
    x = torch.zeros(40)
    before = x.clone()
    with pytest.raises(
        ValueError, match=r"arguments 0 and 1 are different views of the same elements, of .* one of th"
    ):
        library.call("early_return", x[:33], x[7:], 33)
    with pytest.raises(ValueError, match="arguments 0 and 1 are different views of the same elements"):
        library.call("early_return", x[:33], x[:33].view(torch.int32), 33)
    with pytest.raises(ValueError, match="arguments 0 and 1 are different views of the same elements"):
        library.call("early_return", x[:1].expand(33), x[:33], 33)
    assert torch.equal(x, before)


def test_views_that_lie_between_each_other(library):
    """Two columns of a matrix share a range of memory and no element."""
    x = torch.tensor([[1.0, -9.0]] * 3)
    library.call("early_return", x[:, 0], x[:, 1], 1)
    assert x.tolist() == [[1.0, 1.0], [1.0, -9.0], [1.0, -9.0]]


def test_statistics_count(library):
    before = library.statistics()
    library.call("shuffles", int32(64, 4), 64, 32, 1)
    launches, blocks, switches, meetings = (after - b for after, b in zip(library.statistics(), before, strict=True))
    assert (launches, blocks, meetings) == (1, 1, 8)  # 2 warps, 4 shuffles
    assert switches >= 64
    assert mg.emulator.statistics().launches >= 0
