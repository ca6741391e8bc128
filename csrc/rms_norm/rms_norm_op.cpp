#include <tuple>
#include <utility>
#include <vector>

#include "../common/norm_checks.h"
#include "rms_norm.h"

namespace minigpt {
namespace {

constexpr const char* kOp = "rms_norm";

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

}  // namespace

std::tuple<Tensor, Tensor> rms_norm_forward(const Tensor& x_given, const Tensor& weight, double eps) {
  const NormProblem p = checked_norm(x_given, weight, kOp);
  check(eps >= 0, kOp, ": eps must not be negative, got ", eps);
  const auto [x, layout] = rows_of(x_given);
  const Tensor weight_dense = dense(weight);
  Tensor y = empty(x, {x.sizes().begin(), x.sizes().end()}, x.scalar_type());
  Tensor rstd = empty(x, {p.rows}, accumulate_type(p.dtype));
  const RmsNormForwardParams params{
      .rows = p.rows,
      .C = p.C,
      .dtype = p.dtype,
      .weight_dtype = p.weight_dtype,
      .x = input(x),
      .layout = layout,
      .weight = input(weight_dense),
      .eps = eps,
      .y = output(y),
      .rstd = output(rstd),
  };
  RUN(rms_norm_forward, x, params);
  return {y, rstd};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& dy, const Tensor& x_given, const Tensor& weight,
                                             const Tensor& rstd) {
  const NormProblem p = checked_norm(x_given, weight, kOp);
  check_upstream(dy, x_given, kOp);
  check_statistics(rstd, x_given, p, kOp, "rstd");
  const auto [x, layout] = rows_of(x_given);
  const Tensor dy_dense = dense(dy), weight_dense = dense(weight);
  const int64_t chunks = column_sum_chunks(p.rows, runs_cuda(x));
  Tensor partial = empty(x, {chunks, p.C}, accumulate_type(p.dtype));
  Tensor dx = torch::stable::empty_like(dy_dense), dweight = torch::stable::empty_like(weight_dense);
  const RmsNormBackwardParams params{
      .rows = p.rows,
      .C = p.C,
      .dtype = p.dtype,
      .weight_dtype = p.weight_dtype,
      .dy = input(dy_dense),
      .x = input(x),
      .layout = layout,
      .weight = input(weight_dense),
      .rstd = input(rstd),
      .dx = output(dx),
      .dweight = output(dweight),
      .partial = output(partial),
      .chunks = chunks,
  };
  RUN(rms_norm_backward, x, params);
  return {dx, dweight};
}

}  // namespace minigpt

REGISTER(rms_norm_forward)
REGISTER(rms_norm_backward)
