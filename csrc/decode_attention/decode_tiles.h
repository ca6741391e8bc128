// What the CPU's two ways of attending share: the work of a task, tiles of keys, and the online softmax
//   m' = max(m, max s)   l' = l e^(m - m') + sum e^(s - m')   acc' = acc e^(m - m') + sum e^(s - m') v
// A is the type of sums, C that of the cache.
#pragma once
#include <algorithm>
#include <cmath>

#include "../common/score_simd.h"
#include "decode_attention.h"

namespace minigpt {

// Sequence b's keys [key_begin, key_end) for key/value heads [kv_begin, kv_end), and of the queries of each of these heads
// (its new tokens by its group of query heads) those from query_begin on, `queries` of them.
template <class A>
struct DecodeTask {
  const DecodeAttentionParams* p;
  int64_t b, key_begin, key_end, kv_begin, kv_end, query_begin, queries;
  int64_t first_position;  // of the sequence's first new token
  int64_t padded;          // D as whole vectors, whichever the instruction set
  A *q, *acc;              // (key/value heads, queries, padded): scaled queries, unnormalised sums; zero behind D
  A *m, *l;                // (key/value heads, queries)
  A* work;                 // the kernel's own

  int64_t group() const { return p->H / p->layout.H_kv; }
  int64_t head(int64_t kv, int64_t i) const { return kv * group() + (query_begin + i) % group(); }
  int64_t position(int64_t i) const { return first_position + (query_begin + i) / group(); }
};

// Where the rows of n keys from j0 on lie: elements from the cache's begin, of its first head.
inline void find_rows(const PagedLayout& c, int64_t b, int64_t j0, int64_t n, int64_t* rows) {
  const int32_t* table = c.block_table + b * c.max_blocks + j0 / c.block_size;
  int64_t in_block = j0 % c.block_size;
  for (int64_t j = 0; j < n; ++j) {
    rows[j] = (*table * c.block_size + in_block) * c.H_kv * c.D;
    if (++in_block == c.block_size) in_block = 0, ++table;
  }
}

// Where the scales of head h's keys lie in an int8 cache.
inline void find_scales(const PagedLayout& c, int64_t h, const int64_t* rows, int64_t n, int64_t* places) {
  for (int64_t j = 0; j < n; ++j) places[j] = rows[j] / c.D + h;
}

template <class A>
ALWAYS_INLINE void times_scales(A* x, const float* scales, const int64_t* places, int64_t n) {
  for (int64_t j = 0; j < n; ++j) x[j] *= scales[places[j]];
}

struct KeyRange {
  int64_t first, last;
};

// Which of n keys from j0 on a query at `position` sees.
inline KeyRange visible_keys(int64_t position, int64_t window, int64_t j0, int64_t n) {
  const int64_t last = std::clamp<int64_t>(position + 1 - j0, 0, n);
  return {window ? std::clamp<int64_t>(position + 1 - window - j0, 0, last) : 0, last};
}

// Scores of a tile of keys, of which `seen` count, become weights relative to the new maximum; m, l and acc follow.
template <class A, int Bytes, int64_t kTile>
ALWAYS_INLINE void softmax_tile(A* scores, KeyRange seen, A& m, A& l, A* acc, int64_t padded) {
  using V = simd::Vector<A, Bytes>;
  constexpr int W = simd::lanes<A, Bytes>;
  for (int64_t j = 0; j < seen.first; ++j) scores[j] = -INFINITY;
  for (int64_t j = seen.last; j < kTile; ++j) scores[j] = -INFINITY;
  V highest = simd::load<Bytes>(scores);
  for (int64_t j = W; j < kTile; j += W) highest = simd::max(highest, simd::load<Bytes>(scores + j));
  const A top = simd::highest(highest), m_new = top > m ? top : m;
  V total = {};
  for (int64_t j = 0; j < kTile; j += W) {
    const V e = simd::exp<Bytes>(simd::load<Bytes>(scores + j) - m_new);
    total += e;
    simd::store<Bytes>(scores + j, e);
  }
  if (m_new != m) {
    const V rescale = simd::exp<Bytes>(V{} + (m - m_new));
    for (int64_t d = 0; d < padded; d += W) simd::store<Bytes>(acc + d, simd::load<Bytes>(acc + d) * rescale);
    l *= rescale[0];
    m = m_new;
  }
  l += simd::sum(total);
}

}  // namespace minigpt
