// RMSNorm forward. A team of threads takes a row and shares its C values: half a warp, a warp or a block, by its length.
//   rstd = 1 / sqrt(avg(x^2) + eps)   y = x * rstd * weight
// With a residual, s = residual + x is what is normed.
// x: [rows, C] of T, by RowLayout.  y: [rows, C] of T.  residual, s: [rows, C] of Residual.  weight: [C] of Weight.  rstd: [rows] of A, float (double for double).
// The row is read twice, but from memory only once: the second pass finds it in the cache.
#pragma once
#include "../common/column_sums.cuh"
#include "rms_norm.h"

namespace minigpt {

template <class T>
DEVICE const T* row_of(const void* x, const RowLayout& l, int64_t row) {
  return static_cast<const T*>(x) + row / l.inner * l.outer_stride + row % l.inner * l.inner_stride;
}

template <class T, class Residual, class Weight, int Team>
__global__ void __launch_bounds__(kRowThreads) rms_norm_forward_kernel(const __grid_constant__ RmsNormForwardParams p) {
  using A = accumulate_t<T>;
  constexpr int W = kRowWidth<A>;
  const int64_t row = int64_t{blockIdx.x} * (kRowThreads / Team) + threadIdx.x / Team;
  if (row >= p.rows) return;  // a whole team leaves, and only one within a warp can
  const int64_t first = threadIdx.x % Team * W;
  const Residual* s = row_of<Residual>(p.x, p.layout, row);  // without a residual both types are one
  T* const y = static_cast<T*>(p.y) + row * p.C;
  const Weight* const weight = static_cast<const Weight*>(p.weight);

  if (p.residual) {
    const T* const x = row_of<T>(p.x, p.layout, row);
    const Residual* const residual = static_cast<const Residual*>(p.residual) + row * p.C;
    Residual* const added = static_cast<Residual*>(p.s) + row * p.C;
    for (int64_t c = first; c < p.C; c += Team * W) {
      auto v = load_part<W>(residual + c, p.C - c);
      const auto u = load_part<W>(x + c, p.C - c);
#pragma unroll
      for (int e = 0; e < W; ++e) v.at[e] += u.at[e];
      store_part<W>(added + c, v, p.C - c);
    }
    s = added;  // of which a thread reads what it wrote itself
  }

  A squares = 0;
  for (int64_t c = first; c < p.C; c += Team * W) {
    const auto v = load_part<W>(s + c, p.C - c);
#pragma unroll
    for (int e = 0; e < W; ++e) squares += v.at[e] * v.at[e];  // 0 past the row's end
  }
  const A rstd = A(1) / std::sqrt(team_sum<Team>(squares) / A(p.C) + A(p.eps));

  for (int64_t c = first; c < p.C; c += Team * W) {
    auto v = load_part<W>(s + c, p.C - c);
    const auto w = load_part<W>(weight + c, p.C - c);
#pragma unroll
    for (int e = 0; e < W; ++e) v.at[e] = v.at[e] * rstd * w.at[e];
    store_part<W>(y + c, v, p.C - c);
  }
  if (threadIdx.x % Team == 0 && p.rstd) static_cast<A*>(p.rstd)[row] = rstd;
}

}  // namespace minigpt
