// A small matrix product for kernels that work on tiles: C (M, N) = or += A (M, K) B (K, N), of float, double, or pairs of
// bf16 (uint32_t: neighbours along K, the first in the lower half; K counts pairs, C is float).
// A register block of `Rows` rows by U vectors of C is kept while K goes by; A is broadcast element by element, so it may lie
// in memory in any order (a transposed A costs nothing), B and C are rows of whole vectors: N is a multiple of the lanes.
#pragma once
#include "dots.h"

namespace minigpt {

template <class E>
struct GemmParams {
  int64_t M, N, K;
  const E* a;
  int64_t a_row, a_column;  // strides of A
  const E* b;
  int64_t b_row;
  accumulate_t<E>* c;
  int64_t c_row;
  bool accumulate;
};

template <class E>
struct Gemm {
  using A = accumulate_t<E>;

  template <simd::Isa isa, int Rows, int U>
  static ALWAYS_INLINE void block(const GemmParams<E>& p, int64_t m, int64_t n) {
    using B = simd::Vector<E, isa.bytes>;
    constexpr int W = simd::lanes<E, isa.bytes>;
    const E *a = p.a + m * p.a_row, *b = p.b + n;
    A* c = p.c + m * p.c_row + n;
    simd::Vector<A, isa.bytes> sum[Rows][U] = {};
    for (int64_t k = 0; k < p.K; ++k, a += p.a_column, b += p.b_row) {
      B row[U];
      for (int u = 0; u < U; ++u) row[u] = *(const B*)(b + u * W);
      for (int r = 0; r < Rows; ++r)
        for (int u = 0; u < U; ++u) {
          if constexpr (std::is_same_v<E, uint32_t>)
            sum[r][u] = simd::dot_bf16<isa>(sum[r][u], B{} + a[r * p.a_row], row[u]);
          else
            sum[r][u] += a[r * p.a_row] * row[u];
        }
    }
    for (int r = 0; r < Rows; ++r)
      for (int u = 0; u < U; ++u) {
        A* place = c + r * p.c_row + u * W;
        simd::store<isa.bytes>(place, p.accumulate ? simd::load<isa.bytes>(place) + sum[r][u] : sum[r][u]);
      }
  }

  template <simd::Isa isa, int U>
  static ALWAYS_INLINE void columns(const GemmParams<E>& p, int64_t n) {
    constexpr int Rows = isa.bytes == 64 ? 8 : 4;  // Rows * U sums and U vectors of B must fit the registers
    int64_t m = 0;
    for (; m + Rows <= p.M; m += Rows) block<isa, Rows, U>(p, m, n);
    if constexpr (Rows == 8)
      for (; m + 4 <= p.M; m += 4) block<isa, 4, U>(p, m, n);
    for (; m < p.M; ++m) block<isa, 1, U>(p, m, n);
  }

  template <simd::Isa isa>
  static ALWAYS_INLINE void run(const GemmParams<E>& p) {
    constexpr int W = simd::lanes<E, isa.bytes>;
    int64_t n = 0;
    for (; n + 2 * W <= p.N; n += 2 * W) columns<isa, 2>(p, n);
    for (; n < p.N; n += W) columns<isa, 1>(p, n);
  }
};

}  // namespace minigpt
