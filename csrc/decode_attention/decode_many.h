// Attention of many queries of one key/value head (a chunk of a prompt, a large group) over a cache: arithmetic counts. A
// tile of keys is turned over, a tile of values widened, and both multiplied with all queries of the task.
#pragma once
#include "../common/gemm.h"
#include "../common/lanes.h"
#include "decode_tiles.h"

namespace minigpt {

template <class A, class C>
struct AttendMany {
  static constexpr int64_t kTile = 64;  // keys

  // Where the keys of a tile lie, and their scales in an int8 cache.
  struct Rows {
    int64_t rows[kTile], scales[kTile];
  };

  // Elements for keys (D, kTile), values (kTile, padded), scores (queries, kTile).
  static int64_t work(int64_t /*heads*/, int64_t queries, int64_t padded) { return (2 * padded + queries) * kTile; }

  // Of an int8 cache its scale; else 1.
  static ALWAYS_INLINE A scale_of(const float* scales, const int64_t* places, int64_t j) {
    if constexpr (sizeof(C) == 1) return scales[places[j]];
    return 1;
  }

  // n keys turned over, (D, kTile): zeros in the columns from n on.
  template <int Bytes>
  static ALWAYS_INLINE void pack_keys(A* packed, const C* keys, const float* scales, const Rows& at, int64_t n,
                                      int64_t D) {
    constexpr int W = simd::lanes<A, Bytes>;
    for (int64_t j = 0; j < kTile; j += W)
      for (int64_t d = 0; d < D; d += W) {
        simd::Vector<A, Bytes> block[W];
        for (int r = 0; r < W; ++r)
          block[r] = j + r < n
                         ? simd::load_part<Bytes>(keys + at.rows[j + r] + d, D - d) * scale_of(scales, at.scales, j + r)
                         : simd::Vector<A, Bytes>{};
        simd::transpose<A, Bytes>(block);
        for (int64_t r = 0; r < W && d + r < D; ++r) simd::store<Bytes>(packed + (d + r) * kTile + j, block[r]);
      }
  }

  template <int Bytes>
  static ALWAYS_INLINE void pack_values(A* packed, const C* values, const float* scales, const Rows& at, int64_t n,
                                        int64_t D, int64_t padded) {
    constexpr int W = simd::lanes<A, Bytes>;
    for (int64_t j = 0; j < n; ++j, packed += padded) {
      const A scale = scale_of(scales, at.scales, j);
      int64_t d = 0;
      for (; d < D; d += W)
        simd::store<Bytes>(packed + d, simd::load_part<Bytes>(values + at.rows[j] + d, D - d) * scale);
      for (; d < padded; d += W) simd::store<Bytes>(packed + d, simd::Vector<A, Bytes>{});
    }
  }

  template <int Bytes>
  static ALWAYS_INLINE void run(const DecodeTask<A>* task) {
    const DecodeTask<A>& t = *task;
    const DecodeAttentionParams& p = *t.p;
    const int64_t D = p.layout.D, padded = t.padded;
    A* const keys = t.work;
    A* const values = keys + padded * kTile;
    A* const scores = values + padded * kTile;
    // What any of the queries sees; the last one sees furthest, the first one furthest back.
    const int64_t end = std::min(t.key_end, t.position(t.queries - 1) + 1);
    const int64_t begin = p.window ? std::max(t.key_begin, t.position(0) + 1 - p.window) : t.key_begin;
    for (int64_t j0 = begin; j0 < end; j0 += kTile) {
      const int64_t n = std::min(kTile, end - j0);
      Rows at;
      find_rows(p.layout, t.b, j0, n, at.rows);
      if constexpr (sizeof(C) == 1) find_scales(p.layout, t.kv_begin, at.rows, n, at.scales);
      pack_keys<Bytes>(keys, static_cast<const C*>(p.k_cache) + t.kv_begin * D, p.k_scales, at, n, D);
      pack_values<Bytes>(values, static_cast<const C*>(p.v_cache) + t.kv_begin * D, p.v_scales, at, n, D, padded);
      simd::call_dots_from<Gemm<A>, simd::Isa{Bytes, false, false}>(
          GemmParams<A>{t.queries, kTile, D, t.q, padded, 1, keys, kTile, scores, kTile, false});
      for (int64_t i = 0; i < t.queries; ++i) {
        const int64_t position = t.position(i);
        const KeyRange seen = visible_keys(position, p.window, j0, n);
        A* const row = scores + i * kTile;
        if (seen.first == seen.last) {
          std::fill_n(row, kTile, A(0));
          continue;
        }
        apply<A, Bytes>(p.rule, t.head(t.kv_begin, i), {row, nullptr, 1, n, kTile, position - j0});
        softmax_tile<A, Bytes, kTile>(row, seen, t.m[i], t.l[i], t.acc + i * padded, padded);
      }
      simd::call_dots_from<Gemm<A>, simd::Isa{Bytes, false, false}>(
          GemmParams<A>{t.queries, padded, n, scores, kTile, 1, values, padded, t.acc, padded, true});
    }
  }
};

}  // namespace minigpt
