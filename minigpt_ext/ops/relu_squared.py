"""Interim: the reference; the room follows."""

from torch import Tensor


def relu_squared(x: Tensor) -> Tensor:
    return x.relu().square()
