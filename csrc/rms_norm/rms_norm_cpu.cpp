#include <algorithm>
#include <cmath>

#include "../common/column_sums_cpu.h"
#include "../common/dispatch.h"
#include "../common/stream.h"
#include "rms_norm.h"

namespace minigpt {
namespace {

template <class T>
const T* row_of(const void* x, const RowLayout& l, int64_t row) {
  return static_cast<const T*>(x) + row / l.inner * l.outer_stride + row % l.inner * l.inner_stride;
}

template <class T, class Residual, class Weight>
struct Forward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const RmsNormForwardParams* p, int64_t begin, int64_t end) {
    using A = accumulate_t<T>;
    using V = simd::Vector<A, Bytes>;
    const int64_t C = p->C, ahead = 2 * p->layout.inner_stride;
    const Weight* weight = static_cast<const Weight*>(p->weight);
    const bool streamed = is_streamed(p->y, p->rows * C * sizeof(T), C * sizeof(T));
    for (int64_t row = begin; row < end; ++row) {
      const T* x = row_of<T>(p->x, p->layout, row);
      const Residual* s = row_of<Residual>(p->x, p->layout, row);  // without a residual both types are one
      T* y = static_cast<T*>(p->y) + row * C;
      if (p->residual) {
        const Residual* residual = static_cast<const Residual*>(p->residual) + row * C;
        Residual* added = static_cast<Residual*>(p->s) + row * C;
        simd::each_vector<A, Bytes>(C, [&](int64_t i, auto left) __attribute__((always_inline)) {
          const V v = simd::load_part<Bytes>(residual + i, left) + simd::load_part<Bytes>(x + i, left);
          simd::store_part<Bytes>(added + i, v, left);
        });
        s = added;
      }
      const auto square = [&](int64_t i, auto left) __attribute__((always_inline)) {
        const V v = simd::load_part<Bytes>(s + i, left);
        return v * v;
      };
      const A rstd = A(1) / std::sqrt(sum_over_row<A, Bytes>(C, square) / A(C) + A(p->eps));
      simd::each_vector<A, Bytes>(C, [&](int64_t i, auto left) __attribute__((always_inline)) {
        __builtin_prefetch(x + ahead + i);  // the memory would be idle while a row's sum is waited for
        const V w = simd::load_part<Bytes>(weight + i, left);
        simd::store_part<Bytes>(y + i, simd::load_part<Bytes>(s + i, left) * rstd * w, left, streamed);
      });
      if (p->rstd) static_cast<A*>(p->rstd)[row] = rstd;
    }
    if (streamed) simd::end_stream();
  }
};

// One chunk of rows: dx of each, and the chunk's own share of dweight. A few rows are taken at a time, so that the weights
// and the shares are loaded and stored once for all of them.
template <class T, class Residual, class Weight>
struct Backward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const RmsNormBackwardParams* p, int64_t chunk, int64_t begin, int64_t end) {
    using A = accumulate_t<T>;
    A* dweight = static_cast<A*>(p->partial) + chunk * p->C;
    std::fill_n(dweight, p->C, A(0));
    const int64_t row_bytes = p->C * sizeof(T);
    const bool streamed = is_streamed(p->dx, p->rows * row_bytes, row_bytes);
    int64_t row = begin;
    for (; row + 4 <= end; row += 4) rows<Bytes, 4>(*p, row, dweight, streamed);
    for (; row < end; ++row) rows<Bytes, 1>(*p, row, dweight, streamed);
    if (streamed) simd::end_stream();
  }

  template <int Bytes, int Rows, class A>
  static ALWAYS_INLINE void rows(const RmsNormBackwardParams& p, int64_t row, A* dweight, bool streamed) {
    using V = simd::Vector<A, Bytes>;
    const int64_t C = p.C, ahead = Rows * p.layout.inner_stride;
    const T* const dy = static_cast<const T*>(p.dy) + row * C;
    const Weight* const weight = static_cast<const Weight*>(p.weight);
    const Residual* s[Rows];
    A rstd[Rows], avg_gx[Rows];
    V sum_gx[Rows] = {};
    for (int r = 0; r < Rows; ++r) {
      s[r] = row_of<Residual>(p.s, p.layout, row + r);
      rstd[r] = static_cast<const A*>(p.rstd)[row + r];
    }
    simd::each_vector<A, Bytes>(C, [&](int64_t i, auto left) __attribute__((always_inline)) {
      const V w = simd::load_part<Bytes>(weight + i, left);
      V dw = simd::load_part<Bytes>(dweight + i, left);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const V d = simd::load_part<Bytes>(dy + r * C + i, left);
        const V dx = d * (simd::load_part<Bytes>(s[r] + i, left) * rstd[r]);
        sum_gx[r] += dx * w;
        dw += dx;
      }
      simd::store_part<Bytes>(dweight + i, dw, left);
    });
    for (int r = 0; r < Rows; ++r) avg_gx[r] = simd::sum(sum_gx[r]) / A(C);
    simd::each_vector<A, Bytes>(C, [&](int64_t i, auto left) __attribute__((always_inline)) {
      const V w = simd::load_part<Bytes>(weight + i, left);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const int64_t at = r * C + i;
        __builtin_prefetch(dy + Rows * C + at);
        __builtin_prefetch(s[r] + ahead + i);
        const V g = simd::load_part<Bytes>(dy + at, left) * w;
        const V xhat = simd::load_part<Bytes>(s[r] + i, left) * rstd[r];
        V v = rstd[r] * (g - xhat * avg_gx[r]);
        if (p.ds) v += simd::load_part<Bytes>(static_cast<const Residual*>(p.ds) + row * C + at, left);
        simd::store_part<Bytes>(static_cast<T*>(p.dx) + row * C + at, v, left, streamed);
        if (p.dresidual) simd::store_part<Bytes>(static_cast<Residual*>(p.dresidual) + row * C + at, v, left);
      }
    });
  }
};

}  // namespace

void rms_norm_forward_rows_cpu(const RmsNormForwardParams& p, int64_t begin, int64_t end) {
  dispatch_residual(p.dtype, p.residual_dtype, p.weight_dtype, [&](auto type, auto residual_type, auto weight_type) {
    using Body = Forward<typename decltype(type)::type, typename decltype(residual_type)::type,
                         typename decltype(weight_type)::type>;
    simd::call<Body>(&p, begin, end);
  });
}

void rms_norm_forward_cpu(const RmsNormForwardParams& p) {
  const int64_t rows_a_task = std::max<int64_t>(1, 16384 / p.C);
  parallel_ranges(p.rows, rows_a_task, [&](int64_t begin, int64_t end) { rms_norm_forward_rows_cpu(p, begin, end); });
}

void rms_norm_backward_cpu(const RmsNormBackwardParams& p) {
  dispatch_residual(p.dtype, p.residual_dtype, p.weight_dtype, [&](auto type, auto residual_type, auto weight_type) {
    using T = typename decltype(type)::type;
    using Weight = typename decltype(weight_type)::type;
    const int64_t rows_a_chunk = (p.rows + p.chunks - 1) / p.chunks;
    run_tasks(p.chunks, /*in_runs=*/true, [&](int64_t chunk) {
      const int64_t begin = std::min(p.rows, chunk * rows_a_chunk), end = std::min(p.rows, begin + rows_a_chunk);
      simd::call<Backward<T, typename decltype(residual_type)::type, Weight>>(&p, chunk, begin, end);
    });
    add_chunks<Weight>(static_cast<const accumulate_t<T>*>(p.partial), p.chunks, p.C, p.dweight);
  });
}

}  // namespace minigpt
