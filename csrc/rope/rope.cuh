// RoPE. A block takes one token and rotates its heads; a thread takes W pairs of a head, x[i] and x[i + R/2], or W of the
// dimensions that pass through, and goes on a block further.
//   y[i] = x[i] cos - x[i + R/2] sin     y[i + R/2] = x[i + R/2] cos + x[i] sin
// x: (B, T, H, D) of T, by strides.  y: the same, contiguous.  cos, sin: (n_positions, R/2) of A, read again for each head,
// from the cache.  A token whose position is out of range becomes zeros: positions are not checked before a launch.
#pragma once
#include "../common/vector.cuh"
#include "rope.h"

namespace minigpt {

constexpr int kRopeThreads = 128;

// Elements a thread takes at a time: 16 bytes of cos and sin.
template <class A>
constexpr int kRopeWidth = 16 / int(sizeof(A));

template <class T, bool Inverse>
DEVICE void rotate_token(const RopeParams& p) {
  using A = accumulate_t<T>;
  constexpr int W = kRopeWidth<A>;
  const int64_t token = blockIdx.x, b = token / p.T, t = token % p.T, passed = p.D - 2 * p.half;
  const int64_t position = p.positions ? p.positions[token] : t;
  const bool known = position >= 0 && position < p.n_positions;
  const T* const x = static_cast<const T*>(p.x) + b * p.batch_stride + t * p.token_stride;
  T* const y = static_cast<T*>(p.y) + token * p.H * p.D;
  const A *const cos = static_cast<const A*>(p.cos) + position * p.half, *const sin = static_cast<const A*>(p.sin) +
                                                                                      position * p.half;

  const int pairs = int((p.half + W - 1) / W), groups = pairs + int((passed + W - 1) / W);  // of a head
  const int work = int(p.H) * groups;
  for (int item = threadIdx.x; item < work; item += kRopeThreads) {
    const int h = item / groups, group = item % groups;
    const T* const from = x + h * p.head_stride;
    T* const to = y + h * p.D;
    if (group < pairs) {
      const int64_t i = int64_t{group} * W, left = p.half - i;
      Vec<A, W> y1 = {}, y2 = {};
      if (known) {
        const auto x1 = load_part<W>(from + i, left), x2 = load_part<W>(from + p.half + i, left);
        const auto c = load_part<W>(cos + i, left), s = load_part<W>(sin + i, left);
#pragma unroll
        for (int e = 0; e < W; ++e) {
          const A turn = Inverse ? -s.at[e] : s.at[e];
          y1.at[e] = x1.at[e] * c.at[e] - x2.at[e] * turn;
          y2.at[e] = x2.at[e] * c.at[e] + x1.at[e] * turn;
        }
      }
      store_part<W>(to + i, y1, left);
      store_part<W>(to + p.half + i, y2, left);
    } else {
      const int64_t i = int64_t{group - pairs} * W, left = passed - i;
      Vec<A, W> same = {};
      if (known) same = load_part<W>(from + 2 * p.half + i, left);
      store_part<W>(to + 2 * p.half + i, same, left);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kRopeThreads) rope_forward_kernel(const __grid_constant__ RopeParams p) {
  rotate_token<T, false>(p);
}

template <class T>
__global__ void __launch_bounds__(kRopeThreads) rope_backward_kernel(const __grid_constant__ RopeParams p) {
  rotate_token<T, true>(p);
}

}  // namespace minigpt
