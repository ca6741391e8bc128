// Attention of one query a key/value head, or a few, over a long cache: it costs what reading the cache costs. A task takes
// all heads and reads the cache in the order in which it lies, token by token and of a token head by head: a tile's keys,
// then its values. With each row that it reads it asks memory for the one that it will come to kAhead bytes later; without
// that too few reads are under way, as each sum that waits for its numbers holds up the instructions behind it.
#pragma once
#include "../common/lanes.h"
#include "decode_tiles.h"

namespace minigpt {

// A tile of tokens as both passes over it, for scores and for sums of values, read it. `order`: where tokens lie, as they
// are read: the tile's keys, its values, the next tile's first keys. Rows of a token lie side by side.
template <class A, class C>
struct FewTile {
  static constexpr int64_t kKeys = 64;
  static constexpr int64_t kAhead = 8192;  // bytes
  static constexpr int64_t kMostLanes = 64 / sizeof(A);

  const C* order[3 * kKeys];
  int64_t n, ahead;              // tokens, of the tile, and for which memory is asked early
  int64_t first_key, first_new;  // positions of the tile's first token and of the sequence's first new one
  int64_t window, group, heads, queries, D, padded;
  const A* q;   // (heads, queries, padded)
  A* acc;       // likewise
  A* scores;    // (queries, pitch): scores as they arise, (n, heads), and room for a vector behind them
  A* weights;   // (heads, queries, kKeys)
  A* products;  // (queries, lanes, lanes): what scores are sums of, for a vector of them

  int64_t pitch() const { return heads * kKeys + kMostLanes; }
};

// What both passes have in common. kD: D where the compiler is to know it, else 0; kOne: there is one query.
template <class A, class C, int64_t kD, bool kOne>
struct FewPass {
  using Tile = FewTile<A, C>;

  static ALWAYS_INLINE int64_t width(const Tile& t) { return kD ? kD : t.D; }
  static ALWAYS_INLINE int64_t padded(const Tile& t) { return kD ? kD : t.padded; }
  static ALWAYS_INLINE int64_t queries(const Tile& t) { return kOne ? 1 : t.queries; }

  // f(d, vectors, how many) for the vectors of a row, the last of which may be partly zero.
  template <int Bytes, class F>
  static ALWAYS_INLINE void read(const C* row, const C* later, int64_t D, const F& f) {
    constexpr int W = simd::lanes<A, Bytes>, U = 4;
    constexpr int64_t line = 64 / sizeof(C);
    int64_t d = 0;
    for (; d + U * W <= D; d += U * W) {
      for (int64_t at = 0; at < U * W; at += line) __builtin_prefetch(later + d + at);
      simd::Vector<A, Bytes> part[U];
      for (int u = 0; u < U; ++u) part[u] = simd::load<Bytes>(row + d + u * W);
      f(d, part, std::integral_constant<int, U>{});
    }
    for (; d < D; d += W) {
      __builtin_prefetch(later + d);
      const simd::Vector<A, Bytes> part = simd::load_part<Bytes>(row + d, D - d);
      f(d, &part, std::integral_constant<int, 1>{});
    }
  }
};

template <class A, class C, int64_t kD, bool kOne>
struct FewScores : FewPass<A, C, kD, kOne> {
  template <int Bytes>
  static ALWAYS_INLINE void run(const FewTile<A, C>* tile) {
    using V = simd::Vector<A, Bytes>;
    constexpr int W = simd::lanes<A, Bytes>;
    using Pass = FewPass<A, C, kD, kOne>;
    const FewTile<A, C>& t = *tile;
    const int64_t D = Pass::width(t), padded = Pass::padded(t), queries = Pass::queries(t), heads = t.heads, n = t.n;
    A *const products = t.products, *scores = t.scores;
    const auto add_up = [&] {
      for (int64_t i = 0; i < queries; ++i) {
        V lines[W];
        for (int at = 0; at < W; ++at) lines[at] = simd::load<Bytes>(products + (i * W + at) * W);
        simd::store<Bytes>(scores + i * t.pitch(), simd::sum_each<A, Bytes>(lines));
      }
      scores += W;
    };
    int64_t lane = 0;
    for (int64_t j = 0; j < n; ++j) {
      const C *const keys = t.order[j], *const later = t.order[j + t.ahead];
      const A* q = t.q;
      for (int64_t h = 0; h < heads; ++h, q += queries * padded) {
        Pass::template read<Bytes>(keys + h * D, later + h * D, D, [&](int64_t d, const V* part, auto count) {
          for (int64_t i = 0; i < queries; ++i) {
            A* const to = products + (i * W + lane) * W;
            V sum = d ? simd::load<Bytes>(to) : V{};
            for (int u = 0; u < count; ++u) sum += simd::load<Bytes>(q + i * padded + d + u * W) * part[u];
            simd::store<Bytes>(to, sum);
          }
        });
        if (++lane == W) add_up(), lane = 0;
      }
    }
    if (lane) add_up();
  }
};

template <class A, class C, int64_t kD, bool kOne>
struct FewValues : FewPass<A, C, kD, kOne> {
  template <int Bytes>
  static ALWAYS_INLINE void run(const FewTile<A, C>* tile) {
    using V = simd::Vector<A, Bytes>;
    constexpr int W = simd::lanes<A, Bytes>;
    using Pass = FewPass<A, C, kD, kOne>;
    const FewTile<A, C>& t = *tile;
    const int64_t D = Pass::width(t), padded = Pass::padded(t), queries = Pass::queries(t), heads = t.heads, n = t.n;
    for (int64_t j = 0; j < n; ++j) {
      const C *const values = t.order[n + j], *const later = t.order[n + j + t.ahead];
      const int64_t past = t.first_key + j - t.first_new;  // the new tokens before this one, which do not see it
      const int64_t first = kOne ? 0 : std::clamp<int64_t>(past * t.group, 0, queries);
      const int64_t last =
          kOne || !t.window ? queries : std::clamp<int64_t>((past + t.window) * t.group, first, queries);
      A* acc = t.acc;
      const A* weights = t.weights + j;
      for (int64_t h = 0; h < heads; ++h, acc += queries * padded, weights += queries * t.kKeys)
        Pass::template read<Bytes>(values + h * D, later + h * D, D, [&](int64_t d, const V* part, auto count) {
          for (int64_t i = first; i < last; ++i)
            for (int u = 0; u < count; ++u) {
              A* const to = acc + i * padded + d + u * W;
              simd::store<Bytes>(to, simd::load<Bytes>(to) + weights[i * t.kKeys] * part[u]);
            }
        });
    }
  }
};

template <class A, class C>
struct AttendFew {
  using Tile = FewTile<A, C>;

