// Attention of one query a key/value head, or a few, over a long cache: it costs what reading the cache costs. A task takes
// all heads and reads the cache in the order in which it lies, token by token and of a token head by head: a tile's keys,
// then its values. With each row that it reads it asks memory for the one that it will come to kAhead bytes later; without
// that too few reads are under way, as each sum that waits for its numbers holds up the instructions behind it.
#pragma once
#include "../common/lanes.h"
#include "decode_tiles.h"

namespace minigpt {

// A tile of tokens as both passes over it, for scores and for sums of values, read it. Rows of a token lie side by side.
template <class A, class C>
struct FewTile {
  static constexpr int64_t kKeys = 64;
  static constexpr int64_t kAhead = 8192;  // bytes
  static constexpr int64_t kMostLanes = 64 / sizeof(A);

  // Where tokens lie, as they are read: n keys, n values, and of the next tile so many keys as are asked for ahead.
  const C* order[3 * kKeys];
  int64_t n, ahead;              // tokens
  int64_t first_key, first_new;  // positions of the tile's first token and of the sequence's first new one
  int64_t window, group, heads, queries, D, padded;
  const A* q;   // (heads, queries, padded)
  A* acc;       // likewise
  A* scores;    // (queries, pitch): as they arise, (n, heads), and room for a vector behind them
  A* weights;   // (heads, queries, kKeys)
  A* products;  // (queries, lanes, lanes): what scores are sums of, for a vector of them
  // With an int8 cache: where a token's scales are, for this tile's tokens and the next one's.
  const float *k_scales, *v_scales;
  int64_t scales[2 * kKeys];

  int64_t pitch() const { return heads * kKeys + kMostLanes; }
};

// What both passes have in common. kD: D where the compiler is to know it, else 0; kOne: there is one query.
template <class A, class C, int64_t kD, bool kOne>
struct FewPass {
  using Tile = FewTile<A, C>;
  static constexpr bool kScaled = sizeof(C) == 1;

  static ALWAYS_INLINE int64_t width(const Tile& t) { return kD ? kD : t.D; }
  static ALWAYS_INLINE int64_t padded(const Tile& t) { return kD ? kD : t.padded; }
  static ALWAYS_INLINE int64_t queries(const Tile& t) { return kOne ? 1 : t.queries; }

  // f(d, U) for each piece of a row that is U = 4 vectors, f(d, 1) for each vector behind them.
  template <int Bytes, class F>
  static ALWAYS_INLINE void each_piece(int64_t D, const F& f) {
    constexpr int W = simd::lanes<A, Bytes>, U = 4;
    int64_t d = 0;
    for (; d + U * W <= D; d += U * W) f(d, std::integral_constant<int, U>{});
    for (; d < D; d += W) f(d, std::integral_constant<int, 1>{});
  }

  template <int Bytes, int U>
  static ALWAYS_INLINE void prefetch(const C* piece) {
    for (int64_t d = 0; d < U * simd::lanes<A, Bytes>; d += 64 / sizeof(C)) __builtin_prefetch(piece + d);
  }

