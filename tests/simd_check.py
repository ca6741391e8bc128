"""Run by test_simd.py in a process of its own, with MINIGPT_SIMD set: a short check of every op by the accuracy rule.
Prints the level in use."""

import torch
from accuracy import DTYPES
from attention_cases import RULES, Case, rule_options
from attention_cases import check as check_attention
from ops.test_bias_gelu import PAIRS as BIAS_PAIRS
from ops.test_bias_gelu import case as case_bias_gelu
from ops.test_bias_gelu import check as check_bias_gelu
from ops.test_cross_entropy import case as case_cross_entropy
from ops.test_cross_entropy import check as check_cross_entropy
from ops.test_decode_attention import Batch
from ops.test_dropout import PAIRS as DROPOUT_PAIRS
from ops.test_dropout import check as check_dropout
from ops.test_gelu import check as check_gelu
from ops.test_int8_cache import DTYPES as INT8_DTYPES
from ops.test_int8_cache import Int8Batch
from ops.test_int8_cache import append as check_int8_append
from ops.test_large import check_all as check_large
from ops.test_layer_norm import PAIRS, case
from ops.test_layer_norm import check as check_layer_norm
from ops.test_relu_squared import check as check_relu_squared
from ops.test_rms_norm import case as case_rms_norm
from ops.test_rms_norm import check as check_rms_norm
from ops.test_rope import case as case_rope
from ops.test_rope import check as check_rope
from ops.test_swiglu import case as case_swiglu
from ops.test_swiglu import check as check_swiglu
from residual_norm import TYPES
from residual_norm import case as case_residual_norm
from residual_norm import check as check_residual_norm
from tensors import normal

from minigpt_ext import _C

CASES = [Case(1, 33, 70, 4, 2, 17), Case(2, 40, 40, 2, 2, 64, window=9), Case(1, 3, 65, 1, 1, 5, causal=False)]

torch.manual_seed(0)
for dtype in DTYPES:
    for each in CASES:
        inputs, g = each.inputs(dtype)
        check_attention(inputs, g, **each.options)
        check_attention(inputs, g, dropout_p=0.3, seed=4, **each.options)
        for rule in RULES if each.causal else ("softcap",):
            check_attention(inputs, g, **rule_options(rule, each.H, dtype), **each.options)
    for approximate in ("none", "tanh"):
        check_gelu(normal(1003, dtype=dtype, factor=4), normal(1003, dtype=dtype), approximate)
    check_relu_squared(normal(1003, dtype=dtype), normal(1003, dtype=dtype))
    check_swiglu(*case_swiglu(3, 501, dtype=dtype, factor=8))
    for V in (5, 65, 4099):
        check_cross_entropy(*case_cross_entropy(7, V, dtype=dtype), dloss=0.7)
    for D, R in ((1, 0), (9, 8), (33, 14), (64, 64)):
        check_rope(**case_rope((2, 5, 3, D), R, dtype, positions=True))
    for D in (3, 17, 64):
        Batch([300, 9], [1, 1], H=4, H_kv=2, D=D, dtype=dtype).check()
        Batch([70, 9], [3, 2], D=D, dtype=dtype).check(ragged=True, window=5)
        Batch([300, 9], [1, 1], D=D, dtype=dtype).check(**rule_options("both", 2, dtype))
for dtype in DTYPES:
    check_large(dtype)
for dtype in INT8_DTYPES:
    for D in (3, 17, 64):
        check_int8_append([3, 6], [5, 5], D=D, dtype=dtype)
        Int8Batch([300, 9], [1, 1], H=4, H_kv=2, D=D, dtype=dtype).check()
        Int8Batch([70, 9], [7, 2], D=D, dtype=dtype).check(ragged=True, window=5)
for pair in PAIRS:
    for C in (1, 5, 33, 64):
        check_layer_norm(*case(18, C, pair=pair))
        check_rms_norm(*case_rms_norm(18, C, pair=pair))
for types in TYPES:
    for C in (1, 5, 33, 64):
        for norm in ("layer_norm", "rms_norm"):
            check_residual_norm(norm, *case_residual_norm(norm, 18, C, types=types))
for pair in BIAS_PAIRS:
    for approximate in ("none", "tanh"):
        check_bias_gelu(*case_bias_gelu(18, 33, pair=pair), approximate)
for pair in DROPOUT_PAIRS:
    check_dropout((1003,), pair, 0.3, -5, residual=True)
print(_C.simd_level())
