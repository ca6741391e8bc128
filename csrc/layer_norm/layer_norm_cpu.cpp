#include <algorithm>
#include <cmath>

#include "../common/column_sums_cpu.h"
#include "../common/dispatch.h"
#include "layer_norm.h"

namespace minigpt {
namespace {

template <class T, class Weight>
struct Forward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const LayerNormForwardParams* p, int64_t begin, int64_t end) {
    using A = accumulate_t<T>;
    using V = simd::Vector<A, Bytes>;
    constexpr int W = simd::lanes<A, Bytes>;
    const int64_t C = p->C;
    const Weight *weight = static_cast<const Weight*>(p->weight), *bias = static_cast<const Weight*>(p->bias);
    for (int64_t row = begin; row < end; ++row) {
      const T* x = static_cast<const T*>(p->x) + row * C;
      T* y = static_cast<T*>(p->y) + row * C;
      const auto value = [&](int64_t i) __attribute__((always_inline)) { return simd::load_part<Bytes>(x + i, C - i); };
      const A mean = sum_over_row<A, Bytes>(C, value) / A(C);
      const auto square = [&](int64_t i) __attribute__((always_inline)) {
        const V d = value(i) - mean;
        return i + W <= C ? d * d : simd::keep_first<Bytes>(d * d, C - i);  // past the end d is -mean
      };
      const A variance = sum_over_row<A, Bytes>(C, square) / A(C);
      const A rstd = A(1) / std::sqrt(variance + A(p->eps));
      for (int64_t i = 0; i < C; i += W) {
        __builtin_prefetch(x + 2 * C + i);  // the memory would be idle while a row's sums are waited for
        V v = (simd::load_part<Bytes>(x + i, C - i) - mean) * rstd * simd::load_part<Bytes>(weight + i, C - i);
        if (bias) v += simd::load_part<Bytes>(bias + i, C - i);
        simd::store_part<Bytes>(y + i, v, C - i);
      }
      static_cast<A*>(p->mean)[row] = mean;
      static_cast<A*>(p->rstd)[row] = rstd;
    }
  }
};

// One chunk of rows: dx of each, and the chunk's own share of dweight and dbias.
template <class T, class Weight>
struct Backward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const LayerNormBackwardParams* p, int64_t chunk, int64_t begin, int64_t end) {
    using A = accumulate_t<T>;
    using V = simd::Vector<A, Bytes>;
    constexpr int W = simd::lanes<A, Bytes>;
    const int64_t C = p->C;
    const Weight* weight = static_cast<const Weight*>(p->weight);
    A *dweight = static_cast<A*>(p->partial) + chunk * C, *dbias = dweight + p->chunks * C;
    std::fill_n(dweight, C, A(0));
    std::fill_n(dbias, C, A(0));
    for (int64_t row = begin; row < end; ++row) {
      const T *x = static_cast<const T*>(p->x) + row * C, *dy = static_cast<const T*>(p->dy) + row * C;
      T* dx = static_cast<T*>(p->dx) + row * C;
      const A mean = static_cast<const A*>(p->mean)[row], rstd = static_cast<const A*>(p->rstd)[row];
      V sum_g = {}, sum_gx = {};
      for (int64_t i = 0; i < C; i += W) {
        const V d = simd::load_part<Bytes>(dy + i, C - i), xhat = (simd::load_part<Bytes>(x + i, C - i) - mean) * rstd;
        const V g = d * simd::load_part<Bytes>(weight + i, C - i);
        sum_g += g;
        sum_gx += g * xhat;  // g is zero in lanes past the end
        simd::store_part<Bytes>(dweight + i, simd::load_part<Bytes>(dweight + i, C - i) + d * xhat, C - i);
        simd::store_part<Bytes>(dbias + i, simd::load_part<Bytes>(dbias + i, C - i) + d, C - i);
      }
      const A avg_g = simd::sum(sum_g) / A(C), avg_gx = simd::sum(sum_gx) / A(C);
      for (int64_t i = 0; i < C; i += W) {
        __builtin_prefetch(x + 2 * C + i);
        __builtin_prefetch(dy + 2 * C + i);
        const V g = simd::load_part<Bytes>(dy + i, C - i) * simd::load_part<Bytes>(weight + i, C - i);
        const V xhat = (simd::load_part<Bytes>(x + i, C - i) - mean) * rstd;
        simd::store_part<Bytes>(dx + i, rstd * (g - avg_g - xhat * avg_gx), C - i);
      }
    }
  }
};

}  // namespace

void layer_norm_forward_cpu(const LayerNormForwardParams& p) {
  dispatch_pair(p.dtype, p.weight_dtype, [&](auto type, auto weight_type) {
    using Body = Forward<typename decltype(type)::type, typename decltype(weight_type)::type>;
    const int64_t rows_a_task = std::max<int64_t>(1, 16384 / p.C);
    parallel_ranges(p.rows, rows_a_task, [&](int64_t begin, int64_t end) { simd::call<Body>(&p, begin, end); });
  });
}

void layer_norm_backward_cpu(const LayerNormBackwardParams& p) {
  dispatch_pair(p.dtype, p.weight_dtype, [&](auto type, auto weight_type) {
    using T = typename decltype(type)::type;
    using Weight = typename decltype(weight_type)::type;
    const int64_t rows_a_chunk = (p.rows + p.chunks - 1) / p.chunks;
    run_tasks(p.chunks, /*in_runs=*/true, [&](int64_t chunk) {
      const int64_t begin = std::min(p.rows, chunk * rows_a_chunk), end = std::min(p.rows, begin + rows_a_chunk);
      simd::call<Backward<T, Weight>>(&p, chunk, begin, end);
    });
    const auto* const partial = static_cast<const accumulate_t<T>*>(p.partial);
    add_chunks<Weight>(partial, p.chunks, p.C, p.dweight);
    if (p.dbias) add_chunks<Weight>(partial + p.chunks * p.C, p.chunks, p.C, p.dbias);
  });
}

}  // namespace minigpt
