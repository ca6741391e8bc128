"""minigpt_ext: a GPT you can see through, on kernels you can read."""

import torch  # noqa: F401  its libraries must be loaded before the extension

try:
    from . import _C  # noqa: F401  registers the ops with torch
except ModuleNotFoundError as error:
    raise ImportError(
        "minigpt_ext._C is not built for this Python. Build it with `pip install -e .` in the checkout."
    ) from error

from . import ops
from .backend import backend
from .model import GPT, GPTConfig, KVCache

__version__ = "0.1.0"
__all__ = ["GPT", "GPTConfig", "KVCache", "backend", "ops", "__version__"]
