// Decode attention on the CPU. A task takes one sequence, one key/value head and one run of its keys; for each query row of
// that head's group it goes over the keys in tiles of 64, with an online softmax:
//   m' = max(m, max s)   l' = l e^(m - m') + sum e^(s - m')   acc' = acc e^(m - m') + sum e^(s - m') v
// Scores are dot products along D, the weighted sum adds whole rows of V: both read the cache row by row, as it lies.
#include <algorithm>
#include <cmath>

#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "../common/simd.h"
#include "decode_attention.h"

namespace minigpt {
namespace {

constexpr int kTile = 64;
constexpr int kMaxD = 256;

// Where things are for one sequence.
struct Sequence {
  int64_t first_row, rows, length;  // its new tokens among all rows; its tokens in the cache, the new ones included
};

Sequence sequence_of(const PagedLayout& l, int64_t b) {
  if (l.query_start) return {l.query_start[b], l.query_start[b + 1] - l.query_start[b], l.seq_lens[b]};
  return {b * l.T, l.T, l.seq_lens[b]};
}

template <class T>
struct Attend {
  using A = accumulate_t<T>;

  // sum_d q_d k_d over D elements; q is padded with zeros to whole vectors.
  template <int Bytes>
  static ALWAYS_INLINE A dot(const A* q, const T* k, int64_t D) {
    constexpr int W = simd::lanes<A, Bytes>;
    simd::Vector<A, Bytes> sum = {};
    for (int64_t d = 0; d < D; d += W) sum += simd::load<Bytes>(q + d) * simd::load_part<Bytes>(k + d, D - d);
    return simd::sum(sum);
  }

  // acc = acc * scale + sum_j p_j v_j, for U vectors from element d on.
  template <int Bytes, int U>
  static ALWAYS_INLINE void add_rows(A* acc, A scale, const A* p, const T* const* rows, int64_t n, int64_t d) {
    constexpr int W = simd::lanes<A, Bytes>;
    simd::Vector<A, Bytes> sum[U];
    for (int u = 0; u < U; ++u) sum[u] = simd::load<Bytes>(acc + d + u * W) * scale;
    for (int64_t j = 0; j < n; ++j)
      for (int u = 0; u < U; ++u) sum[u] += p[j] * simd::load<Bytes>(rows[j] + d + u * W);
    for (int u = 0; u < U; ++u) simd::store<Bytes>(acc + d + u * W, sum[u]);
  }

  // Query row `q` of head h against keys [begin, end) of sequence b; the result is left in acc (unnormalised), m and l.
  template <int Bytes>
  static ALWAYS_INLINE void row(const DecodeAttentionParams& p, int64_t b, int64_t h_kv, const A* q, int64_t begin,
                                int64_t end, A* acc, A& m, A& l) {
    constexpr int W = simd::lanes<A, Bytes>;
    const PagedLayout& cache = p.layout;
    const int64_t D = cache.D;
    for (int64_t j0 = begin; j0 < end; j0 += kTile) {
      const int64_t n = std::min<int64_t>(kTile, end - j0);
      const T *k_rows[kTile], *v_rows[kTile];
      for (int64_t j = 0; j < n; ++j) {
        const int64_t position = j0 + j;
        const int64_t block = cache.block_table[b * cache.max_blocks + position / cache.block_size];
        const int64_t at = ((block * cache.block_size + position % cache.block_size) * cache.H_kv + h_kv) * D;
        k_rows[j] = static_cast<const T*>(p.k_cache) + at;
        v_rows[j] = static_cast<const T*>(p.v_cache) + at;
      }
      A scores[kTile];
      A highest = -INFINITY;
      for (int64_t j = 0; j < n; ++j) {
        scores[j] = dot<Bytes>(q, k_rows[j], D);
        highest = scores[j] > highest ? scores[j] : highest;
      }
      for (int64_t j = n; j < kTile; ++j) scores[j] = -INFINITY;
      const A m_new = std::max(m, highest);
      const A rescale = m == -INFINITY ? A(0) : std::exp(m - m_new);
      simd::Vector<A, Bytes> total = {};
      for (int64_t j = 0; j < kTile; j += W) {
        const auto e = simd::exp<Bytes>(simd::load<Bytes>(scores + j) - m_new);
        total += e;
        simd::store<Bytes>(scores + j, e);
      }
      l = l * rescale + simd::sum(total);
      m = m_new;
      int64_t d = 0;
      for (; d + 4 * W <= D; d += 4 * W) add_rows<Bytes, 4>(acc, rescale, scores, v_rows, n, d);
      for (; d + W <= D; d += W) add_rows<Bytes, 1>(acc, rescale, scores, v_rows, n, d);
      for (; d < D; ++d) {
        A sum = acc[d] * rescale;
        for (int64_t j = 0; j < n; ++j) sum += scores[j] * simd::load_one(v_rows[j] + d);
        acc[d] = sum;
      }
    }
  }

