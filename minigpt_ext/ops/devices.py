"""One device for all tensors of a call, as the kernels demand; the fakes must too."""

from torch import Tensor


def check_same_device(op: str, **tensors: Tensor | None) -> None:
    """Raises RuntimeError where a tensor is not on the first one's device, naming it.

    A call that mixes a meta tensor with others is sent to the op's fake, which would answer with memory nobody filled.
    """
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        if tensor is not None and tensor.device != first.device:
            raise RuntimeError(
                f"{op}: {name} is on {tensor.device}, {first_name} is on {first.device}; all must be on one device"
            )
