"""The ops: one file each, with the public function, its reference in torch ops, the autograd Function and the fake."""

from .attention import attention
from .cross_entropy import cross_entropy
from .decode_attention import decode_attention
from .gelu import gelu
from .kv_append import kv_append
from .layer_norm import layer_norm
from .relu_squared import relu_squared
from .rms_norm import rms_norm
from .rope import rope
from .swiglu import swiglu

__all__ = [
    "attention",
    "cross_entropy",
    "decode_attention",
    "gelu",
    "kv_append",
    "layer_norm",
    "relu_squared",
    "rms_norm",
    "rope",
    "swiglu",
]
