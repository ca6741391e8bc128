// Decode attention on the CPU. A task takes one sequence, a run of its keys and a range of its key/value heads, and goes over
// the keys in tiles, with an online softmax for each of its query rows and heads:
//   m' = max(m, max s)   l' = l e^(m - m') + sum e^(s - m')   acc' = acc e^(m - m') + sum e^(s - m') v
// A single new token costs what reading the cache costs; so its task takes all heads, and a token's keys (H_kv * D of them)
// are read in the order in which they lie, as one stream. With more new tokens the arithmetic counts, and heads go apart.
#include <algorithm>
#include <cmath>

#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "../common/score_simd.h"
#include "../common/scratch.h"
#include "../common/simd.h"
#include "decode_attention.h"

namespace minigpt {
namespace {

constexpr int kTile = 64;

// Where things are for one sequence.
struct Sequence {
  int64_t first_row, rows, length;  // its new tokens among all rows; its tokens in the cache, the new ones included
};

Sequence sequence_of(const PagedLayout& l, int64_t b) {
  if (l.query_start) return {l.query_start[b], l.query_start[b + 1] - l.query_start[b], l.seq_lens[b]};
  return {b * l.T, l.T, l.seq_lens[b]};
}

// Scratch of a task, for its `rows` query rows of `heads` heads each; D is padded to whole vectors.
template <class A>
struct State {
  A *q, *acc;  // (rows, heads, padded): scaled queries, unnormalised sums
  A *m, *l;    // (rows, heads)
  A* scores;   // (heads, kTile), of the row at hand
  int64_t padded;
};

template <class T>
struct Attend {
  using A = accumulate_t<T>;

  // Scores of `Keys` keys of one head: sum_d q_d k_d over D elements; q is padded with zeros.
  template <int Bytes, int Keys>
  static ALWAYS_INLINE void dot(A* scores, const A* q, const T* const* k, int64_t at, int64_t D) {
    constexpr int W = simd::lanes<A, Bytes>;
    simd::Vector<A, Bytes> sum[Keys] = {};
    int64_t d = 0;
    for (; d + W <= D; d += W)
      for (int j = 0; j < Keys; ++j) sum[j] += simd::load<Bytes>(q + d) * simd::load<Bytes>(k[j] + at + d);
    if (d < D)
      for (int j = 0; j < Keys; ++j) sum[j] += simd::load<Bytes>(q + d) * simd::load_part<Bytes>(k[j] + at + d, D - d);
    for (int j = 0; j < Keys; ++j) scores[j] = simd::sum(sum[j]);
  }

