#include <tuple>

#include "../common/norm_checks.h"
#include "rms_norm.h"

namespace minigpt {
namespace {

constexpr const char* kOp = "rms_norm";

// x where its rows can be read in place, three outer dimensions of contiguous rows; else a contiguous copy.
Tensor rows_in_place(const Tensor& x) {
  const int64_t last = x.dim() - 1;
  return last <= 3 && (x.size(last) == 1 || x.stride(last) == 1) ? x : dense(x);
}

RowLayout layout_of_rows(const Tensor& x) {
  const int64_t outer = x.dim() - 1;
  if (outer > 3) return {1, 1, {x.size(outer), 0, 0}};  // a contiguous copy
  RowLayout layout{1, 1, {0, 0, 0}};
  for (int64_t i = 0; i < outer; ++i) layout.strides[i + 3 - outer] = x.stride(i);
  if (outer >= 1) layout.n2 = x.size(outer - 1);
  if (outer >= 2) layout.n1 = x.size(outer - 2);
  return layout;
}

}  // namespace

std::tuple<Tensor, Tensor> rms_norm_forward(const Tensor& x_given, const Tensor& weight, double eps) {
  const NormProblem p = checked_norm(x_given, weight, kOp);
  check(eps >= 0, kOp, ": eps must not be negative, got ", eps);
  const Tensor x = rows_in_place(x_given), weight_dense = dense(weight);
  Tensor y = empty(x, {x.sizes().begin(), x.sizes().end()}, x.scalar_type());
  Tensor rstd = empty(x, {p.rows}, accumulate_type(p.dtype));
  const RmsNormForwardParams params{
      .rows = p.rows,
      .C = p.C,
      .dtype = p.dtype,
      .weight_dtype = p.weight_dtype,
      .x = input(x),
      .layout = layout_of_rows(x),
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
  const Tensor dy_dense = dense(dy), x = rows_in_place(x_given), weight_dense = dense(weight);
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
      .layout = layout_of_rows(x),
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
