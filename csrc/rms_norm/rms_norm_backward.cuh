// RMSNorm backward, three kernels: dx row by row; dweight over chunks of rows; the chunks added in order.
//   xhat = x * rstd     g = dy * weight     dx = rstd * (g - xhat * avg(g * xhat))     dweight = sum_rows dy * xhat
// With a residual what was normed is s = residual + x, and its own gradient ds is added to dx.
// s: [rows, C] of Residual, by RowLayout.  ds, dresidual: [rows, C] of Residual.  dy, dx: [rows, C] of T.
// weight, dweight: [C] of Weight.  rstd: [rows], partial: [chunks, C] of A.
#pragma once
#include "rms_norm_forward.cuh"

namespace minigpt {

// A team of threads takes a row, as in the forward.
template <class T, class Residual, class Weight, int Team>
__global__ void __launch_bounds__(kRowThreads)
    rms_norm_backward_dx_kernel(const __grid_constant__ RmsNormBackwardParams p) {
  using A = accumulate_t<T>;
  constexpr int W = kRowWidth<A>;
  const int64_t row = int64_t{blockIdx.x} * (kRowThreads / Team) + threadIdx.x / Team;
  if (row >= p.rows) return;  // a whole team leaves, and only one within a warp can
  const int64_t first = threadIdx.x % Team * W;
  const T* const dy = static_cast<const T*>(p.dy) + row * p.C;
  const Residual* const s = row_of<Residual>(p.s, p.layout, row);
  T* const dx = static_cast<T*>(p.dx) + row * p.C;
  const Weight* const weight = static_cast<const Weight*>(p.weight);
  const A rstd = static_cast<const A*>(p.rstd)[row];

  A sum_gx = 0;
  for (int64_t c = first; c < p.C; c += Team * W) {
    const auto d = load_part<W>(dy + c, p.C - c), v = load_part<W>(s + c, p.C - c);
    const auto w = load_part<W>(weight + c, p.C - c);
#pragma unroll
    for (int e = 0; e < W; ++e) sum_gx += d.at[e] * w.at[e] * (v.at[e] * rstd);  // 0 past the row's end
  }
  const A avg_gx = team_sum<Team>(sum_gx) / A(p.C);

  for (int64_t c = first; c < p.C; c += Team * W) {
    auto d = load_part<W>(dy + c, p.C - c);
    const auto v = load_part<W>(s + c, p.C - c);
    const auto w = load_part<W>(weight + c, p.C - c);
#pragma unroll
    for (int e = 0; e < W; ++e) d.at[e] = rstd * (d.at[e] * w.at[e] - v.at[e] * rstd * avg_gx);
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
    rms_norm_backward_partial_kernel(const __grid_constant__ RmsNormBackwardParams p) {
  using A = accumulate_t<T>;
  const int64_t tiles = column_tiles(p.C);
  const int64_t chunk = blockIdx.x / tiles, c = blockIdx.x % tiles * kColumns + threadIdx.x % kColumns;
  const int64_t each = (p.rows + p.chunks - 1) / p.chunks;
  const int64_t begin = chunk * each, end = begin + each < p.rows ? begin + each : p.rows;
  const A* const rstd = static_cast<const A*>(p.rstd);

  A dweight = 0;
  if (c < p.C) {
    const T* const dy = static_cast<const T*>(p.dy) + c;
    for (int64_t row = begin + threadIdx.x / kColumns; row < end; row += kColumnRows)
      dweight += static_cast<A>(dy[row * p.C]) * (static_cast<A>(row_of<Residual>(p.s, p.layout, row)[c]) * rstd[row]);
  }
  dweight = column_sum(dweight);
  if (threadIdx.x < kColumns && c < p.C) static_cast<A*>(p.partial)[chunk * p.C + c] = dweight;
}

// A block adds the chunks of 32 columns.
template <class A, class Weight>
__global__ void __launch_bounds__(kRowThreads)
    rms_norm_backward_finish_kernel(const __grid_constant__ RmsNormBackwardParams p) {
  add_chunks(static_cast<const A*>(p.partial), p.chunks, p.C, blockIdx.x, static_cast<Weight*>(p.dweight));
}

}  // namespace minigpt
