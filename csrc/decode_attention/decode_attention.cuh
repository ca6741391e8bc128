// Attention of new queries over a paged cache, and the merge of its splits.
//   s_j = rule(scale <q, k_j>)   m = max_j s_j   l = sum_j e^(s_j - m)   o = sum_j e^(s_j - m) v_j   out = o / l
// A block takes one query of one head, and one run of keys_per_split positions of its sequence. Its threads form teams
// that take the keys in turn. A lane of a team holds 16 bytes of D (N times that, where D is large), so that a key is
// read once, in neighbouring 16-byte pieces. Each team keeps its own m, l, o; the block adds them up by
//   l = sum_t l_t e^(m_t - m)   o = sum_t o_t e^(m_t - m)
// and a second kernel does the same with the splits, where there are several. m is in units of ln 2.
// T is the type of queries and results, C that of the cache; the scales of an int8 cache are multiplied with a key's
// product and with a value's weight.
// Layouts and scratch: see decode_attention.h.
#pragma once
#include "../common/reduce.cuh"
#include "../common/score.cuh"
#include "../common/vector.cuh"
#include "../kv_append/paged.cuh"
#include "decode_attention.h"

namespace minigpt {

constexpr int kDecodeThreads = 128;

template <class C, int D>
struct DecodeTeam {
  static constexpr int W = 16 / int(sizeof(C)), lanes = D / W < 32 ? D / W : 32, N = D / (W * lanes);
  static constexpr int count = kDecodeThreads / lanes;
};

template <class T, class C, int kD, bool kRule>
__global__ void __launch_bounds__(kDecodeThreads)
    decode_attention_kernel(const __grid_constant__ DecodeAttentionParams p) {
  using A = accumulate_t<T>;
  using Team = DecodeTeam<C, kD>;
  constexpr bool kScales = sizeof(C) == 1;
  constexpr int W = Team::W, N = Team::N;
  constexpr A kNone = -A(INFINITY);
  const int lane = threadIdx.x % Team::lanes, team = threadIdx.x / Team::lanes;

  const PagedLayout& c = p.layout;
  const int64_t split = blockIdx.x % p.splits, row_head = blockIdx.x / p.splits;
  const int64_t row = row_head / p.H, h = row_head % p.H, h_kv = h / (p.H / c.H_kv);
  const NewToken token = find_new_token(c, row);

  // The query sees positions [end - window, end); of those this block's are [begin, end).
  int64_t begin = split * p.keys_per_split, end = 0, query = 0;
  if (token.count > 0) {
    end = c.seq_lens[token.b] - token.count + token.i + 1;
    query = end - 1;
    if (p.window > 0 && end - p.window > begin) begin = end - p.window;
    if (end > (split + 1) * p.keys_per_split) end = (split + 1) * p.keys_per_split;
    if (end > c.max_blocks * c.block_size) end = c.max_blocks * c.block_size;
  }

  const int64_t q_from =
      (c.query_start ? row * p.q_token_stride : token.b * p.q_batch_stride + token.i * p.q_token_stride) +
      h * p.q_head_stride;
  const C* const k = static_cast<const C*>(p.k_cache) + h_kv * c.D;
  const C* const v = static_cast<const C*>(p.v_cache) + h_kv * c.D;
  const ScoreOf<A, kRule> score_of(p.rule, p.scale, h);
  Vec<A, W> q[N], sum[N] = {};
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int d = (n * Team::lanes + lane) * W;
    q[n] = load_part<W>(static_cast<const T*>(p.q) + q_from + d, c.D - d);
  }
  A highest = kNone, weight = 0;
  for (int64_t first = begin; first < end; first += Team::count) {  // every team goes round equally often
    const int64_t position = first + team;
    const int64_t at = position < end ? cache_row(c, token.b, position) : -1;
    const int64_t from = at * c.H_kv * c.D;
    Vec<A, W> key[N], value[N];
    A score = 0;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int d = (n * Team::lanes + lane) * W;
      key[n] = load_part<W>(k + from + d, at < 0 ? 0 : c.D - d);
      value[n] = load_part<W>(v + from + d, at < 0 ? 0 : c.D - d);
#pragma unroll
      for (int w = 0; w < W; ++w) score += q[n].at[w] * key[n].at[w];
    }
    score = lanes_sum<Team::lanes>(score);
    if constexpr (kScales) score *= at < 0 ? 0 : p.k_scales[at * c.H_kv + h_kv];
    score = score_of(score, A(query - position)).value;
    if (at < 0) continue;
    const A best = std::fmax(highest, score), base = best == kNone ? A(0) : best;
    const A shrink = std::exp2(highest - base), share = std::exp2(score - base);
    highest = best;
    weight = weight * shrink + share;
    const A value_share = kScales ? share * p.v_scales[at * c.H_kv + h_kv] : share;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int w = 0; w < W; ++w) sum[n].at[w] = sum[n].at[w] * shrink + value_share * value[n].at[w];
  }

  SHARED(A[Team::count], team_highest);
  SHARED(A[Team::count], team_weight);
  // In pieces of 16 bytes. A free piece after every 32 values spreads those that neighbouring lanes store, two pieces apart
  // where the cache has 16-bit values, over all banks.
  constexpr int V = 16 / int(sizeof(A));
  using Piece = Vec<A, V>;
  const auto piece_of = [](int d) { return d / V + d / 32; };
  SHARED(Piece[Team::count][kD / V + kD / 32], team_out);
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int w = 0; w < W; w += V) {
      Piece piece;
#pragma unroll
      for (int e = 0; e < V; ++e) piece.at[e] = sum[n].at[w + e];
      store_vec(&team_out[team][piece_of((n * Team::lanes + lane) * W + w)], piece);
    }
  if (lane == 0) team_highest[team] = highest, team_weight[team] = weight;
  __syncthreads();

  A best = kNone, total = 0;
