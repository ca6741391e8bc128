"""minigpt_ext: a GPT you can see through, on kernels you can read."""

import importlib

import torch  # noqa: F401  its libraries must be loaded before the extension

__version__ = "0.1.0"
__all__ = ["GPT", "Decoder", "GPTConfig", "KVCache", "backend", "emulator", "ops", "__version__"]

try:
    importlib.import_module("minigpt_ext._C")  # registers the ops with torch
except ImportError as error:
    # The package itself can still be imported, so that `minigpt doctor` can tell; whatever is asked of it says why not.
    extension_error: ImportError | None = error

    def __getattr__(name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(
            f"minigpt_ext's compiled extension cannot be loaded ({extension_error}). Build it with `pip install -e .` "
            "in the checkout; `minigpt doctor` tells more."
        ) from extension_error
else:
    extension_error = None
    from . import emulator, ops
    from .backend import backend
    from .decoder import Decoder
    from .model import GPT, GPTConfig, KVCache