  // Scores of n (<= kTile) keys become weights relative to the new maximum; m, l and acc follow.
  template <int Bytes>
  static ALWAYS_INLINE void softmax(A* scores, int64_t n, A& m, A& l, A* acc, int64_t padded) {
    using V = simd::Vector<A, Bytes>;
    constexpr int W = simd::lanes<A, Bytes>;
    for (int64_t j = n; j < kTile; ++j) scores[j] = -INFINITY;
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

  // acc += sum_j weights_j v_j over `Keys` keys of one head.
  template <int Bytes, int Keys>
  static ALWAYS_INLINE void add_values(A* acc, const A* weights, const T* const* v, int64_t at, int64_t D) {
    constexpr int W = simd::lanes<A, Bytes>;
    A weight[Keys];
    for (int j = 0; j < Keys; ++j) weight[j] = weights[j];
    int64_t d = 0;
    for (; d + W <= D; d += W) {
      auto sum = simd::load<Bytes>(acc + d);
      for (int j = 0; j < Keys; ++j) sum += weight[j] * simd::load<Bytes>(v[j] + at + d);
      simd::store<Bytes>(acc + d, sum);
    }
    if (d < D) {
      auto sum = simd::load<Bytes>(acc + d);
      for (int j = 0; j < Keys; ++j) sum += weight[j] * simd::load_part<Bytes>(v[j] + at + d, D - d);
      simd::store<Bytes>(acc + d, sum);
    }
  }

  // One query row, all heads of the task (h_begin is the first), against n keys whose cache rows are given; the query
  // stands `distance` behind the first of them.
  template <int Bytes>
  static ALWAYS_INLINE void row(const State<A>& state, int64_t row, int64_t heads, int64_t group, const T* const* k,
                                const T* const* v, int64_t n, int64_t D, const ScoreRule& rule, int64_t h_begin,
                                int64_t distance) {
    const A* q = state.q + row * heads * state.padded;
    A* acc = state.acc + row * heads * state.padded;
    int64_t j = 0;
    for (; j + 4 <= n; j += 4)
      for (int64_t h = 0; h < heads; ++h) {
        dot<Bytes, 4>(state.scores + h * kTile + j, q + h * state.padded, k + j, h / group * D, D);
        // The values of these keys come next: memory brings them while the scores are worked out.
        for (int64_t i = j; i < j + 4; ++i)
          for (int64_t d = 0; d < D; d += 64 / int64_t(sizeof(T))) __builtin_prefetch(v[i] + h / group * D + d);
      }
    for (; j < n; ++j)
      for (int64_t h = 0; h < heads; ++h)
        dot<Bytes, 1>(state.scores + h * kTile + j, q + h * state.padded, k + j, h / group * D, D);
    for (int64_t h = 0; h < heads; ++h)
      apply<A, Bytes>(rule, h_begin + h, {state.scores + h * kTile, nullptr, 1, n, kTile, distance});
    for (int64_t h = 0; h < heads; ++h)
      softmax<Bytes>(state.scores + h * kTile, n, state.m[row * heads + h], state.l[row * heads + h],
                     acc + h * state.padded, state.padded);
    j = 0;
    for (; j + 4 <= n; j += 4)
      for (int64_t h = 0; h < heads; ++h)
        add_values<Bytes, 4>(acc + h * state.padded, state.scores + h * kTile + j, v + j, h / group * D, D);
    for (; j < n; ++j)
      for (int64_t h = 0; h < heads; ++h)
        add_values<Bytes, 1>(acc + h * state.padded, state.scores + h * kTile + j, v + j, h / group * D, D);
  }

  // Sequence b, key/value heads [kv_begin, kv_end), keys of run `split`.
  template <int Bytes>
  static ALWAYS_INLINE void run(const DecodeAttentionParams* params, int64_t b, int64_t kv_begin, int64_t kv_end,
                                int64_t split) {
    constexpr int W = simd::lanes<A, Bytes>;
    const DecodeAttentionParams& p = *params;
    const PagedLayout& cache = p.layout;
    const Sequence sequence = sequence_of(cache, b);
    const int64_t D = cache.D, group = p.H / cache.H_kv, heads = (kv_end - kv_begin) * group, rows = sequence.rows;
    const int64_t h_begin = kv_begin * group;

    State<A> state;
    state.padded = (D + W - 1) / W * W;
    Scratch scratch(2 * Scratch::bytes_for<A>(rows * heads * state.padded) + 2 * Scratch::bytes_for<A>(rows * heads) +
                    Scratch::bytes_for<A>(heads * kTile));
    state.q = scratch.take<A>(rows * heads * state.padded);
    state.acc = scratch.take<A>(rows * heads * state.padded);
    state.m = scratch.take<A>(rows * heads);
    state.l = scratch.take<A>(rows * heads);
    state.scores = scratch.take<A>(heads * kTile);
    std::fill_n(state.acc, rows * heads * state.padded, A(0));
    std::fill_n(state.m, rows * heads, A(-INFINITY));
    std::fill_n(state.l, rows * heads, A(0));
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at =
          cache.query_start ? (sequence.first_row + i) * p.q_token_stride : b * p.q_batch_stride + i * p.q_token_stride;
      for (int64_t h = 0; h < heads; ++h) {
        const T* q = static_cast<const T*>(p.q) + at + (h_begin + h) * p.q_head_stride;
        for (int64_t d = 0; d < D; d += W)
          simd::store<Bytes>(state.q + (i * heads + h) * state.padded + d,
                             simd::load_part<Bytes>(q + d, D - d) * A(p.scale));
      }
    }

    const int64_t begin = split * p.keys_per_split, end = std::min(sequence.length, begin + p.keys_per_split);
    for (int64_t j0 = begin; j0 < end; j0 += kTile) {
      const int64_t n = std::min<int64_t>(kTile, end - j0);
      const T *k[kTile], *v[kTile];
      for (int64_t j = 0; j < n; ++j) {
        const int64_t block = cache.block_table[b * cache.max_blocks + (j0 + j) / cache.block_size];
        const int64_t token = block * cache.block_size + (j0 + j) % cache.block_size;
        k[j] = static_cast<const T*>(p.k_cache) + (token * cache.H_kv + kv_begin) * D;
        v[j] = static_cast<const T*>(p.v_cache) + (token * cache.H_kv + kv_begin) * D;
      }
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t sees = sequence.length - rows + i + 1;  // the first `sees` keys, the last `window` of those
        const int64_t first = p.window ? std::clamp<int64_t>(sees - p.window - j0, 0, n) : 0;
        const int64_t last = std::clamp<int64_t>(sees - j0, first, n);
        if (first < last)
          row<Bytes>(state, i, heads, group, k + first, v + first, last - first, D, p.rule, h_begin,
                     sees - 1 - j0 - first);
      }
    }

