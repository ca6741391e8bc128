"""The model: config, layers, GPT, and the key/value cache it decodes with."""

from .config import GPTConfig
from .gpt import GPT
from .kv_cache import KVCache
from .positions import RopeScaling

__all__ = ["GPT", "GPTConfig", "KVCache", "RopeScaling"]
