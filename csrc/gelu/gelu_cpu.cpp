#include <algorithm>

#include "../common/column_sums_cpu.h"
#include "../common/dispatch.h"
#include "../common/stream.h"
#include "gelu.h"
#include "gelu_simd.h"

namespace minigpt {
namespace {

constexpr int64_t kChunk = 16384;  // elements a task: enough to outweigh handing it out, few enough to share evenly

// The tanh form is bound by its arithmetic: it only lost by stores past the caches.
template <class Form>
bool streams(const void* to, int64_t bytes, int64_t row_bytes = 64) {
  return std::is_same_v<Form, gelu::Erf> && is_streamed(to, bytes, row_bytes);
}

template <class T, class Form>
struct Forward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const T* x, T* y, int64_t n, bool streamed) {
    simd::each_vector<accumulate_t<T>, Bytes>(n, [&](int64_t i, auto left) __attribute__((always_inline)) {
      simd::fetch_ahead(x + i);
      simd::store_part<Bytes>(y + i, Form::template value<Bytes>(simd::load_part<Bytes>(x + i, left)), left, streamed);
    });
    if (streamed) simd::end_stream();
  }
};

template <class T, class Form>
struct Backward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const T* dy, const T* x, T* dx, int64_t n, bool streamed) {
    simd::each_vector<accumulate_t<T>, Bytes>(n, [&](int64_t i, auto left) __attribute__((always_inline)) {
      simd::fetch_ahead(x + i);
      simd::fetch_ahead(dy + i);
      const auto slope = Form::template slope<Bytes>(simd::load_part<Bytes>(x + i, left));
      simd::store_part<Bytes>(dx + i, simd::load_part<Bytes>(dy + i, left) * slope, left, streamed);
    });
    if (streamed) simd::end_stream();
  }
};

template <class T, class Bias, class Form>
struct BiasForward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const BiasGeluForwardParams* p, int64_t begin, int64_t end) {
    const int64_t C = p->C;
    const Bias* const bias = static_cast<const Bias*>(p->bias);
    const bool streamed = streams<Form>(p->y, p->rows * C * sizeof(T), C * sizeof(T));
    for (int64_t row = begin; row < end; ++row) {
      const T* const x = static_cast<const T*>(p->x) + row * C;
      T* const y = static_cast<T*>(p->y) + row * C;
      simd::each_vector<accumulate_t<T>, Bytes>(C, [&](int64_t i, auto left) __attribute__((always_inline)) {
        simd::fetch_ahead(x + i);
        const auto v = simd::load_part<Bytes>(x + i, left) + simd::load_part<Bytes>(bias + i, left);
        simd::store_part<Bytes>(y + i, Form::template value<Bytes>(v), left, streamed);
      });
    }
    if (streamed) simd::end_stream();
  }
};

// One chunk of rows: dx of each, and the chunk's own share of dbias, which a few rows load and store together.
template <class T, class Bias, class Form>
struct BiasBackward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const BiasGeluBackwardParams* p, int64_t chunk, int64_t begin, int64_t end) {
    accumulate_t<T>* const dbias = static_cast<accumulate_t<T>*>(p->partial) + chunk * p->C;
    std::fill_n(dbias, p->C, accumulate_t<T>(0));
    const int64_t row_bytes = p->C * sizeof(T);
    const bool streamed = streams<Form>(p->dx, p->rows * row_bytes, row_bytes);
    int64_t row = begin;
    for (; row + 2 <= end; row += 2) rows<Bytes, 2>(*p, row, dbias, streamed);
    if (row < end) rows<Bytes, 1>(*p, row, dbias, streamed);
    if (streamed) simd::end_stream();
  }

  template <int Bytes, int Rows, class A>
  static ALWAYS_INLINE void rows(const BiasGeluBackwardParams& p, int64_t row, A* dbias, bool streamed) {
    const int64_t C = p.C;
    const T *const dy = static_cast<const T*>(p.dy) + row * C, *const x = static_cast<const T*>(p.x) + row * C;
    T* const dx = static_cast<T*>(p.dx) + row * C;
    const Bias* const bias = static_cast<const Bias*>(p.bias);
    simd::each_vector<accumulate_t<T>, Bytes>(C, [&](int64_t i, auto left) __attribute__((always_inline)) {
      const auto b = simd::load_part<Bytes>(bias + i, left);
      auto sum = simd::load_part<Bytes>(dbias + i, left);
#pragma GCC unroll 2
      for (int r = 0; r < Rows; ++r) {
        simd::fetch_ahead(x + r * C + i);
        simd::fetch_ahead(dy + r * C + i);
        const auto slope = Form::template slope<Bytes>(simd::load_part<Bytes>(x + r * C + i, left) + b);
        const auto d = simd::load_part<Bytes>(dy + r * C + i, left) * slope;
        simd::store_part<Bytes>(dx + r * C + i, d, left, streamed);
        sum += d;
      }
      simd::store_part<Bytes>(dbias + i, sum, left);
    });
  }
};

