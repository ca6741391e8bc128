#include <algorithm>
#include <cmath>

#include "../common/column_sums_cpu.h"
#include "../common/dispatch.h"
#include "rms_norm.h"

namespace minigpt {
namespace {

template <class T>
const T* row_of(const void* x, const RowLayout& l, int64_t row) {
  return static_cast<const T*>(x) + row / l.inner * l.outer_stride + row % l.inner * l.inner_stride;
}

template <class T, class Weight>
struct Forward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const RmsNormForwardParams* p, int64_t begin, int64_t end) {
    using A = accumulate_t<T>;
    using V = simd::Vector<A, Bytes>;
    const int64_t C = p->C, ahead = 2 * p->layout.inner_stride;
    const Weight* weight = static_cast<const Weight*>(p->weight);
    for (int64_t row = begin; row < end; ++row) {
      const T* x = row_of<T>(p->x, p->layout, row);
      T* y = static_cast<T*>(p->y) + row * C;
      const auto square = [&](int64_t i) __attribute__((always_inline)) {
        const V v = simd::load_part<Bytes>(x + i, C - i);
        return v * v;
      };
      const A rstd = A(1) / std::sqrt(sum_over_row<A, Bytes>(C, square) / A(C) + A(p->eps));
      for (int64_t i = 0; i < C; i += simd::lanes<A, Bytes>) {
        __builtin_prefetch(x + ahead + i);  // the memory would be idle while a row's sum is waited for
        const V w = simd::load_part<Bytes>(weight + i, C - i);
        simd::store_part<Bytes>(y + i, simd::load_part<Bytes>(x + i, C - i) * rstd * w, C - i);
      }
      static_cast<A*>(p->rstd)[row] = rstd;
    }
  }
};

// One chunk of rows: dx of each, and the chunk's own share of dweight.
template <class T, class Weight>
struct Backward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const RmsNormBackwardParams* p, int64_t chunk, int64_t begin, int64_t end) {
    using A = accumulate_t<T>;
    using V = simd::Vector<A, Bytes>;
    const int64_t C = p->C, ahead = 2 * p->layout.inner_stride;
    const Weight* weight = static_cast<const Weight*>(p->weight);
    A* dweight = static_cast<A*>(p->partial) + chunk * C;
    std::fill_n(dweight, C, A(0));
    for (int64_t row = begin; row < end; ++row) {
      const T *x = row_of<T>(p->x, p->layout, row), *dy = static_cast<const T*>(p->dy) + row * C;
      T* dx = static_cast<T*>(p->dx) + row * C;
      const A rstd = static_cast<const A*>(p->rstd)[row];
      const auto product = [&](int64_t i) __attribute__((always_inline)) {
        const V d = simd::load_part<Bytes>(dy + i, C - i), xhat = simd::load_part<Bytes>(x + i, C - i) * rstd;
        simd::store_part<Bytes>(dweight + i, simd::load_part<Bytes>(dweight + i, C - i) + d * xhat, C - i);
        return d * simd::load_part<Bytes>(weight + i, C - i) * xhat;
      };
      const A avg_gx = sum_over_row<A, Bytes>(C, product) / A(C);
      for (int64_t i = 0; i < C; i += simd::lanes<A, Bytes>) {
        __builtin_prefetch(x + ahead + i);
        __builtin_prefetch(dy + 2 * C + i);
        const V g = simd::load_part<Bytes>(dy + i, C - i) * simd::load_part<Bytes>(weight + i, C - i);
        const V xhat = simd::load_part<Bytes>(x + i, C - i) * rstd;
        simd::store_part<Bytes>(dx + i, rstd * (g - xhat * avg_gx), C - i);
      }
    }
  }
};

}  // namespace

void rms_norm_forward_cpu(const RmsNormForwardParams& p) {
  dispatch_pair(p.dtype, p.weight_dtype, [&](auto type, auto weight_type) {
    using Body = Forward<typename decltype(type)::type, typename decltype(weight_type)::type>;
    const int64_t rows_a_task = std::max<int64_t>(1, 16384 / p.C);
    parallel_ranges(p.rows, rows_a_task, [&](int64_t begin, int64_t end) { simd::call<Body>(&p, begin, end); });
  });
}

void rms_norm_backward_cpu(const RmsNormBackwardParams& p) {
  dispatch_pair(p.dtype, p.weight_dtype, [&](auto type, auto weight_type) {
    using T = typename decltype(type)::type;
    using Weight = typename decltype(weight_type)::type;
    const int64_t rows_a_chunk = (p.rows + p.chunks - 1) / p.chunks;
    run_tasks(p.chunks, /*in_runs=*/true, [&](int64_t chunk) {
      const int64_t begin = std::min(p.rows, chunk * rows_a_chunk), end = std::min(p.rows, begin + rows_a_chunk);
      simd::call<Backward<T, Weight>>(&p, chunk, begin, end);
    });
    add_chunks<Weight>(static_cast<const accumulate_t<T>*>(p.partial), p.chunks, p.C, p.dweight);
  });
}

}  // namespace minigpt
