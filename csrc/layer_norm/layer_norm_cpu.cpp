#include <algorithm>
#include <cmath>

#include "../common/column_sums_cpu.h"
#include "../common/dispatch.h"
#include "../common/scratch.h"
#include "../common/stream.h"
#include "layer_norm.h"

namespace minigpt {
namespace {

constexpr int64_t kAhead = 1024;  // the least number of values that memory is asked for ahead of their use

// A few rows at a time: while one waits for its sums, another adds up.
template <class T, class Residual, class Weight>
struct Forward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const LayerNormForwardParams* p, int64_t begin, int64_t end) {
    const int64_t row_bytes = p->C * sizeof(T), s_row_bytes = p->C * sizeof(Residual);
    const bool streamed = is_streamed(p->y, p->rows * row_bytes, row_bytes);
    const bool s_streamed = streamed && p->residual && is_streamed(p->s, p->rows * s_row_bytes, s_row_bytes);
    Scratch scratch(s_streamed ? Scratch::bytes_for<Residual>(4 * p->C) : 0);
    Residual* const kept = s_streamed ? scratch.take<Residual>(4 * p->C) : nullptr;
    int64_t row = begin;
    for (; row + 4 <= end; row += 4) rows<Bytes, 4>(*p, row, streamed, kept);
    for (; row < end; ++row) rows<Bytes, 1>(*p, row, streamed, kept);
    if (streamed) simd::end_stream();
  }

  // kept: where a few rows of s stay until they are stored past the caches; null where they are stored at once.
  template <int Bytes, int Rows>
  static ALWAYS_INLINE void rows(const LayerNormForwardParams& p, int64_t row, bool streamed, Residual* kept) {
    using A = accumulate_t<T>;
    using V = simd::Vector<A, Bytes>;
    const int64_t C = p.C, ahead = std::max<int64_t>(Rows * C, kAhead);
    const Weight *const weight = static_cast<const Weight*>(p.weight), *const bias = static_cast<const Weight*>(p.bias);
    const T* const x = static_cast<const T*>(p.x) + row * C;
    const Residual* s = static_cast<const Residual*>(p.x) + row * C;  // without a residual both types are one
    T* const y = static_cast<T*>(p.y) + row * C;
    V sum[Rows] = {}, squares[Rows] = {};
    A mean[Rows], rstd[Rows];
    const Residual* const residual = p.residual ? static_cast<const Residual*>(p.residual) + row * C : nullptr;
    Residual* const s_out = p.residual ? static_cast<Residual*>(p.s) + row * C : nullptr;
    if (residual) {
      Residual* const added = kept ? kept : s_out;
      for (int r = 0; r < Rows; ++r)
        simd::each_vector<A, Bytes>(C, [&](int64_t i, auto n) __attribute__((always_inline)) {
          const int64_t at = r * C + i;
          simd::store_part<Bytes>(added + at,
                                  simd::load_part<Bytes>(residual + at, n) + simd::load_part<Bytes>(x + at, n), n);
        });
      s = added;
    }
    simd::each_vector<A, Bytes>(C, [&](int64_t i, auto n) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) sum[r] += simd::load_part<Bytes>(s + r * C + i, n);
    });
    for (int r = 0; r < Rows; ++r) mean[r] = simd::sum(sum[r]) / A(C);
    simd::each_vector<A, Bytes>(C, [&](int64_t i, auto n) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const V d = simd::load_part<Bytes>(s + r * C + i, n) - mean[r];
        squares[r] += simd::keep_first<Bytes>(d * d, n);  // past the end d is -mean
      }
    });
    for (int r = 0; r < Rows; ++r) rstd[r] = A(1) / std::sqrt(simd::sum(squares[r]) / A(C) + A(p.eps));
    simd::each_vector<A, Bytes>(C, [&](int64_t i, auto n) __attribute__((always_inline)) {
      const V w = simd::load_part<Bytes>(weight + i, n), b = bias ? simd::load_part<Bytes>(bias + i, n) : V{};
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const int64_t at = r * C + i;
        __builtin_prefetch(x + ahead + at);  // the memory would be idle while the sums are waited for
        if (residual) __builtin_prefetch(residual + ahead + at);
        const V v = simd::load_part<Bytes>(s + at, n);
        if (kept) simd::store_part<Bytes>(s_out + at, v, n, streamed);
        simd::store_part<Bytes>(y + at, (v - mean[r]) * rstd[r] * w + b, n, streamed);
      }
    });
    for (int r = 0; r < Rows; ++r) {
      if (p.mean) static_cast<A*>(p.mean)[row + r] = mean[r];
      if (p.rstd) static_cast<A*>(p.rstd)[row + r] = rstd[r];
    }
  }
};