  template <int Bytes>
  static ALWAYS_INLINE void run(const DecodeAttentionParams* params, int64_t b, int64_t h_kv, int64_t split) {
    const DecodeAttentionParams& p = *params;
    const Sequence sequence = sequence_of(p.layout, b);
    const int64_t D = p.layout.D, group = p.H / p.layout.H_kv;
    const int64_t split_begin = split * p.keys_per_split;
    const int64_t split_end = std::min(sequence.length, split_begin + p.keys_per_split);
    for (int64_t i = 0; i < sequence.rows; ++i) {
      const int64_t seen = std::max<int64_t>(0, sequence.length - sequence.rows + i + 1);
      const int64_t begin = std::max(split_begin, p.window ? std::max<int64_t>(0, seen - p.window) : 0);
      const int64_t end = std::min(split_end, seen);
      const int64_t row_index = sequence.first_row + i;
      const int64_t q_row =
          p.layout.query_start ? row_index * p.q_token_stride : b * p.q_batch_stride + i * p.q_token_stride;
      for (int64_t h = h_kv * group; h < (h_kv + 1) * group; ++h) {
        alignas(64) A q[kMaxD] = {}, acc[kMaxD] = {};
        const T* q_given = static_cast<const T*>(p.q) + q_row + h * p.q_head_stride;
        for (int64_t d = 0; d < D; d += simd::lanes<A, Bytes>)
          simd::store<Bytes>(q + d, simd::load_part<Bytes>(q_given + d, D - d) * A(p.scale));
        A m = -INFINITY, l = 0;
        row<Bytes>(p, b, h_kv, q, begin, end, acc, m, l);
        const int64_t at = row_index * p.H + h;
        if (p.splits > 1) {
          std::copy_n(acc, D, static_cast<A*>(p.partial_out) + (at * p.splits + split) * D);
          A* stats = static_cast<A*>(p.partial_stats) + (at * p.splits + split) * 2;
          stats[0] = m, stats[1] = l;
        } else {
          const A inverse = l > 0 ? A(1) / l : A(0);
          write<Bytes>(static_cast<T*>(p.out) + at * D, acc, inverse, D);
        }
      }
    }
  }

  template <int Bytes>
  static ALWAYS_INLINE void write(T* out, const A* acc, A factor, int64_t D) {
    constexpr int W = simd::lanes<A, Bytes>;
    for (int64_t d = 0; d < D; d += W)
      simd::store_part<Bytes>(out + d, simd::load<Bytes>(acc + d) * factor, D - d);  // acc is padded
  }
};

// One query row and head: the splits' sums, weighted by e^(m - highest m), in the order of the splits.
template <class T>
struct Merge {
  using A = accumulate_t<T>;

  template <int Bytes>
  static ALWAYS_INLINE void run(const DecodeAttentionParams* p, int64_t at) {
    const int64_t D = p->layout.D;
    const A* stats = static_cast<const A*>(p->partial_stats) + at * p->splits * 2;
    const A* partial = static_cast<const A*>(p->partial_out) + at * p->splits * D;
    A highest = -INFINITY, total = 0;
    for (int64_t s = 0; s < p->splits; ++s) highest = std::max(highest, stats[2 * s]);
    alignas(64) A acc[kMaxD] = {};
    for (int64_t s = 0; s < p->splits; ++s) {
      if (stats[2 * s + 1] <= 0) continue;  // this split saw nothing
      const A factor = std::exp(stats[2 * s] - highest);
      total += factor * stats[2 * s + 1];
      for (int64_t d = 0; d < D; ++d) acc[d] += factor * partial[s * D + d];
    }
    Attend<T>::template write<Bytes>(static_cast<T*>(p->out) + at * D, acc, total > 0 ? A(1) / total : A(0), D);
  }
};

}  // namespace

void decode_attention_cpu(const DecodeAttentionParams& p) {
  const PagedLayout& l = p.layout;
  const int64_t rows = l.query_start ? l.T : l.B * l.T;
  int64_t keys = 0;
  for (int64_t b = 0; b < l.B; ++b) keys += l.seq_lens[b];
  const bool worth_waking = keys * l.D * p.H * rows / std::max<int64_t>(1, l.B) > 100000;
  dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    parallel_tasks(l.B * l.H_kv * p.splits, worth_waking, [&](int64_t task) {
      const int64_t split = task % p.splits, head = task / p.splits;
      simd::call<Attend<T>>(&p, head / l.H_kv, head % l.H_kv, split);
    });
    if (p.splits > 1) parallel_tasks(rows * p.H, worth_waking, [&](int64_t at) { simd::call<Merge<T>>(&p, at); });
  });
}

}  // namespace minigpt
