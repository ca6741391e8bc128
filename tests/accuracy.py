"""The one rule by which the numbers of an op are judged.

    worst |ours - reference|  <=  2 x worst |torch's own - reference| + eps(dtype) x scale        (3 x for gradients)

The reference is the formula in float64 on the same, already rounded, inputs. torch's own error tells how hard the case
is; the second term keeps a case from failing where torch happens to hit the reference (T = S = 1 has dQ = dK = 0).

`scale` is the size of what was added up, not of what is left after cancelling. It has two parts, since kernels add up
in float whatever the tensors hold, and round to the tensors' dtype at the end:

    scale = stored + added_up x eps(accumulation type) / eps(dtype)

stored    the largest value that was rounded to dtype on the way, the result at least
added_up  the formula with the absolute value of every term, at its largest place

So for float32 the whole sum counts, for 16-bit types hardly more than the casts: a statistic or a sum that is kept in
16 bits does not pass. Each op's test works out its own two parts, quantity by quantity.
"""

from collections.abc import Callable

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def accumulation_type(dtype: torch.dtype) -> torch.dtype:
    """What kernels add up in: float32 for everything stored in 32 bits or fewer."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def largest(t: Tensor) -> float:
    return t.abs().max().item() if t.numel() else 0.0


def scale_of(dtype: torch.dtype, stored: float, added_up: float) -> float:
    """The rule's scale; see above for the two parts."""
    return stored + added_up * torch.finfo(accumulation_type(dtype)).eps / torch.finfo(dtype).eps


def assert_accurate(
    what: str, ours: Tensor, torchs: Tensor, reference: Tensor, scale: float, factor: float = 2
) -> None:
    """The rule. what: op and quantity, for the message. reference: float64, of the same shape."""
    assert ours.shape == torchs.shape == reference.shape, f"{what}: {ours.shape=} {torchs.shape=} {reference.shape=}"
    assert ours.dtype == torchs.dtype, f"{what}: {ours.dtype=} {torchs.dtype=}"
    if ours.numel() == 0:
        return
    error = (ours.double() - reference).abs()
    torchs_error = largest(torchs.double() - reference)
    assert torchs_error < float("inf"), f"{what}: torch's own result is not finite, so this case can judge nothing"
    allowed = factor * torchs_error + torch.finfo(ours.dtype).eps * scale
    worst = int(error.nan_to_num(nan=float("inf")).argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape))
    assert error.flatten()[worst] <= allowed, (
        f"{what} ({name_of(ours.dtype)}, shape {tuple(ours.shape)}): worst element {index} is "
        f"{ours[index].item():.9g}, reference {reference[index].item():.9g}, error {error[index].item():.3g}; "
        f"allowed {allowed:.3g} = {factor:g} x torch's own {torchs_error:.3g} + eps x scale {scale:.3g}"
    )


def forward_backward(function: Callable[..., Tensor], inputs: dict[str, Tensor], upstream: Tensor) -> dict[str, Tensor]:
    """`out` of function(**inputs), and the gradient `d<name>` of each input for the upstream gradient."""
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    out = function(**leaves)
    out.backward(upstream)
    return {"out": out.detach(), **{f"d{name}": leaf.grad for name, leaf in leaves.items()}}


def assert_all_accurate(
    op: str,
    ours: dict[str, Tensor],
    torchs: dict[str, Tensor],
    reference: dict[str, Tensor],
    sizes: dict[str, tuple[float, float]],
) -> None:
    """The rule for every quantity: `out`, and gradients called d<name>. sizes: each one's (stored, added_up)."""
    assert ours.keys() == torchs.keys() == reference.keys() == sizes.keys()
    for name, (stored, added_up) in sizes.items():
        scale = scale_of(ours[name].dtype, stored, added_up)
        factor = 2 if name == "out" else 3
        assert_accurate(f"{op} {name}", ours[name], torchs[name], reference[name], scale, factor)
