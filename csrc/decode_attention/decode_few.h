// Attention of one query a key/value head, or a few, over a long cache: it costs what reading the cache costs. A task takes
// all heads, so that a token's keys (H_kv * D of them) are read in the order in which they lie, or nearly: W keys of a
// head, then of the next one. While the scores of a tile are worked out, memory is asked for the values that they will
// weigh; while those are added up, for the next tile's keys.
#pragma once
#include "../common/lanes.h"
#include "decode_tiles.h"

namespace minigpt {

template <class A, class C>
struct AttendFew {
  static constexpr int64_t kTile = 16;  // keys

  // Elements for the scores of `heads` key/value heads with `queries` each, (heads, queries, kTile).
  static int64_t work(int64_t heads, int64_t queries, int64_t /*padded*/) { return heads * queries * kTile; }

  // Scores of W keys of one head: sum_d q_d k_d.
  template <int Bytes>
  static ALWAYS_INLINE void dots(A* scores, const A* q, const C* keys, const int64_t* rows, int64_t D) {
    constexpr int W = simd::lanes<A, Bytes>, U = 4;
    simd::Vector<A, Bytes> sum[W] = {};
    int64_t d = 0;
    for (; d + U * W <= D; d += U * W) {
      simd::Vector<A, Bytes> part[U];
      for (int u = 0; u < U; ++u) part[u] = simd::load<Bytes>(q + d + u * W);
#pragma GCC unroll 16
      for (int j = 0; j < W; ++j)
        for (int u = 0; u < U; ++u) sum[j] += part[u] * simd::load<Bytes>(keys + rows[j] + d + u * W);
    }
    for (; d < D; d += W) {
      const auto part = simd::load<Bytes>(q + d);
#pragma GCC unroll 16
      for (int j = 0; j < W; ++j) sum[j] += part * simd::load_part<Bytes>(keys + rows[j] + d, D - d);
    }
    simd::store<Bytes>(scores, simd::sum_each<A, Bytes>(sum));
  }

  // acc += sum_j weights_j v_j over n keys of one head, U vectors of it at a time.
  template <int Bytes, int U>
  static ALWAYS_INLINE void add(A* acc, const A* weights, const C* values, const int64_t* rows, int64_t n,
                                int64_t left) {
    constexpr int W = simd::lanes<A, Bytes>;
    simd::Vector<A, Bytes> sum[U];
    for (int u = 0; u < U; ++u) sum[u] = simd::load<Bytes>(acc + u * W);
    for (int64_t j = 0; j < n; ++j)
      for (int u = 0; u < U; ++u) {
        const C* v = values + rows[j] + u * W;
        sum[u] += weights[j] * (U > 1 ? simd::load<Bytes>(v) : simd::load_part<Bytes>(v, left));
      }
    for (int u = 0; u < U; ++u) simd::store<Bytes>(acc + u * W, sum[u]);
  }

  template <int Bytes>
  static ALWAYS_INLINE void add_values(A* acc, const A* weights, const C* values, const int64_t* rows, int64_t n,
                                       int64_t D) {
    constexpr int W = simd::lanes<A, Bytes>, U = 4;
    int64_t d = 0;
    for (; d + U * W <= D; d += U * W) add<Bytes, U>(acc + d, weights, values + d, rows, n, D);
    for (; d < D; d += W) add<Bytes, 1>(acc + d, weights, values + d, rows, n, D - d);
  }

  static ALWAYS_INLINE void prefetch(const C* cache, const int64_t* rows, int n, int64_t D) {
    for (int j = 0; j < n; ++j)
      for (int64_t d = 0; d < D; d += 64 / int64_t(sizeof(C))) __builtin_prefetch(cache + rows[j] + d);
  }

  template <int Bytes>
  static ALWAYS_INLINE void run(const DecodeTask<A>* task) {
    constexpr int W = simd::lanes<A, Bytes>;
    const DecodeTask<A>& t = *task;
    const DecodeAttentionParams& p = *t.p;
    const int64_t D = p.layout.D, heads = t.kv_end - t.kv_begin, rows_of_q = heads * t.queries;
    const C* const k = static_cast<const C*>(p.k_cache) + t.kv_begin * D;
    const C* const v = static_cast<const C*>(p.v_cache) + t.kv_begin * D;

    int64_t places[2][kTile];  // of this tile and the next
    const auto find = [&](int64_t j0, int64_t* rows) {
      const int64_t n = std::min(kTile, t.key_end - j0);
      if (n <= 0) return;
      find_rows(p.layout, t.b, j0, n, rows);
      for (int64_t j = n; j < kTile; ++j) rows[j] = rows[n - 1];  // whole vectors of keys: the last one again
    };
    // What lies before the first query's window is not read.
    const int64_t begin = p.window ? std::max(t.key_begin, t.position(0) + 1 - p.window) : t.key_begin;
    find(begin, places[0]);
    for (int64_t j0 = begin, turn = 0; j0 < t.key_end; j0 += kTile, turn ^= 1) {
      const int64_t n = std::min(kTile, t.key_end - j0), *rows = places[turn];
      int64_t* const next = places[turn ^ 1];
      int64_t scales[kTile];
      if constexpr (sizeof(C) == 1) find_scales(p.layout, t.kv_begin, rows, n, scales);
      for (int64_t j = 0; j < n; j += W)
        for (int64_t h = 0; h < heads; ++h) {
          for (int64_t i = h * t.queries; i < (h + 1) * t.queries; ++i)
            dots<Bytes>(t.work + i * kTile + j, t.q + i * t.padded, k + h * D, rows + j, D);
          prefetch(v + h * D, rows + j, W, D);
        }
      for (int64_t at = 0; at < rows_of_q; ++at) {
        const int64_t h = at / t.queries, i = at % t.queries, position = t.position(i);
        const KeyRange seen = visible_keys(position, p.window, j0, n);
        if (seen.first == seen.last) continue;
        A* scores = t.work + at * kTile;
        if constexpr (sizeof(C) == 1) times_scales(scores, p.k_scales + h, scales, n);
        apply<A, Bytes>(p.rule, t.head(t.kv_begin + h, i), {scores, nullptr, 1, n, kTile, position - j0});
        softmax_tile<A, Bytes, kTile>(scores, seen, t.m[at], t.l[at], t.acc + at * t.padded, t.padded);
        if constexpr (sizeof(C) == 1) times_scales(scores, p.v_scales + h, scales, n);
      }
      const bool more = j0 + kTile < t.key_end;
      find(j0 + kTile, next);
      for (int64_t j = 0; j < n; j += W)
        for (int64_t h = 0; h < heads; ++h) {
          for (int64_t i = 0; i < t.queries; ++i) {
            const KeyRange seen = visible_keys(t.position(i), p.window, j0, n);
            const int64_t first = std::max(j, seen.first), last = std::min(j + W, seen.last), at = h * t.queries + i;
            if (first < last)
              add_values<Bytes>(t.acc + at * t.padded, t.work + at * kTile + first, v + h * D, rows + first,
                                last - first, D);
          }
          if (more) prefetch(k + h * D, next + j, W, D);
        }
    }
  }
};

}  // namespace minigpt
