"""Every op's kernels at small awkward sizes, forward and backward, for slow tools: compute-sanitizer, a debugger.

    compute-sanitizer --tool racecheck python benchmarks/small_shapes.py --device cuda [OP ...]

Sizes are 1, odd, one past a warp, a tile or a split; views, gaps, windows, shared heads, shuffled blocks, rows that see
nothing. Results are held against float64 with a wide limit, which asks whether the kernels ran; how exact they are is
what tests/ops asks. Prints a line a case; the exit code is 1 where a result is wrong.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from minigpt_ext import ops
from minigpt_ext.backend import OPS, why_no_kernels
from minigpt_ext.ops.attention import attention_reference
from minigpt_ext.ops.cross_entropy import cross_entropy_reference
from minigpt_ext.ops.decode_attention import decode_attention_reference
from minigpt_ext.ops.dropout import dropout_reference
from minigpt_ext.ops.gelu import bias_gelu_reference, gelu_reference
from minigpt_ext.ops.kv_append import kv_append_reference
from minigpt_ext.ops.layer_norm import layer_norm_reference, residual_layer_norm_reference
from minigpt_ext.ops.relu_squared import relu_squared_reference
from minigpt_ext.ops.rms_norm import residual_rms_norm_reference, rms_norm_reference
from minigpt_ext.ops.rope import rope_reference
from minigpt_ext.ops.swiglu import swiglu_reference

LIMITS = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of the error, relative to the largest value
Case = tuple[str, Callable[[], float]]  # its name, and what runs it and returns its worst error


class Maker:
    """Makes random tensors of one dtype on one device; drawn on the CPU, so that no other kernel touches them."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape).to(dtype or self.dtype).to(self.device)

    def unaligned(self, *shape: int) -> Tensor:
        """Contiguous, and one element behind the start of its memory."""
        return self.normal(1 + int(torch.tensor(shape).prod()))[1:].view(shape)

    def slopes(self, H: int) -> Tensor:
        """ALiBi's, in float32 as for every 16-bit and 32-bit dtype."""
        return (2.0 ** (-8 * torch.rand(H))).to(self.device)

    def int32(self, values: Sequence) -> Tensor:
        return torch.tensor(values, dtype=torch.int32).to(self.device)


def gelu(make: Maker) -> Iterator[Case]:
    for n in (0, 1, 31, 65, 1027, 4099):
        for approximate in ("none", "tanh"):
            yield (
                f"{n} {approximate}",
                lambda n=n, approximate=approximate: forward_backward(
                    lambda x: ops.gelu(x, approximate), lambda x: gelu_reference(x, approximate), [make.unaligned(n)]
                ),
            )
    for rows, C in ((1, 1), (3, 33), (70, 130), (2, 1027)):
        for bias_dtype in dict.fromkeys((make.dtype, torch.float32)):
            for approximate in ("none", "tanh"):
                yield (
                    f"{rows}x{C} {approximate}, {name_of(bias_dtype)} bias",
                    lambda rows=rows, C=C, dtype=bias_dtype, approximate=approximate: forward_backward(
                        lambda *t: ops.bias_gelu(*t, approximate),
                        lambda *t: bias_gelu_reference(*t, approximate),
                        [make.unaligned(rows, C), make.normal(C, dtype=dtype)],
                    ),
                )


def dropout(make: Maker) -> Iterator[Case]:
    for n in (0, 1, 31, 65, 1027, 4099):
        for residual_dtype in (None, *dict.fromkeys((make.dtype, torch.float32))):

            def run(n: int = n, dtype: torch.dtype | None = residual_dtype) -> float:
                inputs = [make.unaligned(n), *([] if dtype is None else [make.normal(n, dtype=dtype)])]
                return forward_backward(
                    lambda x, *residual: ops.dropout(x, 0.3, 5, *residual),
                    lambda x, *residual: dropout_reference(x, 0.3, 5, *residual),
                    inputs,
                )

            yield f"{n}{f', {name_of(residual_dtype)} residual' if residual_dtype else ''}", run


def with_residual(make: Maker, ours: Callable, reference: Callable, weights: int) -> Iterator[Case]:
    """The fused norms; both results count, each with a gradient of its own."""
    for rows, C in ((1, 1), (3, 33), (2, 1025), (70, 130)):
        for residual_dtype in dict.fromkeys((make.dtype, torch.float32)):

            def run(rows: int = rows, C: int = C, dtype: torch.dtype = residual_dtype) -> float:
                inputs = [make.unaligned(rows, C), make.normal(rows, C, dtype=dtype)]
                inputs += [make.normal(C, dtype=dtype) for _ in range(weights)]
                return forward_backward(
                    lambda *t: torch.cat(ours(*t), 1), lambda *t: torch.cat(reference(*t), 1), inputs
                )

            yield f"{rows}x{C}, {name_of(residual_dtype)} residual", run


