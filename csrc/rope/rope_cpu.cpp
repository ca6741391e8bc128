#include <algorithm>
#include <cstring>

#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "../common/stream.h"
#include "rope.h"

namespace minigpt {
namespace {

// Tokens [begin, end) of all sequences, one behind the other.
template <class T>
struct Rotate {
  template <int Bytes>
  static ALWAYS_INLINE void run(const RopeParams* p, int64_t begin, int64_t end) {
    using A = accumulate_t<T>;
    using V = simd::Vector<A, Bytes>;
    const int64_t half = p->half, D = p->D, passed = D - 2 * half;
    const V sign = V{} + A(p->inverse ? -1 : 1);
    const bool streamed =
        half * sizeof(T) % 64 == 0 && is_streamed(p->y, p->B * p->T * p->H * D * sizeof(T), D * sizeof(T));
    for (int64_t token = begin; token < end; ++token) {
      const int64_t b = token / p->T, t = token % p->T;
      const int64_t position = p->positions ? p->positions[token] : t;
      const A *cos = static_cast<const A*>(p->cos) + position * half,
              *sin = static_cast<const A*>(p->sin) + position * half;
      const T* x = static_cast<const T*>(p->x) + b * p->batch_stride + t * p->token_stride;
      T* y = static_cast<T*>(p->y) + token * p->H * D;
      for (int64_t h = 0; h < p->H; ++h, x += p->head_stride, y += D) {
        simd::each_vector<A, Bytes>(half, [&](int64_t i, auto left) __attribute__((always_inline)) {
          const V c = simd::load_part<Bytes>(cos + i, left), s = sign * simd::load_part<Bytes>(sin + i, left);
          const V x1 = simd::load_part<Bytes>(x + i, left), x2 = simd::load_part<Bytes>(x + half + i, left);
          simd::store_part<Bytes>(y + i, x1 * c - x2 * s, left, streamed);
          simd::store_part<Bytes>(y + half + i, x2 * c + x1 * s, left, streamed);
        });
        if (passed) memcpy(y + 2 * half, x + 2 * half, passed * sizeof(T));
      }
    }
    if (streamed) simd::end_stream();
  }
};

}  // namespace

void rope_cpu(const RopeParams& p) {
  dispatch(p.dtype, [&](auto type) {
    using Body = Rotate<typename decltype(type)::type>;
    const int64_t tokens_a_task = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, p.H * p.D));
    parallel_ranges(p.B * p.T, tokens_a_task, [&](int64_t begin, int64_t end) { simd::call<Body>(&p, begin, end); });
  });
}

}  // namespace minigpt