    for (int64_t i = 0; i < rows; ++i)
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t at = (sequence.first_row + i) * p.H + h_begin + h;
        const A *acc = state.acc + (i * heads + h) * state.padded, l = state.l[i * heads + h];
        if (p.splits == 1) {
          write<Bytes>(static_cast<T*>(p.out) + at * D, acc, l == 0 ? A(0) : A(1) / l, D);
        } else {
          std::copy_n(acc, D, static_cast<A*>(p.partial_out) + (at * p.splits + split) * D);
          A* stats = static_cast<A*>(p.partial_stats) + (at * p.splits + split) * 2;
          stats[0] = state.m[i * heads + h], stats[1] = l;
        }
      }
  }

  // acc * factor; acc is padded.
  template <int Bytes>
  static ALWAYS_INLINE void write(T* out, const A* acc, A factor, int64_t D) {
    for (int64_t d = 0; d < D; d += simd::lanes<A, Bytes>)
      simd::store_part<Bytes>(out + d, simd::load<Bytes>(acc + d) * factor, D - d);
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
    alignas(64) A acc[256] = {};  // the largest D
    for (int64_t s = 0; s < p->splits; ++s) {
      if (stats[2 * s + 1] == 0) continue;  // this split saw nothing
      const A factor = std::exp(stats[2 * s] - highest);
      total += factor * stats[2 * s + 1];
      for (int64_t d = 0; d < D; ++d) acc[d] += factor * partial[s * D + d];
    }
    Attend<T>::template write<Bytes>(static_cast<T*>(p->out) + at * D, acc, total == 0 ? A(0) : A(1) / total, D);
  }
};

// One new token a sequence: a task takes all heads.
int64_t head_ranges(const PagedLayout& l) { return new_token_rows(l) > l.B ? l.H_kv : 1; }

}  // namespace

int64_t decode_attention_tasks(const DecodeAttentionParams& p) { return p.layout.B * head_ranges(p.layout) * p.splits; }

void decode_attention_task_cpu(const DecodeAttentionParams& p, int64_t task) {
  const int64_t ranges = head_ranges(p.layout), heads = p.layout.H_kv / ranges;
  const int64_t split = task % p.splits, range = task / p.splits % ranges, b = task / p.splits / ranges;
  dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    simd::call<Attend<T>>(&p, b, range * heads, (range + 1) * heads, split);
  });
}

int64_t decode_attention_merges(const DecodeAttentionParams& p) {
  return p.splits > 1 ? new_token_rows(p.layout) * p.H : 0;
}

void decode_attention_merge_cpu(const DecodeAttentionParams& p, int64_t merge) {
  dispatch(p.dtype, [&](auto type) { simd::call<Merge<typename decltype(type)::type>>(&p, merge); });
}

void decode_attention_cpu(const DecodeAttentionParams& p) {
  const PagedLayout& l = p.layout;
  int64_t keys = 0;
  for (int64_t b = 0; b < l.B; ++b) keys += l.seq_lens[b];
  const bool worth_waking = keys * l.D * p.H * new_token_rows(l) / std::max<int64_t>(1, l.B) > 100000;
  parallel_tasks(decode_attention_tasks(p), worth_waking, [&](int64_t i) { decode_attention_task_cpu(p, i); });
  parallel_tasks(decode_attention_merges(p), worth_waking, [&](int64_t i) { decode_attention_merge_cpu(p, i); });
}

}  // namespace minigpt
