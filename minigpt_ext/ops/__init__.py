"""The ops: one file each, with the public function, its reference in torch ops, the autograd Function and the fake."""

from .attention import attention
from .cross_entropy import cross_entropy
from .decode_attention import decode_attention
from .dropout import dropout
from .gelu import bias_gelu, gelu
from .kv_append import kv_append
from .layer_norm import layer_norm, residual_layer_norm
from .relu_squared import relu_squared
from .rms_norm import residual_rms_norm, rms_norm
from .rope import rope
from .swiglu import swiglu

__all__ = [
    "attention",
    "bias_gelu",
    "cross_entropy",
    "decode_attention",
    "dropout",
    "gelu",
    "kv_append",
    "layer_norm",
    "relu_squared",
    "residual_layer_norm",
    "residual_rms_norm",
    "rms_norm",
    "rope",
    "swiglu",
]
