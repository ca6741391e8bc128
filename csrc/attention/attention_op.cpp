#include <algorithm>
#include <cmath>
#include <tuple>

#include "../common/score_checks.h"
#include "attention.h"

namespace minigpt {
namespace {

constexpr const char* kOp = "attention";

Strides strides_of(const Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2)}; }

void check_rank(const Tensor& t, const char* argument, const char* letters) {
  check(t.dim() == 4, kOp, ": ", argument, " must be ", letters, ", got ", shape_of(t));
}

AttentionShape checked(const Tensor& q, const Tensor& k, const Tensor& v, double scale, bool causal, int64_t window,
                       const std::optional<Tensor>& alibi_slopes, double softcap, double dropout_p,
                       const std::optional<Tensor>& seed) {
  check_rank(q, "q", "(B, T, H, D)");
  check_rank(k, "k", "(B, S, H_kv, D)");
  const int64_t B = q.size(0), T = q.size(1), H = q.size(2), D = q.size(3), S = k.size(1), H_kv = k.size(2);
  check_shape(k, {B, S, H_kv, D}, kOp, "k", "(B, S, H_kv, D)");
  check_shape(v, {B, S, H_kv, D}, kOp, "v", "(B, S, H_kv, D)");
  check(H >= 1 && H_kv >= 1 && H % H_kv == 0, kOp, ": k's heads must divide q's heads, got H = ", H, ", H_kv = ", H_kv);
  check(D >= 1 && D <= 256, kOp, ": q's head dim D must be 1 ... 256, got ", D);
  dtype_of(q, kOp, "q");
  for (const auto& [t, name] : {std::pair(&q, "q"), std::pair(&k, "k"), std::pair(&v, "v")}) {
    check_same_device(*t, q, kOp, name);
    check_type(*t, q.scalar_type(), kOp, name);
    check_last_stride(*t, kOp, name);
  }
  check(std::isfinite(scale), kOp, ": scale must be finite, got ", scale);
  check(window >= 0 && (window == 0 || causal), kOp, ": window must be positive and needs causal, or 0 for none, got ",
        window);
  check_score_rule(alibi_slopes, softcap, q, H, causal, kOp);
  check(dropout_p >= 0 && dropout_p < 1, kOp, ": dropout_p must be in [0, 1), got ", dropout_p);
  if (dropout_p > 0) {
    check(seed.has_value(), kOp, ": dropout needs a seed, a one-element int64 tensor");
    check_same_device(*seed, q, kOp, "seed");
    check_type(*seed, ScalarType::Long, kOp, "seed");
    check(seed->numel() == 1, kOp, ": seed must have one element, got ", shape_of(*seed));
  }
  const double threshold = std::min(dropout_p * 4294967296.0, 4294967295.0);
  const int64_t widest = std::min(window, T + S);  // a wider one bounds nothing; kernels may add to it without overflow
  return {B, T, S, H, H_kv, D, scale, causal, widest, uint32_t(threshold), 1.0 / (1.0 - dropout_p)};
}

}  // namespace

std::tuple<Tensor, Tensor> attention_forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                                             bool causal, int64_t window, const std::optional<Tensor>& alibi_slopes,
                                             double softcap, double dropout_p, const std::optional<Tensor>& seed) {
  const AttentionShape shape = checked(q, k, v, scale, causal, window, alibi_slopes, softcap, dropout_p, seed);
  const DType dtype = dtype_of(q, kOp, "q");
  Tensor out = empty(q, {shape.B, shape.T, shape.H, shape.D}, q.scalar_type());
  Tensor lse = empty(q, {shape.B, shape.H, shape.T}, accumulate_type(dtype));
  const AttentionForwardParams params{
      .shape = shape,
      .dtype = dtype,
      .rule = {softcap, input(alibi_slopes)},
      .q = input(q),
      .k = input(k),
      .v = input(v),
      .q_strides = strides_of(q),
      .k_strides = strides_of(k),
      .v_strides = strides_of(v),
      .seed = static_cast<const int64_t*>(input(seed)),
      .out = output(out),
      .lse = output(lse),
  };
  RUN(attention_forward, q, params);
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& dout_given, const Tensor& q, const Tensor& k,
                                                      const Tensor& v, const Tensor& out, const Tensor& lse,
                                                      double scale, bool causal, int64_t window,
                                                      const std::optional<Tensor>& alibi_slopes, double softcap,
                                                      double dropout_p, const std::optional<Tensor>& seed) {
  const AttentionShape s = checked(q, k, v, scale, causal, window, alibi_slopes, softcap, dropout_p, seed);
  const DType dtype = dtype_of(q, kOp, "q");
  for (const auto& [t, name] : {std::pair(&dout_given, "dout"), std::pair(&out, "out")}) {
    check_same_device(*t, q, kOp, name);
    check_type(*t, q.scalar_type(), kOp, name);
    check_shape(*t, {s.B, s.T, s.H, s.D}, kOp, name, "(B, T, H, D)");
  }
  check(out.is_contiguous(), kOp, ": out must be contiguous");
  check_same_device(lse, q, kOp, "lse");
  check_type(lse, accumulate_type(dtype), kOp, "lse");
  check_shape(lse, {s.B, s.H, s.T}, kOp, "lse", "(B, H, T)");
  check(lse.is_contiguous(), kOp, ": lse must be contiguous");

  // A gradient may come expanded (from a sum) or transposed; its last dimension must be in order.
  const Tensor dout = s.D > 1 && dout_given.stride(3) != 1 ? dense(dout_given) : dout_given;
  Tensor dq = empty(q, {s.B, s.T, s.H, s.D}, q.scalar_type());
  Tensor dk = empty(q, {s.B, s.S, s.H_kv, s.D}, q.scalar_type());
  Tensor dv = empty(q, {s.B, s.S, s.H_kv, s.D}, q.scalar_type());
  std::optional<Tensor> delta, dq_shares, dk_shares, dv_shares;
  if (runs_cuda(q)) delta = empty(q, {s.B, s.H, s.T}, accumulate_type(dtype));
  const AttentionCut cut = runs_cuda(q) ? AttentionCut{1, 1} : attention_backward_cut(s);
  if (cut.keys > 1) dq_shares = empty(q, {cut.keys, s.B, s.H, s.T, s.D}, accumulate_type(dtype));
  if (cut.queries > 1) {
    dk_shares = empty(q, {cut.queries, s.B, s.H_kv, s.S, s.D}, accumulate_type(dtype));
    dv_shares = empty(q, {cut.queries, s.B, s.H_kv, s.S, s.D}, accumulate_type(dtype));
  }
  const AttentionBackwardParams params{
      .shape = s,
      .dtype = dtype,
      .rule = {softcap, input(alibi_slopes)},
      .dout = input(dout),
      .q = input(q),
      .k = input(k),
      .v = input(v),
      .out = input(out),
      .dout_strides = strides_of(dout),
      .q_strides = strides_of(q),
      .k_strides = strides_of(k),
      .v_strides = strides_of(v),
      .lse = input(lse),
      .seed = static_cast<const int64_t*>(input(seed)),
      .dq = output(dq),
      .dk = output(dk),
      .dv = output(dv),
      .delta = delta ? output(*delta) : nullptr,
      .dq_shares = dq_shares ? output(*dq_shares) : nullptr,
      .dk_shares = dk_shares ? output(*dk_shares) : nullptr,
      .dv_shares = dv_shares ? output(*dv_shares) : nullptr,
      .cut = cut,
  };
  RUN(attention_backward, q, params);
  return {dq, dk, dv};
}

}  // namespace minigpt

REGISTER(attention_forward)
REGISTER(attention_backward)