// One chunk of rows: dx of each, and the chunk's own share of dweight and dbias. A few rows are taken at a time, so that
// the weights and the shares are loaded and stored once for all of them.
template <class T, class Residual, class Weight>
struct Backward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const LayerNormBackwardParams* p, int64_t chunk, int64_t begin, int64_t end) {
    using A = accumulate_t<T>;
    A *dweight = static_cast<A*>(p->partial) + chunk * p->C, *dbias = dweight + p->chunks * p->C;
    std::fill_n(dweight, p->C, A(0));
    std::fill_n(dbias, p->C, A(0));
    const int64_t row_bytes = p->C * sizeof(T);
    const bool streamed = is_streamed(p->dx, p->rows * row_bytes, row_bytes);
    int64_t row = begin;
    for (; row + 4 <= end; row += 4) rows<Bytes, 4>(*p, row, dweight, dbias, streamed);
    for (; row < end; ++row) rows<Bytes, 1>(*p, row, dweight, dbias, streamed);
    if (streamed) simd::end_stream();
  }

  template <int Bytes, int Rows, class A>
  static ALWAYS_INLINE void rows(const LayerNormBackwardParams& p, int64_t row, A* dweight, A* dbias, bool streamed) {
    using V = simd::Vector<A, Bytes>;
    const int64_t C = p.C, ahead = std::max<int64_t>(Rows * C, kAhead);
    const T* const dy = static_cast<const T*>(p.dy) + row * C;
    const Residual* const s = static_cast<const Residual*>(p.s) + row * C;
    const Weight* const weight = static_cast<const Weight*>(p.weight);
    A mean[Rows], rstd[Rows], avg_g[Rows], avg_gx[Rows];
    V sum_g[Rows] = {}, sum_gx[Rows] = {};
    for (int r = 0; r < Rows; ++r) {
      mean[r] = static_cast<const A*>(p.mean)[row + r];
      rstd[r] = static_cast<const A*>(p.rstd)[row + r];
    }
    simd::each_vector<A, Bytes>(C, [&](int64_t i, auto n) __attribute__((always_inline)) {
      const V w = simd::load_part<Bytes>(weight + i, n);
      V dw = simd::load_part<Bytes>(dweight + i, n), db = simd::load_part<Bytes>(dbias + i, n);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const V d = simd::load_part<Bytes>(dy + r * C + i, n);
        const V xhat = (simd::load_part<Bytes>(s + r * C + i, n) - mean[r]) * rstd[r];
        const V g = d * w;
        sum_g[r] += g;
        sum_gx[r] += g * xhat;  // g is zero in lanes past the end
        dw += d * xhat;
        db += d;
      }
      simd::store_part<Bytes>(dweight + i, dw, n);
      simd::store_part<Bytes>(dbias + i, db, n);
    });
    for (int r = 0; r < Rows; ++r) avg_g[r] = simd::sum(sum_g[r]) / A(C), avg_gx[r] = simd::sum(sum_gx[r]) / A(C);
    simd::each_vector<A, Bytes>(C, [&](int64_t i, auto n) __attribute__((always_inline)) {
      const V w = simd::load_part<Bytes>(weight + i, n);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        const int64_t at = r * C + i;
        __builtin_prefetch(dy + ahead + at);
        __builtin_prefetch(s + ahead + at);
        const V g = simd::load_part<Bytes>(dy + at, n) * w;
        const V xhat = (simd::load_part<Bytes>(s + at, n) - mean[r]) * rstd[r];
        V v = rstd[r] * (g - avg_g[r] - xhat * avg_gx[r]);
        if (p.ds) v += simd::load_part<Bytes>(static_cast<const Residual*>(p.ds) + row * C + at, n);
        simd::store_part<Bytes>(static_cast<T*>(p.dx) + row * C + at, v, n, streamed);
        if (p.dresidual) simd::store_part<Bytes>(static_cast<Residual*>(p.dresidual) + row * C + at, v, n);
      }
    });
  }
};

}  // namespace

void layer_norm_forward_rows_cpu(const LayerNormForwardParams& p, int64_t begin, int64_t end) {
  dispatch_residual(p.dtype, p.residual_dtype, p.weight_dtype, [&](auto type, auto residual_type, auto weight_type) {
    using Body = Forward<typename decltype(type)::type, typename decltype(residual_type)::type,
                         typename decltype(weight_type)::type>;
    simd::call<Body>(&p, begin, end);
  });
}

void layer_norm_forward_cpu(const LayerNormForwardParams& p) {
  const int64_t rows_a_task = std::max<int64_t>(1, 16384 / p.C);
  parallel_ranges(p.rows, rows_a_task, [&](int64_t begin, int64_t end) { layer_norm_forward_rows_cpu(p, begin, end); });
}

void layer_norm_backward_cpu(const LayerNormBackwardParams& p) {
  dispatch_residual(p.dtype, p.residual_dtype, p.weight_dtype, [&](auto type, auto residual_type, auto weight_type) {
    using T = typename decltype(type)::type;
    using Weight = typename decltype(weight_type)::type;
    const int64_t rows_a_chunk = (p.rows + p.chunks - 1) / p.chunks;
    run_tasks(p.chunks, /*in_runs=*/true, [&](int64_t chunk) {
      const int64_t begin = std::min(p.rows, chunk * rows_a_chunk), end = std::min(p.rows, begin + rows_a_chunk);
      simd::call<Backward<T, typename decltype(residual_type)::type, Weight>>(&p, chunk, begin, end);
    });
    const auto* const partial = static_cast<const accumulate_t<T>*>(p.partial);
    add_chunks<Weight>(partial, p.chunks, p.C, p.dweight);
    if (p.dbias) add_chunks<Weight>(partial + p.chunks * p.C, p.chunks, p.C, p.dbias);
  });
}

}  // namespace minigpt
