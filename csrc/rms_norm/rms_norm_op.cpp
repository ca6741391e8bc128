#include <tuple>
#include <utility>
#include <vector>

#include "../common/norm_checks.h"
#include "rms_norm.h"

namespace minigpt {
namespace {

constexpr const char *kOp = "rms_norm", *kFusedOp = "residual_rms_norm";

struct Rows {
  Tensor x;
  RowLayout layout;
};

// Where x's rows lie: its outer dimensions, joined where one goes on as the other ends. Where more than two are left, or a
// row is not contiguous, they are those of a contiguous copy.
Rows rows_of(const Tensor& x) {
  const int64_t last = x.dim() - 1, C = x.size(last);
  std::vector<std::pair<int64_t, int64_t>> joined;  // size and stride, innermost first
  for (int64_t i = last - 1; i >= 0; --i) {
    if (x.size(i) == 1) continue;
    if (!joined.empty() && x.stride(i) == joined.back().first * joined.back().second)
      joined.back().first *= x.size(i);
    else
      joined.emplace_back(x.size(i), x.stride(i));
  }
  if (joined.size() > 2 || (C > 1 && x.stride(last) != 1)) return {dense(x), {x.numel() / C, C, 0}};
  joined.resize(2, {1, 0});
  return {x, {joined[0].first, joined[0].second, joined[1].second}};
}

struct Normed {
  Tensor y, s, rstd;  // s: empty without a residual
};

Normed forward(const Tensor& x_given, const std::optional<Tensor>& residual, const Tensor& weight, double eps,
               const char* op) {
  const NormProblem p = checked_norm(x_given, weight, op);
  const DType residual_dtype = residual ? checked_residual(*residual, x_given, p, op, "residual") : p.dtype;
  check(eps >= 0, op, ": eps must not be negative, got ", eps);
  const auto [x, layout] = rows_of(residual ? dense(x_given) : x_given);
  const Tensor weight_dense = dense(weight);
  const std::optional<Tensor> residual_dense = residual ? std::optional(dense(*residual)) : std::nullopt;
  Tensor y = empty(x, {x.sizes().begin(), x.sizes().end()}, x.scalar_type());
  Tensor s = residual ? torch::stable::empty_like(*residual_dense) : empty(x, {0}, x.scalar_type());
  Tensor rstd = empty(x, {p.rows}, accumulate_type(p.dtype));
  const RmsNormForwardParams params{
      .rows = p.rows,
      .C = p.C,
      .dtype = p.dtype,
      .weight_dtype = p.weight_dtype,
      .residual_dtype = residual_dtype,
      .x = input(x),
      .layout = layout,
      .residual = input(residual_dense),
      .weight = input(weight_dense),
      .eps = eps,
      .s = residual ? output(s) : nullptr,
      .y = output(y),
      .rstd = output(rstd),
  };
  RUN(rms_norm_forward, x, params);
  return {y, s, rstd};
}

struct Gradients {
  Tensor dx, dresidual, dweight;  // dresidual: empty where it is dx
};

Gradients backward(const Tensor& dy, const std::optional<Tensor>& ds, const Tensor& s_given, const Tensor& weight,
                   const Tensor& rstd, const NormProblem& p, DType residual_dtype, const char* op) {
  check_statistics(rstd, s_given, p, op, "rstd");
  const auto [s, layout] = rows_of(s_given);
  const Tensor dy_dense = dense(dy), weight_dense = dense(weight);
  const std::optional<Tensor> ds_dense = ds ? std::optional(dense(*ds)) : std::nullopt;
  const int64_t chunks = column_sum_chunks(p.rows, runs_cuda(s));
  const bool two = residual_dtype != p.dtype;
  Tensor partial = empty(s, {chunks, p.C}, accumulate_type(p.dtype));
  Tensor dx = torch::stable::empty_like(dy_dense), dweight = torch::stable::empty_like(weight_dense);
  Tensor dresidual = empty(s, two ? std::vector<int64_t>{s.sizes().begin(), s.sizes().end()} : std::vector<int64_t>{0},
                           s.scalar_type());
  const RmsNormBackwardParams params{
      .rows = p.rows,
      .C = p.C,
      .dtype = p.dtype,
      .weight_dtype = p.weight_dtype,
      .residual_dtype = residual_dtype,
      .dy = input(dy_dense),
      .s = input(s),
      .layout = layout,
      .ds = input(ds_dense),
      .weight = input(weight_dense),
      .rstd = input(rstd),
      .dx = output(dx),
      .dresidual = two ? output(dresidual) : nullptr,
      .dweight = output(dweight),
      .partial = output(partial),
      .chunks = chunks,
  };
  RUN(rms_norm_backward, s, params);
  return {dx, dresidual, dweight};
}

}  // namespace

std::tuple<Tensor, Tensor> rms_norm_forward(const Tensor& x, const Tensor& weight, double eps) {
  const auto [y, s, rstd] = forward(x, std::nullopt, weight, eps, kOp);
  return {y, rstd};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                             const Tensor& rstd) {
  const NormProblem p = checked_norm(x, weight, kOp);
  check_gradient(dy, x, kOp, "dy", "x");
  const auto [dx, dresidual, dweight] = backward(dy, std::nullopt, x, weight, rstd, p, p.dtype, kOp);
  return {dx, dweight};
}

std::tuple<Tensor, Tensor, Tensor> residual_rms_norm_forward(const Tensor& x, const Tensor& residual,
                                                             const Tensor& weight, double eps) {
  const auto [y, s, rstd] = forward(x, residual, weight, eps, kFusedOp);
  return {y, s, rstd};
}

std::tuple<Tensor, Tensor, Tensor> residual_rms_norm_backward(const Tensor& dy, const std::optional<Tensor>& ds,
                                                              const Tensor& s, const Tensor& weight,
                                                              const Tensor& rstd) {
  const NormProblem p = checked_norm(dy, weight, kFusedOp, "dy");
  const DType residual_dtype = checked_residual(s, dy, p, kFusedOp, "s", "dy");
  if (ds) check_gradient(*ds, s, kFusedOp, "ds", "s");
  const auto [dx, dresidual, dweight] = backward(dy, ds, s, weight, rstd, p, residual_dtype, kFusedOp);
  return {dx, dresidual, dweight};
}

}  // namespace minigpt

REGISTER(rms_norm_forward)
REGISTER(rms_norm_backward)
REGISTER(residual_rms_norm_forward)
REGISTER(residual_rms_norm_backward)
