// Attention forward on the CPU. A task takes a run of queries of one head. It goes over the keys tile by tile; each tile of
// keys is packed once and met by all of the run's queries, kQueries at a time, with an online softmax a row:
//   m' = max(m, max s)    l' = l e^(m - m') + sum e^(s - m')    o' = o e^(m - m') + sum drop(e^(s - m')) v
#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "../common/score_simd.h"
#include "../common/scratch.h"
#include "attention_tiles.h"

namespace minigpt {
namespace {

template <class T>
struct Forward {
  using A = accumulate_t<T>;

  // The running softmax of one row, updated with a row of scores, which become probabilities (relative to the new maximum).
  // A NaN among the scores makes the row's l, and so its output, NaN.
  template <int Bytes>
  static ALWAYS_INLINE void softmax_row(A* scores, A& m, A& l, A* out, int64_t padded) {
    using V = simd::Vector<A, Bytes>;
    constexpr int W = simd::lanes<A, Bytes>;
    V highest = simd::load<Bytes>(scores);
    for (int64_t j = W; j < kKeys; j += W) highest = simd::max(highest, simd::load<Bytes>(scores + j));
    const A top = simd::highest(highest), m_new = top > m ? top : m;
    V total = {};
    for (int64_t j = 0; j < kKeys; j += W) {
      const V e = simd::exp<Bytes>(simd::load<Bytes>(scores + j) - m_new);
      total += e;
      simd::store<Bytes>(scores + j, e);
    }
    if (m_new != m) {
      const V rescale = simd::exp<Bytes>(V{} + (m - m_new));
      for (int64_t d = 0; d < padded; d += W) simd::store<Bytes>(out + d, simd::load<Bytes>(out + d) * rescale);
      l *= rescale[0];
      m = m_new;
    }
    l += simd::sum(total);
  }

  template <int Bytes>
  static ALWAYS_INLINE void run(const AttentionForwardParams* params, int64_t b, int64_t h, int64_t begin,
                                int64_t end) {
    constexpr int W = simd::lanes<A, Bytes>;
    const AttentionForwardParams& p = *params;
    const AttentionShape& s = p.shape;
    const int64_t n = end - begin, D = s.D, padded = round_up(D, W), h_kv = h / (s.H / s.H_kv), bh = b * s.H + h;
    Scratch scratch(2 * Scratch::bytes_for<A>(n * padded) + 2 * Scratch::bytes_for<A>(n) +
                    Scratch::bytes_for<A>(D * kKeys) + Scratch::bytes_for<A>(kKeys * padded) +
                    Scratch::bytes_for<A>(kQueries * kKeys));
    A *q = scratch.take<A>(n * padded), *out = scratch.take<A>(n * padded);
    A *m = scratch.take<A>(n), *l = scratch.take<A>(n);
    A *k_columns = scratch.take<A>(D * kKeys), *v_rows = scratch.take<A>(kKeys * padded);
    A* scores = scratch.take<A>(kQueries * kKeys);

    const T* q_head = static_cast<const T*>(p.q) + b * p.q_strides.batch + h * p.q_strides.head;
    const T* k_head = static_cast<const T*>(p.k) + b * p.k_strides.batch + h_kv * p.k_strides.head;
    const T* v_head = static_cast<const T*>(p.v) + b * p.v_strides.batch + h_kv * p.v_strides.head;
    pack_rows<T, Bytes>(q, q_head + begin * p.q_strides.token, p.q_strides.token, n, D, A(s.scale));
    std::fill_n(out, n * padded, A(0));
    std::fill_n(m, n, A(-INFINITY));
    std::fill_n(l, n, A(0));

    const Range keys = keys_of(s, begin, end);
    for (int64_t j0 = keys.first; j0 < keys.last; j0 += kKeys) {
      const int64_t n_keys = std::min(kKeys, keys.last - j0);
      pack_columns<T, Bytes>(k_columns, k_head + j0 * p.k_strides.token, p.k_strides.token, n_keys, D);
      pack_rows<T, Bytes>(v_rows, v_head + j0 * p.v_strides.token, p.v_strides.token, n_keys, D, A(1));
      for (int64_t i0 = 0; i0 < n; i0 += kQueries) {
        const int64_t n_queries = std::min(kQueries, n - i0), i_last = begin + i0 + n_queries - 1;
        const int64_t seen = visible(s, i_last, j0, n_keys).last;  // the last query sees furthest
        if (seen == 0 || visible(s, begin + i0, j0, n_keys).first == kKeys) continue;
        simd::call_from<Gemm<A>, Bytes>(GemmParams<A>{n_queries, round_up(seen, W), D, q + i0 * padded, padded, 1,
                                                      k_columns, kKeys, scores, kKeys, false});
        apply<A, Bytes>(p.rule, h, {scores, nullptr, n_queries, seen, kKeys, begin + i0 + s.S - s.T - j0});
        for (int64_t i = i0; i < i0 + n_queries; ++i) {
          A* row = scores + (i - i0) * kKeys;
          const Range sees = visible(s, begin + i, j0, n_keys);
          if (sees.first == sees.last) {
            std::fill_n(row, kKeys, A(0));
            continue;
          }
          mask_row(row, sees);
          softmax_row<Bytes>(row, m[i], l[i], out + i * padded, padded);
          if (s.dropout_threshold) {
            A factors[kKeys];
            dropout_factors(factors, s, uint64_t(*p.seed), bh, begin + i, j0);
            for (int64_t j = 0; j < kKeys; ++j) row[j] *= factors[j];
          }
        }
        simd::call_from<Gemm<A>, Bytes>(
            GemmParams<A>{n_queries, padded, seen, scores, kKeys, 1, v_rows, padded, out + i0 * padded, padded, true});
      }
    }

    for (int64_t i = 0; i < n; ++i) {
      T* row = static_cast<T*>(p.out) + ((b * s.T + begin + i) * s.H + h) * D;
      const A inverse = l[i] == 0 ? A(0) : A(1) / l[i];
      for (int64_t d = 0; d < D; d += W)
        simd::store_part<Bytes>(row + d, simd::load<Bytes>(out + i * padded + d) * inverse, D - d);
      static_cast<A*>(p.lse)[bh * s.T + begin + i] = m[i] + std::log(l[i]);  // minus infinity where nothing was seen
    }
  }
};

}  // namespace

void attention_forward_cpu(const AttentionForwardParams& p) {
  const AttentionShape& s = p.shape;
  // Long runs share the packing of keys among more queries; short ones keep many threads busy where heads are few. A row's
  // result does not depend on the run that it is in.
  int64_t run = 256;
  while (run > kQueries && s.B * s.H * ((s.T + run - 1) / run) < 64) run /= 2;
  const int64_t runs = (s.T + run - 1) / run, heads = s.B * s.H;
  dispatch(p.dtype, [&](auto type) {
    using Body = Forward<typename decltype(type)::type>;
    parallel_tasks(runs * heads, [&](int64_t task) {
      const int64_t head = task % heads, begin = (runs - 1 - task / heads) * run;  // causal: the longest first
      simd::call<Body>(&p, head / s.H, head % s.H, begin, std::min(s.T, begin + run));
    });
  });
}

}  // namespace minigpt
