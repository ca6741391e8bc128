"""Cross-entropy of logits against target ids, its gradient made in the forward's pass over the logits."""

import torch
from torch import Tensor

from ..backend import implementation, library
from .devices import check_same_device


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -1) -> Tensor:
    """The mean of -log softmax(logits)[target] in nats, over the targets that are not `ignore_index`.

    logits: (..., V), float32, bfloat16, float16 or float64; a tensor that is not contiguous is copied into one that is.
    targets: (...), int64 or int32: ids in [0, V), or ignore_index where a row does not count.
    Returns one number, float32 at least (float64 for float64); nan where no row counts. Differentiable once in logits:
    where a gradient is wanted the forward computes it too, for an incoming gradient of 1 and rounded to logits' dtype,
    and the backward scales it. A row that does not count has the gradient 0, whatever its logits are.
    Raises RuntimeError naming the argument for a wrong shape, dtype or device, and for a target that is no id: on the
    CPU, elsewhere with MINIGPT_CHECK=1; without it such a target makes the loss nan.
    """
    kernels = implementation("cross_entropy", logits.device)
    if kernels == "torch":
        scores = logits.reshape(-1, logits.shape[-1])
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return torch.nn.functional.cross_entropy(scores, targets.reshape(-1).long(), ignore_index=ignore_index)
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return library(kernels).cross_entropy_forward(logits, targets, ignore_index, False)[0]
    return CrossEntropyFunction.apply(logits, targets, ignore_index, kernels)


def cross_entropy_reference(logits: Tensor, targets: Tensor, ignore_index: int = -1) -> Tensor:
    """The formula, in torch ops of any precision."""
    counts = targets != ignore_index
    ids = torch.where(counts, targets, 0).long().unsqueeze(-1)
    losses = torch.logsumexp(logits, -1) - logits.gather(-1, ids).squeeze(-1)
    return torch.where(counts, losses, 0).sum() / counts.sum()


class CrossEntropyFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, ignore_index: int, kernels: str) -> Tensor:
        loss, dlogits = library(kernels).cross_entropy_forward(logits, targets, ignore_index, True)
        ctx.save_for_backward(dlogits)
        ctx.kernels = kernels
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dloss: Tensor) -> tuple[Tensor, None, None, None]:
        (dlogits,) = ctx.saved_tensors
        # A loss that backward() is called on has the gradient 1. Only the CPU can tell without waiting for a device.
        if torch.compiler.is_compiling() or dloss.device.type != "cpu" or dloss.item() != 1:
            dlogits = library(ctx.kernels).cross_entropy_backward(dloss, dlogits)
        return dlogits, None, None, None


@torch.library.register_fake("minigpt::cross_entropy_forward")
def _(logits: Tensor, targets: Tensor, ignore_index: int, gradient: bool) -> tuple[Tensor, Tensor]:
    check_same_device("cross_entropy", logits=logits, targets=targets)
    loss = logits.new_empty((), dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
    if not gradient:
        return loss, logits.new_empty(0)
    return loss, torch.empty_like(logits, memory_format=torch.contiguous_format)


@torch.library.register_fake("minigpt::cross_entropy_backward")
def _(dloss: Tensor, dlogits: Tensor) -> Tensor:
    check_same_device("cross_entropy backward", dlogits=dlogits, dloss=dloss)
    return torch.empty_like(dlogits, memory_format=torch.contiguous_format)
