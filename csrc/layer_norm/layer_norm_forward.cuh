// LayerNorm forward. A team of threads takes a row and shares its C values: a warp for a short row, else a block.
//   mean = avg(x)   rstd = 1 / sqrt(avg((x - mean)^2) + eps)   y = (x - mean) * rstd * weight + bias
// With a residual, s = residual + x is what is normed.
// x, y: [rows, C] of T.  residual, s: [rows, C] of Residual.  weight, bias: [C] of Weight.  mean, rstd: [rows] of A, float (double for double).
// The row is read three times, but from memory only once: the next passes find it in the cache.
#pragma once
#include "../common/column_sums.cuh"
#include "layer_norm.h"

namespace minigpt {

template <class T, class Residual, class Weight, int Team>
__global__ void __launch_bounds__(kRowThreads)
    layer_norm_forward_kernel(const __grid_constant__ LayerNormForwardParams p) {
  using A = accumulate_t<T>;
  constexpr int W = kRowWidth<A>;
  const int64_t row = int64_t{blockIdx.x} * (kRowThreads / Team) + threadIdx.x / Team;
  if (row >= p.rows) return;  // a whole team leaves, and only a team of one warp can
  const int64_t first = threadIdx.x % Team * W;
  const Residual* s = static_cast<const Residual*>(p.x) + row * p.C;  // without a residual both types are one
  T* const y = static_cast<T*>(p.y) + row * p.C;
  const Weight *const weight = static_cast<const Weight*>(p.weight), *const bias = static_cast<const Weight*>(p.bias);

  if (p.residual) {
    const T* const x = static_cast<const T*>(p.x) + row * p.C;
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

  A sum = 0;
  for (int64_t c = first; c < p.C; c += Team * W) {
    const auto v = load_part<W>(s + c, p.C - c);
#pragma unroll
    for (int e = 0; e < W; ++e) sum += v.at[e];
  }
  const A mean = team_sum<Team>(sum) / A(p.C);

  A squares = 0;
  for (int64_t c = first; c < p.C; c += Team * W) {
    const auto v = load_part<W>(s + c, p.C - c);
#pragma unroll
    for (int e = 0; e < W; ++e) {
      const A d = c + e < p.C ? v.at[e] - mean : A(0);
      squares += d * d;
    }
  }
  const A rstd = A(1) / std::sqrt(team_sum<Team>(squares) / A(p.C) + A(p.eps));

  for (int64_t c = first; c < p.C; c += Team * W) {
    auto v = load_part<W>(s + c, p.C - c);
    const auto w = load_part<W>(weight + c, p.C - c);
    Vec<A, W> shift = {};
    if (bias) shift = load_part<W>(bias + c, p.C - c);
#pragma unroll
    for (int e = 0; e < W; ++e) v.at[e] = (v.at[e] - mean) * rstd * w.at[e] + shift.at[e];
    store_part<W>(y + c, v, p.C - c);
  }
  if (threadIdx.x % Team == 0) {
    if (p.mean) static_cast<A*>(p.mean)[row] = mean;
    if (p.rstd) static_cast<A*>(p.rstd)[row] = rstd;
  }
}

}  // namespace minigpt
