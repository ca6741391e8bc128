// Attention backward in three kernels, without atomics: one thread adds up each output element, in a fixed order.
//   p_ij = e^(rule(scale <q_i, k_j>) - lse_i)   z_ij = 0 where (i, j) was dropped, else 1 / (1 - dropout_p)
//   delta_i = <dout_i, out_i>             ds_ij = rule'_ij p_ij (z_ij <dout_i, v_j> - delta_i)
//   dv_j = sum_i p_ij z_ij dout_i         dk_j = scale sum_i ds_ij q_i         dq_i = scale sum_j ds_ij k_j
// Scores are computed again from q, k and lse, and both products over D twice: once where keys are owned and once where
// queries are. That is the price of not adding up dq across blocks.
// Layouts: see attention.h; attention_device.cuh says which thread holds what.
#pragma once
#include "attention_device.cuh"

namespace minigpt {

// Shared memory lets two blocks run on a multiprocessor of a 9.0 or 10.0; __launch_bounds__ has registers allow it too.
template <class T, int D>
using BackwardTiling = Tiling<accumulate_t<T>, D, 4, 16 * 1024>;

constexpr int kDeltaThreads = 256;

// delta, a warp for each row of (B, T, H). dout comes by strides, out is contiguous.
template <class T>
__global__ void __launch_bounds__(kDeltaThreads)
    attention_backward_delta_kernel(const __grid_constant__ AttentionBackwardParams p) {
  using A = accumulate_t<T>;
  const AttentionShape& s = p.shape;
  const int64_t row = int64_t{blockIdx.x} * (kDeltaThreads / 32) + threadIdx.x / 32;
  if (row >= s.B * s.T * s.H) return;
  const int64_t h = row % s.H, i = row / s.H % s.T, b = row / s.H / s.T;
  const T* const dout =
      static_cast<const T*>(p.dout) + b * p.dout_strides.batch + i * p.dout_strides.token + h * p.dout_strides.head;
  const T* const out = static_cast<const T*>(p.out) + row * s.D;
  A sum = 0;
  for (int64_t d = threadIdx.x % 32; d < s.D; d += 32) sum += static_cast<A>(dout[d]) * static_cast<A>(out[d]);
  sum = lanes_sum<32>(sum);
  if (threadIdx.x % 32 == 0) static_cast<A*>(p.delta)[(b * s.H + h) * s.T + i] = sum;
}

// dq. A block owns R queries of one head and goes over the keys they can see, R at a time.
template <class T, int kD, bool kRule>
__global__ void __launch_bounds__(BackwardTiling<T, kD>::threads, 2)
    attention_backward_dq_kernel(const __grid_constant__ AttentionBackwardParams p) {
  using L = BackwardTiling<T, kD>;
  using A = typename L::A;
  DYNAMIC_SHARED(memory);
  A *const q_tile = reinterpret_cast<A*>(memory), *const dout_tile = q_tile + L::tile;
  A *const k_tile = dout_tile + L::tile, *const v_tile = k_tile + L::tile, *const ds_tile = v_tile + L::tile;
  const int y = threadIdx.x / L::X, x = threadIdx.x % L::X;

  const AttentionShape& s = p.shape;
  const int64_t tiles = (s.T + L::R - 1) / L::R;
  const int64_t bh = blockIdx.x / tiles, b = bh / s.H, h = bh % s.H, h_kv = h / (s.H / s.H_kv);
  const int64_t i0 = (tiles - 1 - blockIdx.x % tiles) * L::R;  // causal: the last queries see most, so they go first
  const T* const q = static_cast<const T*>(p.q) + b * p.q_strides.batch + h * p.q_strides.head;
  const T* const dout = static_cast<const T*>(p.dout) + b * p.dout_strides.batch + h * p.dout_strides.head;
  const T* const k = static_cast<const T*>(p.k) + b * p.k_strides.batch + h_kv * p.k_strides.head;
  const T* const v = static_cast<const T*>(p.v) + b * p.v_strides.batch + h_kv * p.v_strides.head;
  const ScoreOf<A, kRule> score_of(p.rule, s.scale, h);
  const A kept_scale = A(s.dropout_scale);
  const uint64_t seed = s.dropout_threshold ? static_cast<uint64_t>(*p.seed) : 0;

  load_tile<L>(q_tile, q + i0 * p.q_strides.token, p.q_strides.token, s.T - i0, s.D);
  load_tile<L>(dout_tile, dout + i0 * p.dout_strides.token, p.dout_strides.token, s.T - i0, s.D);
  A lse[L::M], delta[L::M];
#pragma unroll
  for (int i = 0; i < L::M; ++i) {
    const int64_t query = i0 + y * L::M + i;
    lse[i] = query < s.T ? static_cast<const A*>(p.lse)[bh * s.T + query] * A(kLog2e) : A(0);
    delta[i] = query < s.T ? static_cast<const A*>(p.delta)[bh * s.T + query] : A(0);
  }
  Result<L> dq = {};

  const Range keys = keys_of(s, i0, L::R);
  for (int64_t j0 = keys.begin; j0 < keys.end; j0 += L::R) {
    __syncthreads();  // the tiles before have been read
    load_tile<L>(k_tile, k + j0 * p.k_strides.token, p.k_strides.token, s.S - j0, s.D);
    load_tile<L>(v_tile, v + j0 * p.v_strides.token, p.v_strides.token, s.S - j0, s.D);
    __syncthreads();
    Scores<L> score, dp;
    multiply_rows<L>(score, q_tile, k_tile, s.D);
    multiply_rows<L>(dp, dout_tile, v_tile, s.D);
    const Mask sees = mask_of(s, i0, j0, L::R);
    const A distance = A(i0 + s.S - s.T - j0 + y * L::M - x);  // of this thread's first query to its first key
#pragma unroll
    for (int i = 0; i < L::M; ++i) {
      const int row = y * L::M + i;
      const unsigned kept = s.dropout_threshold ? kept_keys<L>(s, seed, bh, i0 + row, j0) : ~0u;
#pragma unroll
      for (int j = 0; j < L::M; ++j) {
        const Score<A> scored = score_of(score[i][j], distance + A(i - L::X * j));
        const A prob = sees(row, x + L::X * j) ? std::exp2(scored.value - lse[i]) : A(0);
        score[i][j] = prob * ((kept >> j & 1 ? dp[i][j] * kept_scale : A(0)) - delta[i]) * scored.gain;
      }
    }
    share_scores<L>(ds_tile, score);
    add_product<L>(dq, ds_tile, k_tile);
  }
  T* const out = static_cast<T*>(p.dq) + ((b * s.T + i0) * s.H + h) * s.D;
  store_result<L>(out, s.H * s.D, s.T - i0, s.D, dq, A(s.scale));
}

// dk, dv. A block owns R keys of one key/value head, and goes over the query heads that read it and, for each, over the
// queries that can see those keys, R at a time. Keys are the rows of its scores, queries the columns.
template <class T, int kD, bool kRule>
__global__ void __launch_bounds__(BackwardTiling<T, kD>::threads, 2)
    attention_backward_dk_dv_kernel(const __grid_constant__ AttentionBackwardParams p) {
  using L = BackwardTiling<T, kD>;
  using A = typename L::A;
  DYNAMIC_SHARED(memory);
  A *const k_tile = reinterpret_cast<A*>(memory), *const v_tile = k_tile + L::tile;
  A *const q_tile = v_tile + L::tile, *const dout_tile = q_tile + L::tile, *const p_tile = dout_tile + L::tile;
  const int y = threadIdx.x / L::X, x = threadIdx.x % L::X;

  const AttentionShape& s = p.shape;
  const int64_t tiles = (s.S + L::R - 1) / L::R, group = s.H / s.H_kv;
  const int64_t b = blockIdx.x / tiles / s.H_kv, h_kv = blockIdx.x / tiles % s.H_kv;
  const int64_t j0 = blockIdx.x % tiles * L::R;  // causal: the first keys are seen by most, so they go first
  const T* const k = static_cast<const T*>(p.k) + b * p.k_strides.batch + h_kv * p.k_strides.head;
  const T* const v = static_cast<const T*>(p.v) + b * p.v_strides.batch + h_kv * p.v_strides.head;
  const A kept_scale = A(s.dropout_scale);
  const uint64_t seed = s.dropout_threshold ? static_cast<uint64_t>(*p.seed) : 0;

  load_tile<L>(k_tile, k + j0 * p.k_strides.token, p.k_strides.token, s.S - j0, s.D);
  load_tile<L>(v_tile, v + j0 * p.v_strides.token, p.v_strides.token, s.S - j0, s.D);
  Result<L> dk = {}, dv = {};

  const Range queries = queries_of(s, j0, L::R);
  for (int64_t h = h_kv * group; h < (h_kv + 1) * group; ++h) {
    const int64_t bh = b * s.H + h;
    const ScoreOf<A, kRule> score_of(p.rule, s.scale, h);
    const T* const q = static_cast<const T*>(p.q) + b * p.q_strides.batch + h * p.q_strides.head;
    const T* const dout = static_cast<const T*>(p.dout) + b * p.dout_strides.batch + h * p.dout_strides.head;
    for (int64_t i0 = queries.begin; i0 < queries.end; i0 += L::R) {
      __syncthreads();  // the tiles before have been read
      load_tile<L>(q_tile, q + i0 * p.q_strides.token, p.q_strides.token, s.T - i0, s.D);
      load_tile<L>(dout_tile, dout + i0 * p.dout_strides.token, p.dout_strides.token, s.T - i0, s.D);
      __syncthreads();
      Scores<L> score, dp;
      multiply_rows<L>(score, k_tile, q_tile, s.D);
      multiply_rows<L>(dp, v_tile, dout_tile, s.D);
      const Mask sees = mask_of(s, i0, j0, L::R);
      const A distance = A(i0 + s.S - s.T - j0 + x - y * L::M);  // of this thread's first query to its first key
#pragma unroll
      for (int j = 0; j < L::M; ++j) {
        const int64_t query = i0 + x + L::X * j, key = j0 + y * L::M;
        const A lse = query < s.T ? static_cast<const A*>(p.lse)[bh * s.T + query] * A(kLog2e) : A(0);
        const A delta = query < s.T ? static_cast<const A*>(p.delta)[bh * s.T + query] : A(0);
        const unsigned kept = s.dropout_threshold ? kept_rows<L>(s, seed, bh, query, key) : ~0u;
#pragma unroll
        for (int i = 0; i < L::M; ++i) {
          const A z = kept >> i & 1 ? kept_scale : A(0);
          const Score<A> scored = score_of(score[i][j], distance + A(L::X * j - i));
          const A prob = sees(x + L::X * j, y * L::M + i) ? std::exp2(scored.value - lse) : A(0);
          score[i][j] = prob * z;
          dp[i][j] = prob * (dp[i][j] * z - delta) * scored.gain;
        }
      }
      share_scores<L>(p_tile, score);
      add_product<L>(dv, p_tile, dout_tile);
      share_scores<L>(p_tile, dp);
      add_product<L>(dk, p_tile, q_tile);
    }
  }
  const int64_t first = ((b * s.S + j0) * s.H_kv + h_kv) * s.D, stride = s.H_kv * s.D;
  store_result<L>(static_cast<T*>(p.dk) + first, stride, s.S - j0, s.D, dk, A(s.scale));
  store_result<L>(static_cast<T*>(p.dv) + first, stride, s.S - j0, s.D, dv, A(1));
}

}  // namespace minigpt