#pragma unroll
  for (int t = 0; t < Team::count; ++t) best = std::fmax(best, team_highest[t]);
  const A base = best == kNone ? A(0) : best;
#pragma unroll
  for (int t = 0; t < Team::count; ++t) total += team_weight[t] * std::exp2(team_highest[t] - base);
  const A inverse = total == 0 ? A(0) : 1 / total;
  for (int d = threadIdx.x; d < c.D; d += kDecodeThreads) {
    A o = 0;
#pragma unroll
    for (int t = 0; t < Team::count; ++t) o += team_out[t][piece_of(d)].at[d % V] * std::exp2(team_highest[t] - base);
    if (p.splits > 1) {
      static_cast<A*>(p.partial_out)[int64_t{blockIdx.x} * c.D + d] = o;
    } else {
      static_cast<T*>(p.out)[row_head * c.D + d] = static_cast<T>(o * inverse);
    }
  }
  if (p.splits > 1 && threadIdx.x == 0) {
    static_cast<A*>(p.partial_stats)[int64_t{blockIdx.x} * 2] = best;
    static_cast<A*>(p.partial_stats)[int64_t{blockIdx.x} * 2 + 1] = total;
  }
}

constexpr int kMergeThreads = 64;

// Adds up the splits of one query of one head: a block, whose threads share D.
template <class T>
__global__ void __launch_bounds__(kMergeThreads)
    decode_attention_merge_kernel(const __grid_constant__ DecodeAttentionParams p) {
  using A = accumulate_t<T>;
  constexpr A kNone = -A(INFINITY);
  const int64_t D = p.layout.D;
  const A* const sums = static_cast<const A*>(p.partial_out) + blockIdx.x * p.splits * D;
  const A* const stats = static_cast<const A*>(p.partial_stats) + blockIdx.x * p.splits * 2;
  A best = kNone, total = 0;
  for (int64_t t = 0; t < p.splits; ++t) best = std::fmax(best, stats[2 * t]);
  const A base = best == kNone ? A(0) : best;
  for (int64_t t = 0; t < p.splits; ++t) total += stats[2 * t + 1] * std::exp2(stats[2 * t] - base);
  const A inverse = total == 0 ? A(0) : 1 / total;
  for (int64_t d = threadIdx.x; d < D; d += kMergeThreads) {
    A o = 0;
    for (int64_t t = 0; t < p.splits; ++t) o += sums[t * D + d] * std::exp2(stats[2 * t] - base);
    static_cast<T*>(p.out)[blockIdx.x * D + d] = static_cast<T>(o * inverse);
  }
}

}  // namespace minigpt
