// Cross-entropy, forward with its gradient, in three kernels one after the other. Formulas: cross_entropy.h.
//   count: one block counts the rows that count.     share: one number of A, float (double for double)
//   rows:  a team of threads takes a row and shares its V logits: a warp for a short row, else a block. The first pass
//          keeps a running maximum and the sum below it in each thread; the second writes dlogits, from the cache.
//   mean:  one block adds up the rows' losses.
// A target that is no id (and not ignore_index) makes its row nan.
#pragma once
#include "../common/column_sums.cuh"
#include "cross_entropy.h"

namespace minigpt {

DEVICE int64_t target_of(const CrossEntropyForwardParams& p, int64_t row) {
  return p.targets_64 ? static_cast<const int64_t*>(p.targets)[row] : static_cast<const int32_t*>(p.targets)[row];
}

template <class A>
__global__ void __launch_bounds__(kRowThreads)
    cross_entropy_count_kernel(const __grid_constant__ CrossEntropyForwardParams p) {
  double count = 0;  // exact up to 2^53
  for (int64_t row = threadIdx.x; row < p.rows; row += kRowThreads) count += target_of(p, row) != p.ignore_index;
  count = team_sum<kRowThreads>(count);
  if (threadIdx.x == 0) *static_cast<A*>(p.share) = A(1 / count);
}

template <class T, int Team>
__global__ void __launch_bounds__(kRowThreads)
    cross_entropy_rows_kernel(const __grid_constant__ CrossEntropyForwardParams p) {
  using A = accumulate_t<T>;
  constexpr int W = kRowWidth<A>;
  const int64_t row = int64_t{blockIdx.x} * (kRowThreads / Team) + threadIdx.x / Team;
  if (row >= p.rows) return;  // a whole team leaves, and only a team of one warp can
  const int64_t first = threadIdx.x % Team * W, target = target_of(p, row);
  const T* const x = static_cast<const T*>(p.logits) + row * p.V;
  T* const dx = p.dlogits ? static_cast<T*>(p.dlogits) + row * p.V : nullptr;
  A* const loss = static_cast<A*>(p.row_loss) + row;
  if (target == p.ignore_index) {
    if (threadIdx.x % Team == 0) *loss = 0;
    for (int64_t c = first; dx && c < p.V; c += Team * W) store_part<W>(dx + c, Vec<A, W>{}, p.V - c);
    return;
  }

  A highest = -A(INFINITY), z = 0;
  for (int64_t c = first; c < p.V; c += Team * W) {
    const auto v = load_part<W>(x + c, p.V - c);
    A here = highest;
#pragma unroll
    for (int e = 0; e < W; ++e)
      if (c + e < p.V) here = std::fmax(here, v.at[e]);
    const A shift = here == -A(INFINITY) ? A(0) : here;
    if (here > highest) z *= std::exp(highest - here);
    highest = here;
#pragma unroll
    for (int e = 0; e < W; ++e)
      if (c + e < p.V) z += std::exp(v.at[e] - shift);
  }
  const A top = team_max<Team>(highest), shift = top == -A(INFINITY) ? A(0) : top;
  z = team_sum<Team>(highest == -A(INFINITY) ? z : z * std::exp(highest - shift));

  const A share = *static_cast<const A*>(p.share), factor = share / z;
  const bool known = target >= 0 && target < p.V;
  const A of_row = known ? std::log(z) - (static_cast<A>(x[target]) - shift) : A(NAN);
  if (threadIdx.x % Team == 0) *loss = of_row;
  for (int64_t c = first; dx && c < p.V; c += Team * W) {
    auto v = load_part<W>(x + c, p.V - c);
#pragma unroll
    for (int e = 0; e < W; ++e) {
      v.at[e] = known ? std::exp(v.at[e] - shift) * factor : A(NAN);
      if (c + e == target) v.at[e] = std::expm1(-of_row) * share;
    }
    store_part<W>(dx + c, v, p.V - c);
  }
}

template <class A>
__global__ void __launch_bounds__(kRowThreads)
    cross_entropy_mean_kernel(const __grid_constant__ CrossEntropyForwardParams p) {
  A sum = 0;
  for (int64_t row = threadIdx.x; row < p.rows; row += kRowThreads) sum += static_cast<const A*>(p.row_loss)[row];
  sum = team_sum<kRowThreads>(sum);
  if (threadIdx.x == 0) *static_cast<A*>(p.loss) = sum * *static_cast<const A*>(p.share);
}

// scaled = dlogits * dloss
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    cross_entropy_backward_kernel(const __grid_constant__ CrossEntropyBackwardParams p) {
  using A = accumulate_t<T>;
  constexpr int W = kRowWidth<A>;
  const int64_t i = (int64_t{blockIdx.x} * kRowThreads + threadIdx.x) * W;
  if (i >= p.n) return;
  const A dloss = *static_cast<const A*>(p.dloss);
  auto v = load_part<W>(static_cast<const T*>(p.dlogits) + i, p.n - i);
#pragma unroll
  for (int e = 0; e < W; ++e) v.at[e] *= dloss;
  store_part<W>(static_cast<T*>(p.scaled) + i, v, p.n - i);
}

}  // namespace minigpt
