#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "../common/stream.h"
#include "relu_squared.h"

namespace minigpt {
namespace {

constexpr int64_t kChunk = 16384;  // elements a task: enough to outweigh handing it out, few enough to share evenly

template <class T>
struct Forward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const T* x, T* y, int64_t n, bool streamed) {
    using V = simd::Vector<accumulate_t<T>, Bytes>;
    simd::each_vector<accumulate_t<T>, Bytes>(n, [&](int64_t i, auto left) __attribute__((always_inline)) {
      simd::fetch_ahead(x + i);
      const V v = simd::load_part<Bytes>(x + i, left);
      simd::store_part<Bytes>(y + i, v <= 0 ? V{} : v * v, left, streamed);  // NaN stays NaN
    });
    if (streamed) simd::end_stream();
  }
};

template <class T>
struct Backward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const T* dy, const T* x, T* dx, int64_t n, bool streamed) {
    using V = simd::Vector<accumulate_t<T>, Bytes>;
    simd::each_vector<accumulate_t<T>, Bytes>(n, [&](int64_t i, auto left) __attribute__((always_inline)) {
      simd::fetch_ahead(x + i);
      simd::fetch_ahead(dy + i);
      const V v = simd::load_part<Bytes>(x + i, left), d = simd::load_part<Bytes>(dy + i, left);
      simd::store_part<Bytes>(dx + i, v <= 0 ? V{} : 2 * (v * d), left, streamed);
    });
    if (streamed) simd::end_stream();
  }
};

}  // namespace

void relu_squared_forward_cpu(const ReluSquaredForwardParams& p) {
  dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    parallel_ranges(p.n, kChunk, [&](int64_t begin, int64_t end) {
      simd::call<Forward<T>>(static_cast<const T*>(p.x) + begin, static_cast<T*>(p.y) + begin, end - begin,
                             is_streamed(p.y, p.n * sizeof(T)));
    });
  });
}

void relu_squared_backward_cpu(const ReluSquaredBackwardParams& p) {
  dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    parallel_ranges(p.n, kChunk, [&](int64_t begin, int64_t end) {
      simd::call<Backward<T>>(static_cast<const T*>(p.dy) + begin, static_cast<const T*>(p.x) + begin,
                              static_cast<T*>(p.dx) + begin, end - begin, is_streamed(p.dx, p.n * sizeof(T)));
    });
  });
}

}  // namespace minigpt
