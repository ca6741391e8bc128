// Sums over a row, and over chunks of rows, for the bodies of simd.h.
#pragma once
#include "parallel.h"
#include "simd.h"

namespace minigpt {

// The sum of f(i, Whole{}) over the whole vectors of a row, i = 0, W, ..., and f(i, elements left) of what is behind: four sums side by side, so that an addition need not wait for the
// one before.
template <class A, int Bytes, class F>
ALWAYS_INLINE A sum_over_row(int64_t C, const F& f) {
  constexpr int W = simd::lanes<A, Bytes>;
  simd::Vector<A, Bytes> sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * W <= C; i += 4 * W)
    for (int u = 0; u < 4; ++u) sum[u] += f(i + u * W, simd::Whole{});
  for (; i + W <= C; i += W) sum[0] += f(i, simd::Whole{});
  if (i < C) sum[0] += f(i, C - i);
  return simd::sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// Columns [begin, end) of sums (C,): partial (chunks, C), added in order.
template <class A, class Weight>
struct AddChunks {
  template <int Bytes>
  static ALWAYS_INLINE void run(const A* partial, int64_t chunks, int64_t C, Weight* sums, int64_t begin, int64_t end) {
    simd::each_vector<A, Bytes>(end - begin, [&](int64_t i, auto left) __attribute__((always_inline)) {
      simd::Vector<A, Bytes> total = {};
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        total += simd::load_part<Bytes>(partial + chunk * C + begin + i, left);
      simd::store_part<Bytes>(sums + begin + i, total, left);
    });
  }
};

template <class Weight, class A>
void add_chunks(const A* partial, int64_t chunks, int64_t C, void* sums) {
  parallel_ranges(C, 256, [&](int64_t begin, int64_t end) {
    simd::call<AddChunks<A, Weight>>(partial, chunks, C, static_cast<Weight*>(sums), begin, end);
  });
}

}  // namespace minigpt
