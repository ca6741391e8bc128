// What the CPU's forward and backward share: tiles of Queries x Keys scores, how tensors are packed for them, which keys a
// query sees, and dropout. Packed data is of the accumulation type A, whatever the tensors hold, in rows padded with zeros
// to whole vectors.
#pragma once
#include <algorithm>
#include <cmath>
#include <utility>

#include "../common/gemm.h"
#include "../common/philox.h"
#include "attention.h"

namespace minigpt {

constexpr int64_t kQueries = 32, kKeys = 64;  // a tile of scores: 8 KiB in float, beside its operands in the L1 cache

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Rows [row, row + n) of one head, times `factor`: packed (n, D_padded).
template <class T, int Bytes>
ALWAYS_INLINE void pack_rows(accumulate_t<T>* packed, const T* source, int64_t stride, int64_t n, int64_t D,
                             accumulate_t<T> factor) {
  constexpr int W = simd::lanes<accumulate_t<T>, Bytes>;
  const int64_t padded = round_up(D, W);
  for (int64_t r = 0; r < n; ++r)
    for (int64_t d = 0; d < D; d += W)
      simd::store<Bytes>(packed + r * padded + d, simd::load_part<Bytes>(source + r * stride + d, D - d) * factor);
}

template <class A, int Bytes, int... I>
ALWAYS_INLINE void transpose_step(const simd::Vector<A, Bytes>* from, simd::Vector<A, Bytes>* to,
                                  std::integer_sequence<int, I...>) {
  constexpr int W = sizeof...(I);
  for (int i = 0; i < W / 2; ++i) {  // interleave lines i and i + W/2
    to[2 * i] = __builtin_shufflevector(from[i], from[i + W / 2], (I % 2 ? W + I / 2 : I / 2)...);
    to[2 * i + 1] = __builtin_shufflevector(from[i], from[i + W / 2], (I % 2 ? W + (W + I) / 2 : (W + I) / 2)...);
  }
}

// n (<= kKeys) rows of one head, turned over: packed (D, kKeys), with zeros in the columns from n on.
// A W x W block is transposed in registers by log2(W) rounds of interleaving its lines.
template <class T, int Bytes>
ALWAYS_INLINE void pack_columns(accumulate_t<T>* packed, const T* source, int64_t stride, int64_t n, int64_t D) {
  using A = accumulate_t<T>;
  constexpr int W = simd::lanes<A, Bytes>;
  for (int64_t j = 0; j < kKeys; j += W) {
    for (int64_t d = 0; d < D; d += W) {
      simd::Vector<A, Bytes> a[W], b[W];
      for (int r = 0; r < W; ++r)
        a[r] = j + r < n ? simd::load_part<Bytes>(source + (j + r) * stride + d, D - d) : simd::Vector<A, Bytes>{};
      constexpr auto lanes = std::make_integer_sequence<int, W>{};
      constexpr int rounds = W == 2 ? 1 : W == 4 ? 2 : W == 8 ? 3 : 4;
      for (int round = 0; round < rounds; ++round) {
        transpose_step<A, Bytes>(a, b, lanes);
        for (int r = 0; r < W; ++r) a[r] = b[r];
      }
      for (int64_t r = 0; r < W && d + r < D; ++r) simd::store<Bytes>(packed + (d + r) * kKeys + j, a[r]);
    }
  }
}

// Which keys of the tile from key `j0` on query i sees: [first, last), within 0 ... n.
struct Range {
  int64_t first, last;
};

inline Range visible(const AttentionShape& s, int64_t i, int64_t j0, int64_t n) {
  const int64_t position = i + s.S - s.T;
  if (!s.causal) return {0, n};
  const int64_t last = std::clamp<int64_t>(position + 1 - j0, 0, n);
  const int64_t first = s.window ? std::clamp<int64_t>(position - s.window + 1 - j0, 0, last) : 0;
  return {first, last};
}

// The keys that any of the queries [begin, end) sees, as a range that begins at a tile.
inline Range keys_of(const AttentionShape& s, int64_t begin, int64_t end) {
  if (!s.causal) return {0, s.S};
  const int64_t shift = s.S - s.T, last = std::clamp<int64_t>(end + shift, 0, s.S);
  const int64_t first = s.window ? std::max<int64_t>(0, begin + shift - s.window + 1) / kKeys * kKeys : 0;
  return {std::min(first, last), last};
}

// The queries that see any of the keys [begin, end), likewise.
inline Range queries_of(const AttentionShape& s, int64_t begin, int64_t end) {
  if (!s.causal) return {0, s.T};
  const int64_t shift = s.S - s.T;
  const int64_t first = std::clamp<int64_t>(begin - shift, 0, s.T) / kQueries * kQueries;
  const int64_t last = s.window ? std::clamp<int64_t>(end - 1 + s.window - shift, 0, s.T) : s.T;
  return {std::min(first, last), last};
}

// Keys that the query does not see get a score of minus infinity; so do the columns from n on.
template <class A>
ALWAYS_INLINE void mask_row(A* scores, Range seen) {
  for (int64_t j = 0; j < seen.first; ++j) scores[j] = -INFINITY;
  for (int64_t j = seen.last; j < kKeys; ++j) scores[j] = -INFINITY;
}

// Dropout's factors for query i and keys j0 ... j0 + kKeys - 1 (j0 is a multiple of 4): 0, or 1 / (1 - dropout_p).
// The rounds run over all counters side by side, so that the compiler makes vectors of them.
template <class A>
ALWAYS_INLINE void dropout_factors(A* factors, const AttentionShape& s, uint64_t seed, int64_t bh, int64_t i,
                                   int64_t j0) {
  PhiloxWords words[kKeys / 4];
  for (int64_t g = 0; g < kKeys / 4; ++g) words[g] = attention_dropout_words(seed, bh, i, j0 + 4 * g);
  for (int64_t j = 0; j < kKeys; ++j)
    factors[j] = words[j / 4].word[j % 4] < s.dropout_threshold ? A(0) : A(s.dropout_scale);
}

}  // namespace minigpt