  // Elements for a tile's scores, weights and products.
  static int64_t work(int64_t heads, int64_t queries, int64_t /*padded*/) {
    return queries * (2 * heads * Tile::kKeys + Tile::kMostLanes + Tile::kMostLanes * Tile::kMostLanes);
  }

  template <int Bytes, template <class, class, int64_t, bool> class Pass, bool kOne>
  static ALWAYS_INLINE void read(const Tile* tile) {
    if (tile->D == 64) return simd::call_from<Pass<A, C, 64, kOne>, Bytes>(tile);
    if (tile->D == 128) return simd::call_from<Pass<A, C, 128, kOne>, Bytes>(tile);
    simd::call_from<Pass<A, C, 0, kOne>, Bytes>(tile);
  }

  template <int Bytes, template <class, class, int64_t, bool> class Pass>
  static ALWAYS_INLINE void read(const Tile* tile) {
    if (tile->queries == 1) return read<Bytes, Pass, true>(tile);
    read<Bytes, Pass, false>(tile);
  }

  template <int Bytes>
  static ALWAYS_INLINE void run(const DecodeTask<A>* task) {
    const DecodeTask<A>& t = *task;
    const DecodeAttentionParams& p = *t.p;
    const int64_t D = p.layout.D, heads = t.kv_end - t.kv_begin, queries = t.queries;
    const C* const k = static_cast<const C*>(p.k_cache) + t.kv_begin * D;
    const C* const v = static_cast<const C*>(p.v_cache) + t.kv_begin * D;
    Tile tile;
    tile.first_new = t.first_position, tile.window = p.window, tile.group = t.group();
    tile.heads = heads, tile.queries = queries, tile.D = D, tile.padded = t.padded;
    tile.q = t.q, tile.acc = t.acc;
    tile.scores = t.work;
    tile.weights = tile.scores + queries * tile.pitch();
    tile.products = tile.weights + queries * heads * Tile::kKeys;
    tile.ahead = std::clamp<int64_t>(Tile::kAhead / (heads * D * int64_t(sizeof(C))), 1, Tile::kKeys);

    // What any of the queries sees; the last one sees furthest, the first one furthest back.
    const int64_t end = std::min(t.key_end, t.position(queries - 1) + 1);
    const int64_t begin = p.window ? std::max(t.key_begin, t.position(0) + 1 - p.window) : t.key_begin;
    for (int64_t j0 = begin; j0 < end; j0 += Tile::kKeys) {
      const int64_t n = std::min(Tile::kKeys, end - j0), more = std::min(tile.ahead, end - j0 - n);
      tile.first_key = j0, tile.n = n;
      int64_t rows[2 * Tile::kKeys], scales[Tile::kKeys];
      find_rows(p.layout, t.b, j0, n + more, rows);
      if constexpr (sizeof(C) == 1) find_scales(p.layout, t.kv_begin, rows, n, scales);
      for (int64_t j = 0; j < n; ++j) tile.order[j] = k + rows[j], tile.order[n + j] = v + rows[j];
      for (int64_t j = 0; j < tile.ahead; ++j) tile.order[2 * n + j] = j < more ? k + rows[n + j] : v + rows[n - 1];

      read<Bytes, FewScores>(&tile);
      for (int64_t at = 0; at < heads * queries; ++at) {
        const int64_t h = at / queries, i = at % queries, position = t.position(i);
        const KeyRange seen = visible_keys(position, p.window, j0, n);
        if (seen.first == seen.last) continue;
        A* const row = tile.weights + at * Tile::kKeys;
        for (int64_t j = 0; j < n; ++j) {
          row[j] = tile.scores[i * tile.pitch() + j * heads + h];
          if constexpr (sizeof(C) == 1) row[j] *= p.k_scales[scales[j] + h];
        }
        apply<A, Bytes>(p.rule, t.head(t.kv_begin + h, i), {row, nullptr, 1, n, Tile::kKeys, position - j0});
        softmax_tile<A, Bytes, Tile::kKeys>(row, seen, t.m[at], t.l[at], t.acc + at * t.padded, t.padded);
        if constexpr (sizeof(C) == 1) times_scales(row, p.v_scales + h, scales, n);
      }
      read<Bytes, FewValues>(&tile);
    }
  }
};

}  // namespace minigpt