def layer_norm(make: Maker) -> Iterator[Case]:
    for rows, C in ((1, 1), (3, 33), (9, 64), (2, 1023), (5, 1025), (70, 130)):
        for weight_dtype in dict.fromkeys((make.dtype, torch.float32)):
            for with_bias in (True, False):
                weight, *bias = (make.normal(C, dtype=weight_dtype) for _ in range(1 + with_bias))
                yield (
                    f"{rows}x{C}, {name_of(weight_dtype)} weight{' and bias' if with_bias else ''}",
                    lambda rows=rows, C=C, weight=weight, bias=bias: forward_backward(
                        ops.layer_norm, layer_norm_reference, [make.unaligned(rows, C), weight, *bias]
                    ),
                )
    yield from with_residual(make, ops.residual_layer_norm, residual_layer_norm_reference, weights=2)


def relu_squared(make: Maker) -> Iterator[Case]:
    for n in (0, 1, 31, 65, 1027, 4099):
        yield (
            f"{n}",
            lambda n=n: forward_backward(lambda x: ops.relu_squared(x), relu_squared_reference, [make.unaligned(n)]),
        )


def swiglu(make: Maker) -> Iterator[Case]:
    for rows, F in ((1, 1), (0, 8), (3, 33), (9, 64), (2, 1023), (5, 1025), (2, 2600)):
        yield (
            f"{rows}x(2x{F})",
            lambda rows=rows, F=F: forward_backward(
                lambda x: ops.swiglu(x), swiglu_reference, [make.unaligned(rows, 2 * F)]
            ),
        )


def cross_entropy(make: Maker) -> Iterator[Case]:
    for rows, V in ((1, 1), (3, 33), (9, 65), (2, 1023), (5, 1025), (2, 5000)):
        targets = torch.randint(-1, V, (rows,))
        targets[0] = V - 1

        def run(rows: int = rows, V: int = V, targets: Tensor = targets) -> float:
            return forward_backward(
                lambda x: ops.cross_entropy(x, targets.to(make.device)),
                lambda x: cross_entropy_reference(x, targets),
                [make.unaligned(rows, V)],
            )

        yield f"{rows}x{V}", run


def rms_norm(make: Maker) -> Iterator[Case]:
    for rows, C in ((1, 1), (3, 33), (9, 64), (2, 1023), (5, 1025), (70, 130)):
        for weight_dtype in dict.fromkeys((make.dtype, torch.float32)):
            for packed in (False, True):

                def run(
                    rows: int = rows, C: int = C, dtype: torch.dtype = weight_dtype, packed: bool = packed
                ) -> float:
                    x = make.normal(1, rows, 3, 2, C)[:, :, 1] if packed else make.unaligned(rows, C)
                    weight = make.normal(C, dtype=dtype)
                    return forward_backward(lambda *t: ops.rms_norm(*t), rms_norm_reference, [x, weight])

                yield f"{rows}x{C}, {name_of(weight_dtype)} weight{', packed' if packed else ''}", run
    yield from with_residual(make, ops.residual_rms_norm, residual_rms_norm_reference, weights=1)