  // Vector u of a piece, of whose row `left` elements are left.
  template <int Bytes, int U>
  static ALWAYS_INLINE simd::Vector<A, Bytes> load(const C* piece, int u, int64_t left) {
    if constexpr (U == 1) return simd::load_part<Bytes>(piece, left);
    return simd::load<Bytes>(piece + u * simd::lanes<A, Bytes>);
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
    const auto add_up = [&]() __attribute__((always_inline)) {
      for (int64_t i = 0; i < queries; ++i) {
        V lines[W];
        for (int at = 0; at < W; ++at) lines[at] = simd::load<Bytes>(products + (i * W + at) * W);
        simd::store<Bytes>(scores + i * t.pitch(), simd::sum_each<A, Bytes>(lines));
      }
      scores += W;
    };
    int64_t lane = 0;
    for (int64_t j = 0; j < n; ++j) {
      const C *keys = t.order[j], *later = t.order[j + t.ahead];
      const A* q = t.q;
      if constexpr (Pass::kScaled) __builtin_prefetch(t.v_scales + t.scales[j]);
      for (int64_t h = 0; h < heads; ++h, keys += D, later += D, q += queries * padded) {
        Pass::template each_piece<Bytes>(D, [&](int64_t d, auto pieces) __attribute__((always_inline)) {
          constexpr int U = pieces;
          Pass::template prefetch<Bytes, U>(later + d);
          V part[U];
          for (int u = 0; u < U; ++u) part[u] = Pass::template load<Bytes, U>(keys + d, u, D - d);
          for (int64_t i = 0; i < queries; ++i) {
            A* const to = products + (i * W + lane) * W;
            V sum = {};
            for (int u = 0; u < U; ++u) sum += simd::load<Bytes>(q + i * padded + d + u * W) * part[u];
            if constexpr (Pass::kScaled) sum *= t.k_scales[t.scales[j] + h];
            simd::store<Bytes>(to, d ? simd::load<Bytes>(to) + sum : sum);
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
  using Pass = FewPass<A, C, kD, kOne>;

  // acc += sum of weight v over tokens j ... j + N - 1, for the queries [first, last) of each head.
  template <int Bytes, int N>
  static ALWAYS_INLINE void add(const FewTile<A, C>& t, int64_t j, int64_t first, int64_t last) {
    using V = simd::Vector<A, Bytes>;
    constexpr int W = simd::lanes<A, Bytes>;
    const int64_t D = Pass::width(t), padded = Pass::padded(t), queries = Pass::queries(t), heads = t.heads;
    const C* const* const values = t.order + t.n + j;
    A* acc = t.acc;
    const A* weights = t.weights + j;
    if constexpr (Pass::kScaled)
      for (int g = 0; g < N; ++g) __builtin_prefetch(t.k_scales + t.scales[t.n + j + g]);
    for (int64_t h = 0; h < heads; ++h, acc += queries * padded, weights += queries * t.kKeys)
      Pass::template each_piece<Bytes>(D, [&](int64_t d, auto pieces) __attribute__((always_inline)) {
        constexpr int U = pieces;
        for (int g = 0; g < N; ++g) Pass::template prefetch<Bytes, U>(values[g + t.ahead] + h * D + d);
        for (int64_t i = first; i < last; ++i) {
          V sum[U];
          for (int u = 0; u < U; ++u) sum[u] = simd::load<Bytes>(acc + i * padded + d + u * W);
          for (int g = 0; g < N; ++g) {
            A weight = weights[i * t.kKeys + g];
            if constexpr (Pass::kScaled) weight *= t.v_scales[t.scales[j + g] + h];
            for (int u = 0; u < U; ++u)
              sum[u] += weight * Pass::template load<Bytes, U>(values[g] + h * D + d, u, D - d);
          }
          for (int u = 0; u < U; ++u) simd::store<Bytes>(acc + i * padded + d + u * W, sum[u]);
        }
      });
  }

  template <int Bytes>
  static ALWAYS_INLINE void run(const FewTile<A, C>* tile) {
    constexpr int N = kTokens;
    const FewTile<A, C>& t = *tile;
    const int64_t queries = Pass::queries(t);
    // The queries that see token j: those before it do not, nor do those whose window it has left.
    const auto past = [&](int64_t j) { return t.first_key + j - t.first_new; };
    const auto first = [&](int64_t j) { return kOne ? 0 : std::clamp<int64_t>(past(j) * t.group, 0, queries); };
    const auto last = [&](int64_t j) {
      return kOne || !t.window ? queries : std::clamp<int64_t>((past(j) + t.window) * t.group, 0, queries);
    };
    for (int64_t j = 0; j < t.n;) {
      if (j + N <= t.n && first(j + N - 1) == 0 && last(j) == queries) {
        add<Bytes, N>(t, j, 0, queries);
        j += N;
      } else {
        add<Bytes, 1>(t, j, first(j), last(j));
        ++j;
      }
    }
  }

  static constexpr int kTokens = 4;
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

  // Scores (n, heads) of each query become rows of keys, (heads, queries, kKeys). What lies behind n is arbitrary.
  template <int Bytes>
  static ALWAYS_INLINE void turn_over(const Tile& t) {
    constexpr int W = simd::lanes<A, Bytes>;
    for (int64_t i = 0; i < t.queries; ++i)
      for (int64_t j = 0; j < t.n; j += W)
        for (int64_t h = 0; h < t.heads; h += W) {
          simd::Vector<A, Bytes> block[W];
          for (int r = 0; r < W; ++r) block[r] = simd::load<Bytes>(t.scores + i * t.pitch() + (j + r) * t.heads + h);
          simd::transpose<A, Bytes>(block);
          for (int r = 0; r < W && h + r < t.heads; ++r)
            simd::store<Bytes>(t.weights + ((h + r) * t.queries + i) * t.kKeys + j, block[r]);
        }
  }

  template <int Bytes>
  static ALWAYS_INLINE void run(const DecodeTask<A>* task) {
    const DecodeTask<A>& t = *task;
    const DecodeAttentionParams& p = *t.p;
    const int64_t D = p.layout.D, heads = t.kv_end - t.kv_begin, queries = t.queries;
    const C* const k = static_cast<const C*>(p.k_cache) + t.kv_begin * D;
    const C* const v = static_cast<const C*>(p.v_cache) + t.kv_begin * D;
    PagedLayout of_scales = p.layout;
    of_scales.D = 1;
    Tile tile;
    tile.first_new = t.first_position, tile.window = p.window, tile.group = t.group();
    tile.heads = heads, tile.queries = queries, tile.D = D, tile.padded = t.padded;
    tile.q = t.q, tile.acc = t.acc;
    tile.scores = t.work;
    tile.weights = tile.scores + queries * tile.pitch();
    tile.products = tile.weights + queries * heads * Tile::kKeys;
    if constexpr (sizeof(C) == 1) tile.k_scales = p.k_scales + t.kv_begin, tile.v_scales = p.v_scales + t.kv_begin;
    tile.ahead = std::clamp<int64_t>(Tile::kAhead / (heads * D * int64_t(sizeof(C))), 1, Tile::kKeys);

    // What any of the queries sees; the last one sees furthest, the first one furthest back.
    const int64_t end = std::min(t.key_end, t.position(queries - 1) + 1);
    const int64_t begin = p.window ? std::max(t.key_begin, t.position(0) + 1 - p.window) : t.key_begin;
    for (int64_t j0 = begin; j0 < end; j0 += Tile::kKeys) {
      const int64_t n = std::min(Tile::kKeys, end - j0), more = std::min(Tile::kKeys, end - j0 - n);
      tile.first_key = j0, tile.n = n;
      int64_t rows[2 * Tile::kKeys];
      find_rows(p.layout, t.b, j0, n + more, rows);
      for (int64_t j = 0; j < n; ++j) tile.order[j] = k + rows[j], tile.order[n + j] = v + rows[j];
      for (int64_t j = 0; j < tile.ahead; ++j) tile.order[2 * n + j] = j < more ? k + rows[n + j] : v + rows[n - 1];
      if constexpr (sizeof(C) == 1) {
        find_rows(of_scales, t.b, j0, n + more, tile.scales);
        std::fill_n(tile.scales + n + more, n - std::min(n, more), tile.scales[n - 1]);
      }

      read<Bytes, FewScores>(&tile);
      turn_over<Bytes>(tile);
      for (int64_t at = 0; at < heads * queries; ++at) {
        const int64_t h = at / queries, i = at % queries, position = t.position(i);
        const KeyRange seen = visible_keys(position, p.window, j0, n);
        if (seen.first == seen.last) continue;
        A* const row = tile.weights + at * Tile::kKeys;
        apply<A, Bytes>(p.rule, t.head(t.kv_begin + h, i), {row, nullptr, 1, n, Tile::kKeys, position - j0});
        softmax_tile<A, Bytes, Tile::kKeys>(row, seen, t.m[at], t.l[at], t.acc + at * t.padded, t.padded);
      }
      read<Bytes, FewValues>(&tile);
    }
  }
};

}  // namespace minigpt
