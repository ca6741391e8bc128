#include <algorithm>

#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "../common/stream.h"
#include "swiglu.h"

namespace minigpt {
namespace {

constexpr int64_t kChunk = 8192;  // values of y a task

// Beyond, s is 0 or 1; within, e^(-gate) and 1 / (1 + e^(-gate)) are finite and not 0.
template <class A>
constexpr A kLimit = sizeof(A) == 4 ? 85 : 700;

// silu(gate) and its slope; for a gate of -infinity both are 0.
template <class V>
struct Silu {
  V value, slope;
};

template <int Bytes, class V>
ALWAYS_INLINE Silu<V> silu(V gate) {
  using A = std::remove_reference_t<decltype(gate[0])>;
  const V limit = V{} + kLimit<A>, near = gate < -limit ? -limit : gate > limit ? limit : gate;
  const V e = simd::exp<Bytes>(-near), s = simd::reciprocal<Bytes>(1 + e);  // 1 - s = e s, without cancelling
  const V share = gate < -limit ? V{} : s;
  return {gate < -limit ? V{} : gate * s, share + near * share * (e * s)};
}

// A run of n values within one row.
template <class T>
struct Forward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const T* gate, const T* up, T* y, int64_t n, bool streamed) {
    simd::each_vector<accumulate_t<T>, Bytes>(n, [&](int64_t i, auto left) __attribute__((always_inline)) {
      simd::fetch_ahead(gate + i);
      simd::fetch_ahead(up + i);
      const auto g = silu<Bytes>(simd::load_part<Bytes>(gate + i, left));
      simd::store_part<Bytes>(y + i, g.value * simd::load_part<Bytes>(up + i, left), left, streamed);
    });
    if (streamed) simd::end_stream();
  }
};

template <class T>
struct Backward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const T* dy, const T* gate, const T* up, T* dgate, T* dup, int64_t n, bool streamed) {
    simd::each_vector<accumulate_t<T>, Bytes>(n, [&](int64_t i, auto left) __attribute__((always_inline)) {
      simd::fetch_ahead(gate + i);
      simd::fetch_ahead(up + i);
      simd::fetch_ahead(dy + i);
      const auto g = silu<Bytes>(simd::load_part<Bytes>(gate + i, left));
      const auto d = simd::load_part<Bytes>(dy + i, left);
      simd::store_part<Bytes>(dgate + i, d * simd::load_part<Bytes>(up + i, left) * g.slope, left, streamed);
      simd::store_part<Bytes>(dup + i, d * g.value, left, streamed);
    });
    if (streamed) simd::end_stream();
  }
};

// Calls run(row, first column, columns) for the pieces of rows that the tasks consist of.
template <class F>
void parallel_pieces(int64_t rows, int64_t columns, const F& run) {
  parallel_ranges(rows * columns, kChunk, [&](int64_t begin, int64_t end) {
    for (int64_t n; begin < end; begin += n) {
      n = std::min(end - begin, columns - begin % columns);
      run(begin / columns, begin % columns, n);
    }
  });
}

}  // namespace

void swiglu_forward_cpu(const SwigluForwardParams& p) {
  dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    parallel_pieces(p.rows, p.F, [&](int64_t row, int64_t column, int64_t n) {
      const T* gate = static_cast<const T*>(p.x) + row * 2 * p.F + column;
      simd::call<Forward<T>>(gate, gate + p.F, static_cast<T*>(p.y) + row * p.F + column, n,
                             is_streamed(p.y, p.rows * p.F * sizeof(T), p.F * sizeof(T)));
    });
  });
}

void swiglu_backward_cpu(const SwigluBackwardParams& p) {
  dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    parallel_pieces(p.rows, p.F, [&](int64_t row, int64_t column, int64_t n) {
      const T* gate = static_cast<const T*>(p.x) + row * 2 * p.F + column;
      T* dgate = static_cast<T*>(p.dx) + row * 2 * p.F + column;
      const T* dy = static_cast<const T*>(p.dy) + row * p.F + column;
      simd::call<Backward<T>>(dy, gate, gate + p.F, dgate, dgate + p.F, n,
                              is_streamed(p.dx, 2 * p.rows * p.F * sizeof(T), p.F * sizeof(T)));
    });
  });
}

}  // namespace minigpt
