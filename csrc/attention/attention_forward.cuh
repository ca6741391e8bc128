// Attention forward: softmax(scale Q K^T) V by key tiles, no T x S matrix.
//   s_ij = rule(scale <q_i, k_j>)   m_i = max_j s_ij   p_ij = e^(s_ij - m_i)   l_i = sum_j p_ij
//   out_i = sum_j drop(p_ij) v_j / l_i           lse_i = m_i + ln l_i
// A block owns R queries of one head and goes over the keys they can see, R at a time. m and l are those of the keys so
// far: where m grows, l and the sum over v shrink by e^(m_old - m_new). Keys and values of a tile use the same shared
// memory one after the other, which leaves room for larger tiles.
// Layouts: see attention.h; attention_device.cuh says which thread holds what.
#pragma once
#include "attention_device.cuh"

namespace minigpt {

template <class T, int D>
using ForwardTiling = Tiling<accumulate_t<T>, D, 2, 32 * 1024>;

template <class T, int kD, bool kRule>
__global__ void __launch_bounds__(ForwardTiling<T, kD>::threads)
    attention_forward_kernel(const __grid_constant__ AttentionForwardParams p) {
  using L = ForwardTiling<T, kD>;
  using A = typename L::A;
  constexpr A kNone = -A(INFINITY);
  DYNAMIC_SHARED(memory);
  A *const q_tile = reinterpret_cast<A*>(memory), *const kv_tile = q_tile + L::tile, *const p_tile = kv_tile + L::tile;
  const int y = threadIdx.x / L::X, x = threadIdx.x % L::X;

  const AttentionShape& s = p.shape;
  const int64_t tiles = (s.T + L::R - 1) / L::R;
  const int64_t bh = blockIdx.x / tiles, b = bh / s.H, h = bh % s.H, h_kv = h / (s.H / s.H_kv);
  const int64_t i0 = (tiles - 1 - blockIdx.x % tiles) * L::R;  // causal: the last queries see most, so they go first
  const T* const q = static_cast<const T*>(p.q) + b * p.q_strides.batch + h * p.q_strides.head;
  const T* const k = static_cast<const T*>(p.k) + b * p.k_strides.batch + h_kv * p.k_strides.head;
  const T* const v = static_cast<const T*>(p.v) + b * p.v_strides.batch + h_kv * p.v_strides.head;
  const ScoreOf<A, kRule> score_of(p.rule, s.scale, h);
  const A kept_scale = A(s.dropout_scale);
  const uint64_t seed = s.dropout_threshold ? static_cast<uint64_t>(*p.seed) : 0;

  load_tile<L>(q_tile, q + i0 * p.q_strides.token, p.q_strides.token, s.T - i0, s.D);
  Result<L> sum = {};
  A highest[L::M], weight[L::M];  // m, in units of ln 2; this thread's share of l
  for (int i = 0; i < L::M; ++i) highest[i] = kNone, weight[i] = 0;

  const Range keys = keys_of(s, i0, L::R);
  for (int64_t j0 = keys.begin; j0 < keys.end; j0 += L::R) {
    __syncthreads();  // the values before have been read
    load_tile<L>(kv_tile, k + j0 * p.k_strides.token, p.k_strides.token, s.S - j0, s.D);
    __syncthreads();
    Scores<L> score;
    multiply_rows<L>(score, q_tile, kv_tile, s.D);
    const Mask sees = mask_of(s, i0, j0, L::R);
    const A distance = A(i0 + s.S - s.T - j0 + y * L::M - x);  // of this thread's first query to its first key
#pragma unroll
    for (int i = 0; i < L::M; ++i) {
      const int row = y * L::M + i;
      A best = highest[i];
#pragma unroll
      for (int j = 0; j < L::M; ++j) {
        const A scored = score_of(score[i][j], distance + A(i - L::X * j)).value;
        score[i][j] = sees(row, x + L::X * j) ? scored : kNone;
        best = std::fmax(best, score[i][j]);
      }
      best = lanes_max<L::X>(best);
      const A base = best == kNone ? A(0) : best;  // nothing seen yet: e^(-inf - 0) = 0 instead of e^(-inf + inf)
      const A shrink = std::exp2(highest[i] - base);
      highest[i] = best;
      weight[i] *= shrink;
#pragma unroll
      for (int n = 0; n < L::N; ++n)
#pragma unroll
        for (int w = 0; w < L::W; ++w) sum[i][n].at[w] *= shrink;
#pragma unroll
      for (int j = 0; j < L::M; ++j) {
        score[i][j] = std::exp2(score[i][j] - base);
        weight[i] += score[i][j];
      }
      if (s.dropout_threshold) {
        const unsigned kept = kept_keys<L>(s, seed, bh, i0 + row, j0);
#pragma unroll
        for (int j = 0; j < L::M; ++j) score[i][j] = kept >> j & 1 ? score[i][j] * kept_scale : A(0);
      }
    }
    share_scores<L>(p_tile, score);
    __syncthreads();  // the keys have been read
    load_tile<L>(kv_tile, v + j0 * p.v_strides.token, p.v_strides.token, s.S - j0, s.D);
    __syncthreads();
    add_product<L>(sum, p_tile, kv_tile);
  }

#pragma unroll
  for (int i = 0; i < L::M; ++i) {
    const A total = lanes_sum<L::X>(weight[i]), inverse = total == 0 ? A(0) : 1 / total;
#pragma unroll
    for (int n = 0; n < L::N; ++n)
#pragma unroll
      for (int w = 0; w < L::W; ++w) sum[i][n].at[w] *= inverse;
    const int64_t query = i0 + y * L::M + i;
    if (x == 0 && query < s.T)  // log2(0) = -inf where nothing was seen
      static_cast<A*>(p.lse)[bh * s.T + query] = (highest[i] + std::log2(total)) * A(kLn2);
  }
  T* const out = static_cast<T*>(p.out) + ((b * s.T + i0) * s.H + h) * s.D;
  store_result<L>(out, s.H * s.D, s.T - i0, s.D, sum, A(1));
}

}  // namespace minigpt
