#include <tuple>

#include "../common/checks.h"
#include "layer_norm.h"

namespace minigpt {
namespace {

constexpr const char* kOp = "layer_norm";

// Rows, columns and types of x and weight, checked.
struct Problem {
  int64_t rows, C;
  DType dtype, weight_dtype;
};

Problem checked(const Tensor& x, const Tensor& weight) {
  check(x.dim() >= 1, kOp, ": x must be (..., C), got a tensor without dimensions");
  const int64_t C = x.size(x.dim() - 1);
  check(C >= 1, kOp, ": x must have at least one element in its last dimension, got ", shape_of(x));
  check_same_device(weight, x, kOp, "weight");
  check_shape(weight, {C}, kOp, "weight", "(C,)");
  const Problem p{x.numel() / C, C, dtype_of(x, kOp, "x"), dtype_of(weight, kOp, "weight")};
  const bool half = p.dtype == DType::bf16 || p.dtype == DType::f16;
  check(p.dtype == p.weight_dtype || (half && p.weight_dtype == DType::f32), kOp,
        ": weight must have x's dtype, or be float32 where x is bfloat16 or float16; got x ", name_of(x.scalar_type()),
        ", weight ", name_of(weight.scalar_type()));
  return p;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> layer_norm_forward(const Tensor& x, const Tensor& weight,
                                                      const std::optional<Tensor>& bias, double eps) {
  const Problem p = checked(x, weight);
  if (bias) {
    check_same_device(*bias, x, kOp, "bias");
    check_shape(*bias, {p.C}, kOp, "bias", "(C,)");
    check_type(*bias, weight.scalar_type(), kOp, "bias");
  }
  check(eps >= 0, kOp, ": eps must not be negative, got ", eps);
  const Tensor x_dense = dense(x), weight_dense = dense(weight);
  const std::optional<Tensor> bias_dense = bias ? std::optional(dense(*bias)) : std::nullopt;
  Tensor y = torch::stable::empty_like(x_dense);
  Tensor mean = empty(x, {p.rows}, accumulate_type(p.dtype)), rstd = empty(x, {p.rows}, accumulate_type(p.dtype));
  const LayerNormForwardParams params{
      .rows = p.rows,
      .C = p.C,
      .dtype = p.dtype,
      .weight_dtype = p.weight_dtype,
      .x = input(x_dense),
      .weight = input(weight_dense),
      .bias = input(bias_dense),
      .eps = eps,
      .y = output(y),
      .mean = output(mean),
      .rstd = output(rstd),
  };
  RUN(layer_norm_forward, x, params);
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                                       const Tensor& mean, const Tensor& rstd, bool has_bias) {
  const Problem p = checked(x, weight);
  const ScalarType statistics = accumulate_type(p.dtype);
  check_same_device(dy, x, kOp, "dy");
  check_shape(dy, {x.sizes().begin(), x.sizes().end()}, kOp, "dy", "x's shape");
  check_type(dy, x.scalar_type(), kOp, "dy");
  for (const auto& [t, name] : {std::pair(&mean, "mean"), std::pair(&rstd, "rstd")}) {
    check_same_device(*t, x, kOp, name);
    check_shape(*t, {p.rows}, kOp, name, "(rows,)");
    check_type(*t, statistics, kOp, name);
    check(t->is_contiguous(), kOp, ": ", name, " must be contiguous");
  }
  const Tensor dy_dense = dense(dy), x_dense = dense(x), weight_dense = dense(weight);
  const int64_t chunks = layer_norm_backward_chunks(p.rows, runs_cuda(x));
  Tensor partial = empty(x, {2, chunks, p.C}, statistics);
  Tensor dx = torch::stable::empty_like(x_dense), dweight = torch::stable::empty_like(weight_dense);
  Tensor dbias = empty(weight, {has_bias ? p.C : 0}, weight.scalar_type());
  const LayerNormBackwardParams params{
      .rows = p.rows,
      .C = p.C,
      .dtype = p.dtype,
      .weight_dtype = p.weight_dtype,
      .dy = input(dy_dense),
      .x = input(x_dense),
      .weight = input(weight_dense),
      .mean = input(mean),
      .rstd = input(rstd),
      .dx = output(dx),
      .dweight = output(dweight),
      .dbias = has_bias ? output(dbias) : nullptr,
      .partial = output(partial),
      .chunks = chunks,
  };
  RUN(layer_norm_backward, x, params);
  return {dx, dweight, dbias};
}

}  // namespace minigpt

REGISTER(layer_norm_forward)
REGISTER(layer_norm_backward)
