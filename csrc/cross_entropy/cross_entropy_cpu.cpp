#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "../common/simd.h"
#include "cross_entropy.h"
#include "cross_entropy_simd.h"

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

  template <class Out>
  ALWAYS_INLINE void store(Out* to, int64_t i, V v) const {
    simd::store_part<Bytes>(to + i, v, n);
  }
};

#define INLINE __attribute__((always_inline))

template <class A>
struct Sum {
  A shift, z;
};

// A block of rows at a time: its losses share one logarithm.
template <class T>
struct Forward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const CrossEntropyForwardParams* p, int64_t begin, int64_t end) {
    using A = accumulate_t<T>;
    using V = simd::Vector<A, Bytes>;
    constexpr int W = simd::lanes<A, Bytes>;
    const V share = V{} + *static_cast<const A*>(p->share);
    const int64_t stride = (p->V + W - 1) / W * W;  // of the rows' exponentials, where they are kept
    const bool kept = stride <= kPiece;
    const int64_t block = kept ? std::min<int64_t>(W, kPiece / stride) : 1;
    alignas(64) A exponentials[kPiece];
    for (int64_t first = begin; first < end; first += block) {
      const int64_t rows = std::min(block, end - first);
      A shift[W], z[W], below[W], factor[W], slope[W];
      std::fill_n(z, W, A(1));  // in a row that does not count, so that its loss is 0
      std::fill_n(below, W, A(0));
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t target = target_of(*p, first + r);
        if (target == p->ignore_index) continue;
        const Row<T, Bytes> row{static_cast<const T*>(p->logits) + (first + r) * p->V, p->V};
        const Sum<A> sum = kept ? exponentials_of<Bytes, true>(row, exponentials + r * stride)
                                : exponentials_of<Bytes, false>(row, exponentials);
        shift[r] = sum.shift;
        z[r] = sum.z;
        below[r] = simd::load_one(row.x + target) - sum.shift;
      }
      const V loss = cross_entropy::log<Bytes>(simd::load<Bytes>(z)) - simd::load<Bytes>(below);
      simd::store_part<Bytes>(static_cast<A*>(p->row_loss) + first, loss, rows);
      if (!p->dlogits) continue;
      simd::store<Bytes>(factor, share / simd::load<Bytes>(z));
      simd::store<Bytes>(slope, cross_entropy::expm1<Bytes>(-loss) * share);
      for (int64_t r = 0; r < rows; ++r) {
        T* const dx = static_cast<T*>(p->dlogits) + (first + r) * p->V;
        const int64_t target = target_of(*p, first + r);
        if (target == p->ignore_index) {
          std::fill_n(dx, p->V, T{});
          continue;
        }
        const A of_row = factor[r], shifted = shift[r];
        if (kept) {
          const Row<A, Bytes> row{exponentials + r * stride, p->V};
          row.each(0, p->V, [&](int64_t i, V e) INLINE { row.store(dx, i, e * of_row); });
        } else {
          const Row<T, Bytes> row{static_cast<const T*>(p->logits) + (first + r) * p->V, p->V};
          row.each(0, p->V, [&](int64_t i, V x) INLINE { row.store(dx, i, simd::exp<Bytes>(x - shifted) * of_row); });
        }
        simd::store_part<16>(dx + target, simd::Vector<A, 16>{} + slope[r], 1);
      }
    }
  }

  // The sum of e^(x - shift) over a row, shift its maximum; `exponentials` is given each where they are kept.
  template <int Bytes, bool kept, class A = accumulate_t<T>>
  static ALWAYS_INLINE Sum<A> exponentials_of(const Row<T, Bytes>& row, A* exponentials) {
    using V = simd::Vector<A, Bytes>;
    A highest = row.kLowest, shift = 0, z = 0;
    for (int64_t piece = 0; piece < row.n; piece += kPiece) {
      const int64_t stop = std::min(row.n, piece + kPiece);
      V most = V{} + row.kLowest, sum = {};
      row.each(piece, stop, [&](int64_t, V x) INLINE { most = simd::max(x, most); });
      if (const A here = simd::highest(most); here > highest) {
        if (piece > 0) z *= std::exp(highest - here);
        shift = highest = here;
      }
      row.each(piece, stop, [&](int64_t i, V x) INLINE {
        const V e = simd::exp<Bytes>(x - shift);
        if constexpr (kept) simd::store_part<Bytes>(exponentials + i, e, row.n);
        sum += e;
      });
      z += simd::sum(sum);
    }
    return {shift, z};
  }
};

template <class T>
struct Backward {
  template <int Bytes>
  static ALWAYS_INLINE void run(const T* x, T* y, accumulate_t<T> factor, int64_t n) {
    simd::each_vector<accumulate_t<T>, Bytes>(n, [&](int64_t i, auto left) INLINE {
      simd::store_part<Bytes>(y + i, simd::load_part<Bytes>(x + i, left) * factor, left);
    });
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
    const A* const losses = static_cast<const A*>(p.row_loss);
    double sums[8] = {};  // so that an addition need not wait for the one before
    int64_t row = 0;
    for (; row + 8 <= p.rows; row += 8)
      for (int u = 0; u < 8; ++u) sums[u] += losses[row + u];
    for (; row < p.rows; ++row) sums[0] += losses[row];
    *static_cast<A*>(p.loss) = A(std::accumulate(sums, sums + 8, 0.0) / double(count));
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
