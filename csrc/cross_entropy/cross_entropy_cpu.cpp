#include <algorithm>
#include <cmath>
#include <limits>

#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "../common/simd.h"
#include "cross_entropy.h"

namespace minigpt {
namespace {

constexpr int64_t kPiece = 4096;  // values of a row that stay in the first cache from their maximum to their sum
constexpr int64_t kTask = 16384;  // values a task

int64_t target_of(const CrossEntropyForwardParams& p, int64_t row) {
  return p.targets_64 ? static_cast<const int64_t*>(p.targets)[row] : static_cast<const int32_t*>(p.targets)[row];
}

// The vectors of a row of n values. What is left past the last whole one comes first, as the row's last W values: those
// that come again are -infinity there, which neither a maximum nor a sum of exponentials sees, and what is stored in their
// places is written again.
template <class T, int Bytes>
struct Row {
  using A = accumulate_t<T>;
  using V = simd::Vector<A, Bytes>;
  static constexpr int W = simd::lanes<A, Bytes>;
  static constexpr A kLowest = -std::numeric_limits<A>::infinity();
  const T* x;
  int64_t n;

  // f(i, values from i on) for [begin, end), where end is begin and a multiple of W, or n.
  template <class F>
  ALWAYS_INLINE void each(int64_t begin, int64_t end, const F& f) const {
    const int64_t whole = end - (end - begin) % W;
    if (whole < end) {
      V lane;
      for (int e = 0; e < W; ++e) lane[e] = A(e);
      if (n < W) {
        f(0, lane < A(n) ? simd::load_part<Bytes>(x, n) : V{} + kLowest);
      } else {
        f(n - W, lane < A(W - (end - whole)) ? V{} + kLowest : simd::load<Bytes>(x + n - W));
      }
    }
    for (int64_t i = begin; i < whole; i += W) f(i, simd::load<Bytes>(x + i));
  }

  ALWAYS_INLINE void store(T* to, int64_t i, V v) const { simd::store_part<Bytes>(to + i, v, n); }
};

#define INLINE __attribute__((always_inline))

template <class T>
struct Forward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const CrossEntropyForwardParams* p, int64_t begin, int64_t end) {
    using A = accumulate_t<T>;
    using V = simd::Vector<A, Bytes>;
    const A share = *static_cast<const A*>(p->share);
    const bool one_piece = p->V <= kPiece;
    alignas(64) A exponentials[kPiece];
    for (int64_t r = begin; r < end; ++r) {
      const Row<T, Bytes> row{static_cast<const T*>(p->logits) + r * p->V, p->V};
      T* const dx = p->dlogits ? static_cast<T*>(p->dlogits) + r * p->V : nullptr;
      const int64_t target = target_of(*p, r);
      A* const loss = static_cast<A*>(p->row_loss) + r;
      if (target == p->ignore_index) {
        *loss = 0;
        if (dx) std::fill_n(dx, p->V, T{});
        continue;
      }
      A highest = row.kLowest, shift = 0, z = 0;
      for (int64_t piece = 0; piece < p->V; piece += kPiece) {
        const int64_t stop = std::min(p->V, piece + kPiece);
        V most = V{} + row.kLowest, sum = {};
        row.each(piece, stop, [&](int64_t, V x) INLINE { most = simd::max(x, most); });
        if (const A here = simd::highest(most); here > highest) {
          if (piece > 0) z *= std::exp(highest - here);
          shift = highest = here;
        }
        row.each(piece, stop, [&](int64_t i, V x) INLINE {
          const V e = simd::exp<Bytes>(x - shift);
          if (one_piece) simd::store_part<Bytes>(exponentials + i, e, row.n);
          sum += e;
        });
        z += simd::sum(sum);
      }
      *loss = std::log(z) - (simd::load_one(row.x + target) - shift);
      if (!dx) continue;
      const A factor = share / z;
      if (one_piece) {
        const Row<A, Bytes> kept{exponentials, p->V};
        kept.each(0, p->V, [&](int64_t i, V e) INLINE { row.store(dx, i, e * factor); });
      } else {
        row.each(0, p->V, [&](int64_t i, V x) INLINE { row.store(dx, i, simd::exp<Bytes>(x - shift) * factor); });
      }
      simd::store_part<16>(dx + target, simd::Vector<A, 16>{} + A(std::expm1(-*loss)) * share, 1);
    }
  }
};

template <class T>
struct Backward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const T* x, T* y, accumulate_t<T> factor, int64_t n) {
    for (int64_t i = 0; i < n; i += simd::lanes<accumulate_t<T>, Bytes>)
      simd::store_part<Bytes>(y + i, simd::load_part<Bytes>(x + i, n - i) * factor, n - i);
  }
};

}  // namespace

void cross_entropy_forward_cpu(const CrossEntropyForwardParams& p) {
  dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = accumulate_t<T>;
    int64_t count = 0;
    for (int64_t row = 0; row < p.rows; ++row) count += target_of(p, row) != p.ignore_index;
    *static_cast<A*>(p.share) = A(1) / A(count);
    const int64_t rows_a_task = std::max<int64_t>(1, kTask / p.V);
    parallel_ranges(p.rows, rows_a_task, [&](int64_t begin, int64_t end) { simd::call<Forward<T>>(&p, begin, end); });
    double sum = 0;
    for (int64_t row = 0; row < p.rows; ++row) sum += static_cast<const A*>(p.row_loss)[row];
    *static_cast<A*>(p.loss) = A(sum / double(count));
  });
}

void cross_entropy_backward_cpu(const CrossEntropyBackwardParams& p) {
  dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto dloss = *static_cast<const accumulate_t<T>*>(p.dloss);
    parallel_ranges(p.n, kTask, [&](int64_t begin, int64_t end) {
      simd::call<Backward<T>>(static_cast<const T*>(p.dlogits) + begin, static_cast<T*>(p.scaled) + begin, dloss,
                              end - begin);
    });
  });
}

}  // namespace minigpt
