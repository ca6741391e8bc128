#include <tuple>

#include "../common/norm_checks.h"
#include "layer_norm.h"

namespace minigpt {
namespace {

constexpr const char* kOp = "layer_norm";

}  // namespace

std::tuple<Tensor, Tensor, Tensor> layer_norm_forward(const Tensor& x, const Tensor& weight,
                                                      const std::optional<Tensor>& bias, double eps) {
  const NormProblem p = checked_norm(x, weight, kOp);
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
  const NormProblem p = checked_norm(x, weight, kOp);
  check_upstream(dy, x, kOp);
  check_statistics(mean, x, p, kOp, "mean");
  check_statistics(rstd, x, p, kOp, "rstd");
  const Tensor dy_dense = dense(dy), x_dense = dense(x), weight_dense = dense(weight);
  const int64_t chunks = column_sum_chunks(p.rows, runs_cuda(x));
  Tensor partial = empty(x, {2, chunks, p.C}, accumulate_type(p.dtype));
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
