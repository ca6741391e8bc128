// A small matrix product for kernels that work on tiles: C (M, N) = or += A (M, K) B (K, N), in float or double.
// A register block of `Rows` rows by U vectors of C is kept while K goes by; A is broadcast element by element, so it may lie
// in memory in any order (a transposed A costs nothing), B and C are rows of whole vectors: N is a multiple of the lanes.
#pragma once
#include "simd.h"

namespace minigpt {

template <class A>
struct GemmParams {
  int64_t M, N, K;
  const A* a;
  int64_t a_row, a_column;  // strides of A
  const A* b;
  int64_t b_row;
  A* c;
  int64_t c_row;
  bool accumulate;
};

template <class A>
struct Gemm {
  template <int Bytes, int Rows, int U>
  static ALWAYS_INLINE void block(const GemmParams<A>& p, int64_t m, int64_t n) {
    constexpr int W = simd::lanes<A, Bytes>;
    const A *a = p.a + m * p.a_row, *b = p.b + n;
    A* c = p.c + m * p.c_row + n;
    simd::Vector<A, Bytes> sum[Rows][U] = {};
    for (int64_t k = 0; k < p.K; ++k, a += p.a_column, b += p.b_row) {
      simd::Vector<A, Bytes> row[U];
      for (int u = 0; u < U; ++u) row[u] = simd::load<Bytes>(b + u * W);
      for (int r = 0; r < Rows; ++r)
        for (int u = 0; u < U; ++u) sum[r][u] += a[r * p.a_row] * row[u];
    }
    for (int r = 0; r < Rows; ++r)
      for (int u = 0; u < U; ++u) {
        A* place = c + r * p.c_row + u * W;
        simd::store<Bytes>(place, p.accumulate ? simd::load<Bytes>(place) + sum[r][u] : sum[r][u]);
      }
  }

  template <int Bytes, int U>
  static ALWAYS_INLINE void columns(const GemmParams<A>& p, int64_t n) {
    constexpr int Rows = Bytes == 64 ? 8 : 4;  // Rows * U sums and U vectors of B must fit the registers
    int64_t m = 0;
    for (; m + Rows <= p.M; m += Rows) block<Bytes, Rows, U>(p, m, n);
    for (; m < p.M; ++m) block<Bytes, 1, U>(p, m, n);
  }

  template <int Bytes>
  static ALWAYS_INLINE void run(const GemmParams<A>& p) {
    constexpr int W = simd::lanes<A, Bytes>;
    int64_t n = 0;
    for (; n + 2 * W <= p.N; n += 2 * W) columns<Bytes, 2>(p, n);
    for (; n < p.N; n += W) columns<Bytes, 1>(p, n);
  }
};

}  // namespace minigpt
