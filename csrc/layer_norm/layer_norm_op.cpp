#include <tuple>

#include "../common/norm_checks.h"
#include "layer_norm.h"

namespace minigpt {
namespace {

constexpr const char *kOp = "layer_norm", *kFusedOp = "residual_layer_norm";

struct Normed {
  Tensor y, s, mean, rstd;  // s: empty without a residual
};

Normed forward(const Tensor& x, const std::optional<Tensor>& residual, const Tensor& weight,
               const std::optional<Tensor>& bias, double eps, const char* op) {
  const NormProblem p = checked_norm(x, weight, op);
  const DType residual_dtype = residual ? checked_residual(*residual, x, p, op, "residual") : p.dtype;
  if (bias) {
    check_same_device(*bias, x, op, "bias");
    check_shape(*bias, {p.C}, op, "bias", "(C,)");
    check_type(*bias, weight.scalar_type(), op, "bias");
  }
  check(eps >= 0, op, ": eps must not be negative, got ", eps);
  const Tensor x_dense = dense(x), weight_dense = dense(weight);
  const std::optional<Tensor> residual_dense = residual ? std::optional(dense(*residual)) : std::nullopt;
  const std::optional<Tensor> bias_dense = bias ? std::optional(dense(*bias)) : std::nullopt;
  Tensor y = torch::stable::empty_like(x_dense);
  Tensor s = residual ? torch::stable::empty_like(*residual_dense) : empty(x, {0}, x.scalar_type());
  Tensor mean = empty(x, {p.rows}, accumulate_type(p.dtype)), rstd = empty(x, {p.rows}, accumulate_type(p.dtype));
  const LayerNormForwardParams params{
      .rows = p.rows,
      .C = p.C,
      .dtype = p.dtype,
      .weight_dtype = p.weight_dtype,
      .residual_dtype = residual_dtype,
      .x = input(x_dense),
      .residual = input(residual_dense),
      .weight = input(weight_dense),
      .bias = input(bias_dense),
      .eps = eps,
      .s = residual ? output(s) : nullptr,
      .y = output(y),
      .mean = output(mean),
      .rstd = output(rstd),
  };
  RUN(layer_norm_forward, x, params);
  return {y, s, mean, rstd};
}

struct Gradients {
  Tensor dx, dresidual, dweight, dbias;  // dresidual: empty where it is dx; dbias: empty without a bias
};

Gradients backward(const Tensor& dy, const std::optional<Tensor>& ds, const Tensor& s, const Tensor& weight,
                   const Tensor& mean, const Tensor& rstd, bool has_bias, const NormProblem& p, DType residual_dtype,
                   const char* op) {
  check_statistics(mean, s, p, op, "mean");
  check_statistics(rstd, s, p, op, "rstd");
  const Tensor dy_dense = dense(dy), s_dense = dense(s), weight_dense = dense(weight);
  const std::optional<Tensor> ds_dense = ds ? std::optional(dense(*ds)) : std::nullopt;
  const int64_t chunks = column_sum_chunks(p.rows, runs_cuda(s));
  const bool two = residual_dtype != p.dtype;
  Tensor partial = empty(s, {2, chunks, p.C}, accumulate_type(p.dtype));
  Tensor dx = torch::stable::empty_like(dy_dense), dweight = torch::stable::empty_like(weight_dense);
  Tensor dresidual = two ? torch::stable::empty_like(s_dense) : empty(s, {0}, s.scalar_type());
  Tensor dbias = empty(weight, {has_bias ? p.C : 0}, weight.scalar_type());
  const LayerNormBackwardParams params{
      .rows = p.rows,
      .C = p.C,
      .dtype = p.dtype,
      .weight_dtype = p.weight_dtype,
      .residual_dtype = residual_dtype,
      .dy = input(dy_dense),
      .s = input(s_dense),
      .ds = input(ds_dense),
      .weight = input(weight_dense),
      .mean = input(mean),
      .rstd = input(rstd),
      .dx = output(dx),
      .dresidual = two ? output(dresidual) : nullptr,
      .dweight = output(dweight),
      .dbias = has_bias ? output(dbias) : nullptr,
      .partial = output(partial),
      .chunks = chunks,
  };
  RUN(layer_norm_backward, s, params);
  return {dx, dresidual, dweight, dbias};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> layer_norm_forward(const Tensor& x, const Tensor& weight,
                                                      const std::optional<Tensor>& bias, double eps) {
  const auto [y, s, mean, rstd] = forward(x, std::nullopt, weight, bias, eps, kOp);
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                                       const Tensor& mean, const Tensor& rstd, bool has_bias) {
  const NormProblem p = checked_norm(x, weight, kOp);
  check_gradient(dy, x, kOp, "dy", "x");
  const auto [dx, dresidual, dweight, dbias] =
      backward(dy, std::nullopt, x, weight, mean, rstd, has_bias, p, p.dtype, kOp);
  return {dx, dweight, dbias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> residual_layer_norm_forward(const Tensor& x, const Tensor& residual,
                                                                       const Tensor& weight,
                                                                       const std::optional<Tensor>& bias, double eps) {
  const auto [y, s, mean, rstd] = forward(x, residual, weight, bias, eps, kFusedOp);
  return {y, s, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> residual_layer_norm_backward(const Tensor& dy,
                                                                        const std::optional<Tensor>& ds,
                                                                        const Tensor& s, const Tensor& weight,
                                                                        const Tensor& mean, const Tensor& rstd,
                                                                        bool has_bias) {
  const NormProblem p = checked_norm(dy, weight, kFusedOp, "dy");
  const DType residual_dtype = checked_residual(s, dy, p, kFusedOp, "s", "dy");
  if (ds) check_gradient(*ds, s, kFusedOp, "ds", "s");
  const auto [dx, dresidual, dweight, dbias] =
      backward(dy, ds, s, weight, mean, rstd, has_bias, p, residual_dtype, kFusedOp);
  return {dx, dresidual, dweight, dbias};
}

}  // namespace minigpt

REGISTER(layer_norm_forward)
REGISTER(layer_norm_backward)
REGISTER(residual_layer_norm_forward)
REGISTER(residual_layer_norm_backward)
