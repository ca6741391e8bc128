// The table of contents: every op's schema. One op, one room: the kernels of <op>_forward stand in csrc/<op>/, its Python
// face in minigpt_ext/ops/<op>.py. Letters: B batch, T queries, S keys, H heads, H_kv key/value heads, D head dim,
// C channels, V vocabulary; (a!) marks a tensor that is written.
#pragma once

namespace minigpt {

template <class Library>
void define_ops(Library& m) {
  // q (B, T, H, D), k and v (B, S, H_kv, D) -> out (B, T, H, D), lse (B, H, T); window 0 and softcap 0: none;
  // alibi_slopes (H,), in float whatever the others are (double for double); seed: one int64
  m.def(
      "attention_forward(Tensor q, Tensor k, Tensor v, float scale, bool causal, int window, "
      "Tensor? alibi_slopes, float softcap, float dropout_p, Tensor? seed) -> (Tensor, Tensor)");
  // -> dq, dk, dv
  m.def(
      "attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, float scale, bool causal, "
      "int window, Tensor? alibi_slopes, float softcap, float dropout_p, Tensor? seed) -> (Tensor, Tensor, Tensor)");

  // x (..., C), weight and bias (C,) -> y (..., C), mean (rows,), rstd (rows,)
  m.def("layer_norm_forward(Tensor x, Tensor weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)");
  // -> dx (..., C), dweight (C,), dbias (C,), or (0,) without a bias
  m.def(
      "layer_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor mean, Tensor rstd, bool has_bias) "
      "-> (Tensor, Tensor, Tensor)");

  // residual (..., C): of x's dtype or float -> y, s = residual + x of its dtype, mean, rstd
  m.def(
      "residual_layer_norm_forward(Tensor x, Tensor residual, Tensor weight, Tensor? bias, float eps) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  // -> dx, dresidual, or (0,) where it is dx, dweight, dbias, or (0,) without a bias
  m.def(
      "residual_layer_norm_backward(Tensor dy, Tensor? ds, Tensor s, Tensor weight, Tensor mean, Tensor rstd, "
      "bool has_bias) -> (Tensor, Tensor, Tensor, Tensor)");

  // x (..., C), weight (C,) -> y (..., C), rstd (rows,)
  m.def("rms_norm_forward(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)");
  // -> dx (..., C), dweight (C,)
  m.def("rms_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor rstd) -> (Tensor, Tensor)");

  // as residual_layer_norm, without mean and bias
  m.def("residual_rms_norm_forward(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "residual_rms_norm_backward(Tensor dy, Tensor? ds, Tensor s, Tensor weight, Tensor rstd) "
      "-> (Tensor, Tensor, Tensor)");

  // x of any shape -> the same shape; tanh: the approximation, else erf
  m.def("gelu_forward(Tensor x, bool tanh) -> Tensor");
  m.def("gelu_backward(Tensor dy, Tensor x, bool tanh) -> Tensor");

  // x (..., C), bias (C,) -> (..., C)
  m.def("bias_gelu_forward(Tensor x, Tensor bias, bool tanh) -> Tensor");
  // -> dx (..., C), dbias (C,)
  m.def("bias_gelu_backward(Tensor dy, Tensor x, Tensor bias, bool tanh) -> (Tensor, Tensor)");

  // x of any shape, residual of the same, or none -> (residual +) x with elements dropped, of `dtype`; seed: one int64.
  // The backward is the same op, on the gradient.
  m.def("dropout(Tensor x, Tensor? residual, float p, Tensor seed, ScalarType dtype) -> Tensor");

  // x of any shape -> the same shape
  m.def("relu_squared_forward(Tensor x) -> Tensor");
  m.def("relu_squared_backward(Tensor dy, Tensor x) -> Tensor");

  // x (..., 2 F): gate and up side by side -> (..., F)
  m.def("swiglu_forward(Tensor x) -> Tensor");
  // dy (..., F) -> dx (..., 2 F)
  m.def("swiglu_backward(Tensor dy, Tensor x) -> Tensor");

  // logits (..., V), targets (...) int64 or int32 -> loss (), dlogits (..., V) for a dloss of 1, or (0,) without gradient
  m.def("cross_entropy_forward(Tensor logits, Tensor targets, int ignore_index, bool gradient) -> (Tensor, Tensor)");
  // dlogits of the forward -> dlogits times dloss
  m.def("cross_entropy_backward(Tensor dloss, Tensor dlogits) -> Tensor");

  // x (B, T, H, D), cos and sin (n_positions, R/2), positions (B, T): of token t, without them t -> (B, T, H, D);
  // inverse: rotates back, which is the backward
  m.def("rope(Tensor x, Tensor cos, Tensor sin, Tensor? positions, bool inverse) -> Tensor");

  // caches (n_blocks, block_size, H_kv, D); k and v (B, T, H_kv, D), or (rows, H_kv, D) with query_start (B+1,);
  // block_table (B, max_blocks), seq_lens (B,): tokens before the new ones; scales of int8 caches (n_blocks, block_size,
  // H_kv)
  m.def(
      "kv_append(Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor k, Tensor v, Tensor block_table, Tensor seq_lens, "
      "Tensor? query_start=None, Tensor(c!)? k_scales=None, Tensor(d!)? v_scales=None) -> ()");

  // q (B, T, H, D), or (rows, H, D) with query_start -> the same shape; seq_lens (B,): tokens with the new ones
  m.def(
      "decode_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_table, Tensor seq_lens, "
      "Tensor? query_start, float scale, int window, Tensor? alibi_slopes, float softcap, Tensor? k_scales=None, "
      "Tensor? v_scales=None) -> Tensor");
}

}  // namespace minigpt
