// Attention backward on the CPU. A task takes the keys of one key/value head, or a run of them, tile by tile; it meets each
// tile with the queries that see it, of all heads of the group, and makes the tile's probabilities anew from lse:
//   p = e^(s - lse)   dp = drop(dout v^T)   ds = gain p (dp - delta), delta = sum_d dout out; gain: the rule's derivative
//   dv += drop(p)^T dout     dk += ds^T (scale q)     dq += scale ds k
// dk and dv of a tile are complete when its queries are done. dq is summed over tiles in the task's own memory; with several
// runs of keys, each has its own sum, and they are added in order at the end. No atomics: equal runs are equal bit for bit.
#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "../common/score_simd.h"
#include "../common/scratch.h"
#include "attention_tiles.h"

namespace minigpt {
namespace {

template <class T>
struct Delta {
  template <int Bytes>
  static ALWAYS_INLINE void run(const AttentionBackwardParams* p, int64_t b, int64_t h) {
    using A = accumulate_t<T>;
    constexpr int W = simd::lanes<A, Bytes>;
    const AttentionShape& s = p->shape;
    for (int64_t i = 0; i < s.T; ++i) {
      const T* dout = static_cast<const T*>(p->dout) + b * p->dout_strides.batch + i * p->dout_strides.token +
                      h * p->dout_strides.head;
      const T* out = static_cast<const T*>(p->out) + ((b * s.T + i) * s.H + h) * s.D;
      simd::Vector<A, Bytes> sum = {};
      for (int64_t d = 0; d < s.D; d += W)
        sum += simd::load_part<Bytes>(dout + d, s.D - d) * simd::load_part<Bytes>(out + d, s.D - d);
      static_cast<A*>(p->delta)[(b * s.H + h) * s.T + i] = simd::sum(sum);
    }
  }
};

template <class T>
struct Backward {
  using A = accumulate_t<T>;

  template <int Bytes>
  static ALWAYS_INLINE void product(const GemmParams<A>& g) {
    simd::call_from<Gemm<A>, Bytes>(g);
  }

  // a *= b, over rows of kKeys of which whole vectors are taken.
  template <int Bytes>
  static ALWAYS_INLINE void multiply_rows(A* a, const A* b, int64_t n, int64_t columns) {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = i * kKeys; j < i * kKeys + columns; j += simd::lanes<A, Bytes>)
        simd::store<Bytes>(a + j, simd::load<Bytes>(a + j) * simd::load<Bytes>(b + j));
  }

  // Scores and dp of one row become p (dropped: what dv is made from) and ds.
  template <int Bytes>
  static ALWAYS_INLINE void softmax_row(const AttentionBackwardParams& p, A* scores, A* dp, int64_t bh, int64_t i,
                                        int64_t j0, int64_t n_keys) {
    constexpr int W = simd::lanes<A, Bytes>;
    const AttentionShape& s = p.shape;
    const A lse = static_cast<const A*>(p.lse)[bh * s.T + i], delta = static_cast<const A*>(p.delta)[bh * s.T + i];
    const A shift = lse == -INFINITY ? A(0) : lse;  // a row that sees nothing: every score is minus infinity
    mask_row(scores, visible(s, i, j0, n_keys));
    A factors[kKeys];
    if (s.dropout_threshold) dropout_factors(factors, s, uint64_t(*p.seed), bh, i, j0);
    for (int64_t j = 0; j < kKeys; j += W) {
      const auto probability = simd::exp<Bytes>(simd::load<Bytes>(scores + j) - shift);
      auto kept = probability, g = simd::load<Bytes>(dp + j);
      if (s.dropout_threshold) {
        kept *= simd::load<Bytes>(factors + j);
        g *= simd::load<Bytes>(factors + j);
      }
      simd::store<Bytes>(scores + j, kept);
      simd::store<Bytes>(dp + j, probability * (g - delta));
    }
  }

