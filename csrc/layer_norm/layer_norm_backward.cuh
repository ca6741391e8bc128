// LayerNorm backward, three kernels: dx row by row; dweight and dbias over chunks of rows; the chunks added in order.
//   xhat = (x - mean) * rstd        g = dy * weight
//   dx = rstd * (g - avg(g) - xhat * avg(g * xhat))     dweight = sum_rows dy * xhat     dbias = sum_rows dy
// With a residual what was normed is s = residual + x, and its own gradient ds is added to dx.
// dy, dx: [rows, C] of T.  s, ds, dresidual: [rows, C] of Residual.  weight, dweight, dbias: [C] of Weight.  mean, rstd: [rows], partial: [2, chunks, C] of A.
#pragma once
#include "layer_norm_forward.cuh"

namespace minigpt {

// A team of threads (a warp, or the block) takes a row, as in the forward.
template <class T, class Residual, class Weight, int Team>
__global__ void __launch_bounds__(kRowThreads)
    layer_norm_backward_dx_kernel(const __grid_constant__ LayerNormBackwardParams p) {
  using A = accumulate_t<T>;
  constexpr int W = kRowWidth<A>;
  const int64_t row = int64_t{blockIdx.x} * (kRowThreads / Team) + threadIdx.x / Team;
  if (row >= p.rows) return;  // a whole team leaves, and only a team of one warp can
  const int64_t first = threadIdx.x % Team * W;
  const T* const dy = static_cast<const T*>(p.dy) + row * p.C;
  const Residual* const s = static_cast<const Residual*>(p.s) + row * p.C;
  T* const dx = static_cast<T*>(p.dx) + row * p.C;
  const Weight* const weight = static_cast<const Weight*>(p.weight);
  const A mean = static_cast<const A*>(p.mean)[row], rstd = static_cast<const A*>(p.rstd)[row];

  A sum_g = 0, sum_gx = 0;
  for (int64_t c = first; c < p.C; c += Team * W) {
    const auto d = load_part<W>(dy + c, p.C - c), v = load_part<W>(s + c, p.C - c);
    const auto w = load_part<W>(weight + c, p.C - c);
#pragma unroll
    for (int e = 0; e < W; ++e) {
      const A g = d.at[e] * w.at[e];  // 0 past the row's end
      sum_g += g;
      sum_gx += g * ((v.at[e] - mean) * rstd);
    }
  }
  const A avg_g = team_sum<Team>(sum_g) / A(p.C), avg_gx = team_sum<Team>(sum_gx) / A(p.C);

  for (int64_t c = first; c < p.C; c += Team * W) {
    auto d = load_part<W>(dy + c, p.C - c);
    const auto v = load_part<W>(s + c, p.C - c);
    const auto w = load_part<W>(weight + c, p.C - c);
#pragma unroll
    for (int e = 0; e < W; ++e) d.at[e] = rstd * (d.at[e] * w.at[e] - avg_g - (v.at[e] - mean) * rstd * avg_gx);
    if (p.ds) {
      const auto more = load_part<W>(static_cast<const Residual*>(p.ds) + row * p.C + c, p.C - c);
#pragma unroll
      for (int e = 0; e < W; ++e) d.at[e] += more.at[e];
    }
    store_part<W>(dx + c, d, p.C - c);
    if (p.dresidual) store_part<W>(static_cast<Residual*>(p.dresidual) + row * p.C + c, d, p.C - c);
  }
}

// A block takes one chunk of rows and 32 columns; without rows it writes the zeros that the last stage adds.
template <class T, class Residual>
__global__ void __launch_bounds__(kRowThreads)
    layer_norm_backward_partial_kernel(const __grid_constant__ LayerNormBackwardParams p) {
  using A = accumulate_t<T>;
  const int64_t tiles = column_tiles(p.C);
  const int64_t chunk = blockIdx.x / tiles, c = blockIdx.x % tiles * kColumns + threadIdx.x % kColumns;
  const int64_t each = (p.rows + p.chunks - 1) / p.chunks;
  const int64_t begin = chunk * each, end = begin + each < p.rows ? begin + each : p.rows;
  const A *const mean = static_cast<const A*>(p.mean), *const rstd = static_cast<const A*>(p.rstd);

  A dweight = 0, dbias = 0;
  if (c < p.C) {
    const T* const dy = static_cast<const T*>(p.dy) + c;
    const Residual* const s = static_cast<const Residual*>(p.s) + c;
    for (int64_t row = begin + threadIdx.x / kColumns; row < end; row += kColumnRows) {
      const A d = static_cast<A>(dy[row * p.C]);
      dweight += d * ((static_cast<A>(s[row * p.C]) - mean[row]) * rstd[row]);
      dbias += d;
    }
  }
  dweight = column_sum(dweight);
  dbias = column_sum(dbias);
  if (threadIdx.x < kColumns && c < p.C) {
    A* const partial = static_cast<A*>(p.partial) + chunk * p.C + c;
    partial[0] = dweight;
    partial[p.chunks * p.C] = dbias;
  }
}

// A block adds the chunks of 32 columns: the first half of the grid those of dweight, the second, if any, of dbias.
template <class A, class Weight>
__global__ void __launch_bounds__(kRowThreads)
    layer_norm_backward_finish_kernel(const __grid_constant__ LayerNormBackwardParams p) {
  const int64_t tiles = column_tiles(p.C);
  const bool bias = blockIdx.x >= tiles;
  const A* const partial = static_cast<const A*>(p.partial) + (bias ? p.chunks * p.C : 0);
  add_chunks(partial, p.chunks, p.C, blockIdx.x % tiles, static_cast<Weight*>(bias ? p.dbias : p.dweight));
}

}  // namespace minigpt