def rope(make: Maker) -> Iterator[Case]:
    for B, T, H, D, R in ((1, 1, 1, 2, 2), (2, 3, 3, 9, 8), (1, 5, 20, 64, 64), (2, 2, 2, 80, 20), (1, 2, 1, 256, 256)):
        for packed in (False, True):

            def run(shape: tuple = (B, T, H, D), R: int = R, packed: bool = packed) -> float:
                B, T, H, D = shape
                x = make.normal(B, T, 3, H, D)[:, :, 1] if packed else make.unaligned(*shape)
                angles = torch.arange(T + 2)[:, None] * 0.7 ** torch.arange(R // 2)
                cos, sin = angles.cos(), angles.sin()
                rows = torch.randint(0, T + 2, (B, T), dtype=torch.int32)
                place, positions = make.device, rows.to(make.device) if packed else None
                return forward_backward(
                    lambda x: ops.rope(x, cos.to(place), sin.to(place), positions=positions),
                    lambda x: rope_reference(x, cos.double(), sin.double(), positions=rows if packed else None),
                    [x],
                )

            yield f"B{B} T{T} H{H} D{D} R{R}{', packed' if packed else ''}", run
    if make.device.type == "cuda":  # the CPU refuses such positions; a GPU's kernel writes zeros for them

        def run_out_of_range() -> float:
            cos = torch.ones(4, 8, device=make.device)
            y = ops.rope(make.normal(1, 2, 3, 20), cos, cos, positions=make.int32([[-1, 1_000_000]]))
            return error(y, torch.zeros(y.shape))

        yield "positions out of range", run_out_of_range


def attention(make: Maker) -> Iterator[Case]:
    for B, T, S, H, H_kv, D, options in (
        (1, 1, 1, 1, 1, 8, {}),
        (2, 33, 33, 2, 1, 32, {}),
        (1, 65, 65, 4, 2, 64, {}),
        (1, 31, 63, 2, 2, 40, {"window": 5}),
        (1, 64, 64, 1, 1, 128, {"window": 64}),
        (1, 17, 17, 1, 1, 256, {}),
        (1, 40, 9, 1, 1, 16, {}),  # queries that stand before the first key
        (1, 9, 70, 3, 1, 33, {"causal": False}),
        (2, 66, 66, 2, 2, 64, {"dropout_p": 0.3, "seed": 3}),
        (1, 35, 70, 6, 3, 32, {"alibi_slopes": make.slopes(6)}),
        (1, 33, 66, 2, 1, 64, {"softcap": 1.5, "window": 40}),
        (1, 17, 20, 3, 1, 100, {"alibi_slopes": make.slopes(3), "softcap": 1.5}),
        (1, 17, 40, 3, 3, 256, {"alibi_slopes": make.slopes(3), "softcap": 1.5}),
        (1, 3, 0, 1, 1, 16, {}),
    ):

        def run(shape: tuple = (B, T, S, H, H_kv, D), options: dict = options) -> float:
            B, T, S, H, H_kv, D = shape
            if T == S and H == H_kv:  # as a model has them: views of one packed projection
                inputs = list(make.normal(B, T, 3, H, D).unbind(2))
            else:
                inputs = [make.normal(B, T, H, D), make.normal(B, S, H_kv, D), make.normal(B, S, H_kv, D)]
            return forward_backward(
                lambda *t: ops.attention(*t, **options),
                lambda *t: attention_reference(*t, **on_cpu(options)),
                inputs,
            )

        yield f"B{B} T{T} S{S} H{H}/{H_kv} D{D}{name_of_options(options)}", run


def on_cpu(options: dict) -> dict:
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in options.items()}


def name_of_options(options: dict) -> str:
    return "".join(f" {name}" if isinstance(value, Tensor) else f" {name}={value}" for name, value in options.items())


BATCHES = (  # tokens that each sequence has already, and how many are new
    ((0,), (1,)),
    ((15, 0, 31), (1, 1, 1)),
    ((63, 5), (33, 33)),
    ((700, 3), (1, 1)),  # more than one split
    ((7, 0, 20), (3, 0, 18)),  # packed: as many as each brings
)