  template <int Bytes>
  static ALWAYS_INLINE void run(const AttentionBackwardParams* params, int64_t b, int64_t h_kv, int64_t chunk) {
    constexpr int W = simd::lanes<A, Bytes>;
    const AttentionBackwardParams& p = *params;
    const AttentionShape& s = p.shape;
    const int64_t D = s.D, padded = round_up(D, W), group = s.H / s.H_kv;
    const int64_t tiles = (s.S + kKeys - 1) / kKeys, tiles_a_chunk = (tiles + p.chunks - 1) / p.chunks;
    Scratch scratch(Scratch::bytes_for<A>(group * s.T * padded) + 2 * Scratch::bytes_for<A>(D * kKeys) +
                    3 * Scratch::bytes_for<A>(kKeys * padded) + 2 * Scratch::bytes_for<A>(kQueries * padded) +
                    3 * Scratch::bytes_for<A>(kQueries * kKeys));
    A* dq = scratch.take<A>(group * s.T * padded);
    A *k_columns = scratch.take<A>(D * kKeys), *v_columns = scratch.take<A>(D * kKeys);
    A *k_rows = scratch.take<A>(kKeys * padded), *dk = scratch.take<A>(kKeys * padded);
    A* dv = scratch.take<A>(kKeys * padded);
    A *q_rows = scratch.take<A>(kQueries * padded), *dout_rows = scratch.take<A>(kQueries * padded);
    A *scores = scratch.take<A>(kQueries * kKeys), *dp = scratch.take<A>(kQueries * kKeys);
    A* gains = scratch.take<A>(kQueries * kKeys);
    std::fill_n(dq, group * s.T * padded, A(0));

    const T* k_head = static_cast<const T*>(p.k) + b * p.k_strides.batch + h_kv * p.k_strides.head;
    const T* v_head = static_cast<const T*>(p.v) + b * p.v_strides.batch + h_kv * p.v_strides.head;
    const int64_t first = chunk * tiles_a_chunk * kKeys, last = std::min(s.S, first + tiles_a_chunk * kKeys);
    for (int64_t j0 = first; j0 < last; j0 += kKeys) {
      const int64_t n_keys = std::min(kKeys, s.S - j0);
      pack_columns<T, Bytes>(k_columns, k_head + j0 * p.k_strides.token, p.k_strides.token, n_keys, D);
      pack_columns<T, Bytes>(v_columns, v_head + j0 * p.v_strides.token, p.v_strides.token, n_keys, D);
      pack_rows<T, Bytes>(k_rows, k_head + j0 * p.k_strides.token, p.k_strides.token, n_keys, D, A(s.scale));
      std::fill_n(dk, kKeys * padded, A(0));
      std::fill_n(dv, kKeys * padded, A(0));
      const Range queries = queries_of(s, j0, j0 + n_keys);
      for (int64_t h = h_kv * group; h < (h_kv + 1) * group; ++h) {
        const T* q_head = static_cast<const T*>(p.q) + b * p.q_strides.batch + h * p.q_strides.head;
        const T* dout_head = static_cast<const T*>(p.dout) + b * p.dout_strides.batch + h * p.dout_strides.head;
        for (int64_t i0 = queries.first; i0 < queries.last; i0 += kQueries) {
          const int64_t n = std::min(kQueries, queries.last - i0);
          const int64_t seen = visible(s, i0 + n - 1, j0, n_keys).last;  // the last query sees furthest
          if (seen == 0) continue;
          const int64_t columns = round_up(seen, W);
          pack_rows<T, Bytes>(q_rows, q_head + i0 * p.q_strides.token, p.q_strides.token, n, D, A(s.scale));
          pack_rows<T, Bytes>(dout_rows, dout_head + i0 * p.dout_strides.token, p.dout_strides.token, n, D, A(1));
          product<Bytes>({n, columns, D, q_rows, padded, 1, k_columns, kKeys, scores, kKeys, false});
          apply<A, Bytes>(p.rule, h, {scores, gains, n, seen, kKeys, i0 + s.S - s.T - j0});
          product<Bytes>({n, columns, D, dout_rows, padded, 1, v_columns, kKeys, dp, kKeys, false});
          for (int64_t i = 0; i < n; ++i)
            softmax_row<Bytes>(p, scores + i * kKeys, dp + i * kKeys, b * s.H + h, i0 + i, j0, n_keys);
          if (p.rule.softcap > 0) multiply_rows<Bytes>(dp, gains, n, columns);
          product<Bytes>({seen, padded, n, scores, 1, kKeys, dout_rows, padded, dv, padded, true});
          product<Bytes>({seen, padded, n, dp, 1, kKeys, q_rows, padded, dk, padded, true});
          product<Bytes>({n, padded, seen, dp, kKeys, 1, k_rows, padded, dq + ((h - h_kv * group) * s.T + i0) * padded,
                          padded, true});
        }
      }
      const int64_t at = ((b * s.S + j0) * s.H_kv + h_kv) * D, stride = s.H_kv * D;
      write_rows<Bytes>(static_cast<T*>(p.dk) + at, stride, dk, n_keys, D);
      write_rows<Bytes>(static_cast<T*>(p.dv) + at, stride, dv, n_keys, D);
    }

    for (int64_t h = h_kv * group; h < (h_kv + 1) * group; ++h) {
      const A* sum = dq + (h - h_kv * group) * s.T * padded;
      if (p.chunks == 1) {
        write_rows<Bytes>(static_cast<T*>(p.dq) + (b * s.T * s.H + h) * D, s.H * D, sum, s.T, D);
      } else {
        A* partial = static_cast<A*>(p.dq_partial) + ((chunk * s.B + b) * s.H + h) * s.T * D;
        for (int64_t i = 0; i < s.T; ++i) std::copy_n(sum + i * padded, D, partial + i * D);
      }
    }
  }