template <class F>
void dispatch_form(bool tanh, const F& f) {
  tanh ? f(Type<gelu::Tanh>{}) : f(Type<gelu::Erf>{});
}

}  // namespace

void gelu_forward_range_cpu(const GeluForwardParams& p, int64_t begin, int64_t end) {
  dispatch(p.dtype, [&](auto type) {
    dispatch_form(p.tanh, [&](auto form) {
      using T = typename decltype(type)::type;
      const T* const x = static_cast<const T*>(p.x) + begin;
      simd::call<Forward<T, typename decltype(form)::type>>(
          x, static_cast<T*>(p.y) + begin, end - begin, streams<typename decltype(form)::type>(p.y, p.n * sizeof(T)));
    });
  });
}

void gelu_forward_cpu(const GeluForwardParams& p) {
  parallel_ranges(p.n, kChunk, [&](int64_t begin, int64_t end) { gelu_forward_range_cpu(p, begin, end); });
}

void gelu_backward_cpu(const GeluBackwardParams& p) {
  dispatch(p.dtype, [&](auto type) {
    dispatch_form(p.tanh, [&](auto form) {
      using T = typename decltype(type)::type;
      parallel_ranges(p.n, kChunk, [&](int64_t begin, int64_t end) {
        const T *const dy = static_cast<const T*>(p.dy) + begin, *const x = static_cast<const T*>(p.x) + begin;
        T* const dx = static_cast<T*>(p.dx) + begin;
        simd::call<Backward<T, typename decltype(form)::type>>(
            dy, x, dx, end - begin, streams<typename decltype(form)::type>(p.dx, p.n * sizeof(T)));
      });
    });
  });
}

void bias_gelu_forward_rows_cpu(const BiasGeluForwardParams& p, int64_t begin, int64_t end) {
  dispatch_pair(p.dtype, p.bias_dtype, [&](auto type, auto bias_type) {
    dispatch_form(p.tanh, [&](auto form) {
      using Body =
          BiasForward<typename decltype(type)::type, typename decltype(bias_type)::type, typename decltype(form)::type>;
      simd::call<Body>(&p, begin, end);
    });
  });
}

void bias_gelu_forward_cpu(const BiasGeluForwardParams& p) {
  const int64_t rows_a_task = std::max<int64_t>(1, kChunk / p.C);
  parallel_ranges(p.rows, rows_a_task, [&](int64_t begin, int64_t end) { bias_gelu_forward_rows_cpu(p, begin, end); });
}

void bias_gelu_backward_cpu(const BiasGeluBackwardParams& p) {
  dispatch_pair(p.dtype, p.bias_dtype, [&](auto type, auto bias_type) {
    using T = typename decltype(type)::type;
    using Bias = typename decltype(bias_type)::type;
    dispatch_form(p.tanh, [&](auto form) {
      const int64_t rows_a_chunk = (p.rows + p.chunks - 1) / p.chunks;
      run_tasks(p.chunks, /*in_runs=*/true, [&](int64_t chunk) {
        const int64_t begin = std::min(p.rows, chunk * rows_a_chunk), end = std::min(p.rows, begin + rows_a_chunk);
        simd::call<BiasBackward<T, Bias, typename decltype(form)::type>>(&p, chunk, begin, end);
      });
    });
    add_chunks<Bias>(static_cast<const accumulate_t<T>*>(p.partial), p.chunks, p.C, p.dbias);
  });
}

}  // namespace minigpt