def paged(make: Maker, before: Sequence[int], new: Sequence[int], H_kv: int, D: int, block_size: int = 16) -> dict:
    """Caches full of random numbers, and the table of blocks that are dealt out at random, two of them nobody's."""
    needed = [-(-(b + n) // block_size) for b, n in zip(before, new, strict=True)]
    dealt = iter(torch.randperm(sum(needed) + 2).tolist())
    table = [[next(dealt) if slot < count else -1 for slot in range(max(needed) + 1)] for count in needed]
    caches = {name: make.normal(sum(needed) + 2, block_size, H_kv, D) for name in ("k_cache", "v_cache")}
    ragged = len(set(new)) > 1
    starts = {"query_start": make.int32([sum(new[:b]) for b in range(len(new) + 1)])} if ragged else {}
    return {**caches, "block_table": make.int32(table), **starts}


def tokens(make: Maker, new: Sequence[int], heads: int, D: int) -> Tensor:
    """(B, T, heads, D), or packed (new tokens, heads, D) where sequences bring different numbers."""
    if len(set(new)) > 1:
        return make.normal(sum(new), heads, D)
    return make.normal(len(new), new[0], 2, heads, D)[:, :, 1]  # a view with gaps, as of a packed projection


def kv_append(make: Maker) -> Iterator[Case]:
    for (before, new), D in ((batch, D) for batch in BATCHES for D in (5, 64)):

        def run(before: tuple = before, new: tuple = new, D: int = D) -> float:
            arguments = paged(make, before, new, 2, D) | {"seq_lens": make.int32(before)}
            arguments |= {"k": tokens(make, new, 2, D), "v": tokens(make, new, 2, D)}
            wanted = {name: t.cpu().clone() for name, t in arguments.items()}
            ops.kv_append(**arguments)
            kv_append_reference(**wanted)
            return max(error(arguments[name], wanted[name]) for name in ("k_cache", "v_cache"))

        yield f"{list(before)} + {list(new)} tokens, D{D}", run
    if make.device.type == "cuda":  # the CPU refuses such a table; a GPU's kernel writes nothing for it

        def run_out_of_range() -> float:
            arguments = paged(make, (3, 40), (2, 2), 2, 8) | {"seq_lens": make.int32([3, 10_000])}
            arguments["block_table"] = make.int32([[1_000_000, -1, -1, -1], [-1, -1, -1, -1]])
            wanted = arguments["k_cache"].cpu().clone()
            ops.kv_append(k=make.normal(2, 2, 2, 8), v=make.normal(2, 2, 2, 8), **arguments)
            return error(arguments["k_cache"], wanted)

        yield "blocks out of range", run_out_of_range


def decode_attention(make: Maker) -> Iterator[Case]:
    for (before, new), D, options in (
        (batch, D, options)
        for batch in BATCHES
        for D, options in ((64, {}), (40, {"window": 9}), (64, {"alibi_slopes": make.slopes(4), "softcap": 1.5}))
    ):

        def run(before: tuple = before, new: tuple = new, D: int = D, options: dict = options) -> float:
            lens = make.int32([b + n for b, n in zip(before, new, strict=True)])
            arguments = paged(make, before, new, 2, D) | {"seq_lens": lens, "q": tokens(make, new, 4, D)}
            out = ops.decode_attention(**arguments, **options)
            wide = {name: t.cpu().double() if t.is_floating_point() else t.cpu() for name, t in arguments.items()}
            return error(out, decode_attention_reference(**wide, **on_cpu(options)))

        yield f"{list(before)} + {list(new)} tokens, D{D}{name_of_options(options)}", run


ROOMS = (attention, layer_norm, gelu, kv_append, decode_attention, rope, rms_norm, swiglu, relu_squared)
ROOMS += (cross_entropy, dropout)
CASES = {each.__name__: each for each in ROOMS}


def forward_backward(ours: Callable, reference: Callable, inputs: Sequence[Tensor]) -> float:
    """The worst error of the result and of each input's gradient, from a random gradient, against float64."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    wide = [t.detach().cpu().double().requires_grad_() for t in inputs]
    y, truth = ours(*leaves), reference(*wide)
    dy = torch.randn(truth.shape).to(y.dtype)
    results = [y, *torch.autograd.grad(y, leaves, dy.to(y.device))]
    truths = [truth, *torch.autograd.grad(truth, wide, dy.double())]
    return max(error(result, true) for result, true in zip(results, truths, strict=True))


def error(result: Tensor, truth: Tensor) -> float:
    """Largest difference, relative to the largest true value or 1; infinite for a wrong shape and NaN."""
    if result.shape != truth.shape:
        return float("inf")
    if truth.numel() == 0:
        return 0.0
    difference = (result.detach().cpu().double() - truth.detach().double()).abs().nan_to_num(nan=float("inf"))
    return difference.max().item() / max(1.0, truth.abs().max().item())


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"of {', '.join(OPS)}; all by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    if unknown := [op for op in options.ops if op not in OPS]:
        parser.error(f"there is no op {', '.join(unknown)}; there are {', '.join(OPS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    device = torch.device(options.device)
    if reason := why_no_kernels(device):
        parser.error(f"--device {device}: {reason}")
    torch.manual_seed(0)
    wrong = count = 0
    for op in options.ops or OPS:
        for dtype, limit in LIMITS.items():
            for name, run in CASES[op](Maker(dtype, device)):
                print(f"small shape {op} {name_of(dtype)} {name}", flush=True)  # first: it may end here
                with torch.set_grad_enabled(op not in ("kv_append", "decode_attention")):
                    worst = run()
                is_right = worst <= limit
                print(f"  error {worst:.1e}" + ("" if is_right else f": WRONG, above {limit:.0e}"), flush=True)
                wrong, count = wrong + (not is_right), count + 1
    print(f"{count} small shapes on {device}, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