  template <int Bytes>
  static ALWAYS_INLINE void write_rows(T* to, int64_t stride, const A* from, int64_t n, int64_t D) {
    constexpr int W = simd::lanes<A, Bytes>;
    const int64_t padded = round_up(D, W);
    for (int64_t r = 0; r < n; ++r)
      for (int64_t d = 0; d < D; d += W)
        simd::store_part<Bytes>(to + r * stride + d, simd::load<Bytes>(from + r * padded + d), D - d);
  }
};

// One head's dq: the chunks' shares, added in order.
template <class T>
struct AddChunks {
  template <int Bytes>
  static ALWAYS_INLINE void run(const AttentionBackwardParams* p, int64_t b, int64_t h) {
    using A = accumulate_t<T>;
    constexpr int W = simd::lanes<A, Bytes>;
    const AttentionShape& s = p->shape;
    for (int64_t i = 0; i < s.T; ++i)
      for (int64_t d = 0; d < s.D; d += W) {
        simd::Vector<A, Bytes> sum = {};
        for (int64_t chunk = 0; chunk < p->chunks; ++chunk)
          sum += simd::load_part<Bytes>(
              static_cast<const A*>(p->dq_partial) + (((chunk * s.B + b) * s.H + h) * s.T + i) * s.D + d, s.D - d);
        simd::store_part<Bytes>(static_cast<T*>(p->dq) + ((b * s.T + i) * s.H + h) * s.D + d, sum, s.D - d);
      }
  }
};

}  // namespace

void attention_backward_cpu(const AttentionBackwardParams& p) {
  const AttentionShape& s = p.shape;
  dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const int64_t heads = s.B * s.H, heads_kv = s.B * s.H_kv;
    parallel_tasks(heads, [&](int64_t i) { simd::call<Delta<T>>(&p, i / s.H, i % s.H); });
    parallel_tasks(heads_kv * p.chunks, [&](int64_t task) {  // causal: the first keys have most queries
      const int64_t head = task % heads_kv;
      simd::call<Backward<T>>(&p, head / s.H_kv, head % s.H_kv, task / heads_kv);
    });
    if (p.chunks > 1) parallel_tasks(heads, [&](int64_t i) { simd::call<AddChunks<T>>(&p, i / s.H, i % s.H); });
  });
}

}  // namespace minigpt
