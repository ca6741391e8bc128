// Causal attention, forward and backward: what a kernel is handed. No torch in here.
//   s_ij = rule(scale <q_i, k_j>)     p_ij = exp(s_ij - lse_i) over the keys that query i sees     out_i = sum_j drop(p_ij) v_j
// Query i stands at position i + S - T (queries are aligned to the end); causal: it sees keys up to its position; with a
// window w, the last w of those. A query that sees nothing gives out = 0, lse = -inf and no gradient.
#pragma once
#include <algorithm>
#include <cstdint>

#include "../common/cuda_stream.h"
#include "../common/dtype.h"
#include "../common/score.h"

namespace minigpt {

// Strides in elements over (batch, sequence, head) of a (B, T, H, D) tensor; D itself is contiguous.
struct Strides {
  int64_t batch, token, head;
};

struct AttentionShape {
  int64_t B, T, S, H, H_kv, D;  // H_kv divides H; query head h reads key/value head h / (H / H_kv); 1 <= D <= 256
  double scale;
  bool causal;
  int64_t window;              // 0: none; w > 0: causal, and no further back than w keys, the own position included
  uint32_t dropout_threshold;  // dropout_p * 2^32; 0: no dropout
  double dropout_scale;        // 1 / (1 - dropout_p)
};

struct AttentionForwardParams {
  AttentionShape shape;
  DType dtype;
  ScoreRule rule;
  const void *q, *k, *v;  // (B, T, H, D), (B, S, H_kv, D), (B, S, H_kv, D)
  Strides q_strides, k_strides, v_strides;
  const int64_t* seed;  // one element, on the tensors' device; null without dropout
  void* out;            // (B, T, H, D), contiguous
  void* lse;            // (B, H, T), natural logarithm; float (double for f64)
};

// Into how many runs the CPU's backward cuts the keys and the queries of a head.
struct AttentionCut {
  int64_t keys, queries;
};

struct AttentionBackwardParams {
  AttentionShape shape;
  DType dtype;
  ScoreRule rule;
  const void *dout, *q, *k, *v, *out;
  Strides dout_strides, q_strides, k_strides, v_strides;  // out is contiguous
  const void* lse;                                        // (B, H, T)
  const int64_t* seed;
  void *dq, *dk, *dv;  // contiguous; (B, T, H, D), (B, S, H_kv, D), (B, S, H_kv, D)
  // Scratch; float (double for f64).
  void* delta;  // CUDA: (B, H, T): sum_d dout * out
  // CPU: shares of the runs, where there are several.
  void* dq_shares;              // (cut.keys, B, H, T, D)
  void *dk_shares, *dv_shares;  // (cut.queries, B, H_kv, S, D)
  AttentionCut cut;
};

// On the CPU a task owns one key/value head, or where those are few, a run of its keys. A single head is cut both ways: runs
// of keys alone are unequal under a causal mask, and finer ones would mostly write and add up shares of dq (a narrow window
// leaves them equal, and the shares short). A function of the shape alone, not of the threads, so that the sums over the
// shares come out the same everywhere.
inline AttentionCut attention_backward_cut(const AttentionShape& s) {
  const int64_t heads = std::max<int64_t>(1, s.B * s.H_kv), wanted = (16 + heads - 1) / heads;
  const int64_t blocks = std::max<int64_t>(1, (s.S + 63) / 64), queries = std::min<int64_t>(8, s.T / 256);
  if (heads > 1 || queries < 2 || (s.window && s.window < s.T / 8)) return {std::min(wanted, blocks), 1};
  return {std::min<int64_t>(8, (blocks + 1) / 2), queries};
}

void attention_forward_cpu(const AttentionForwardParams& p);
void attention_backward_cpu(const AttentionBackwardParams& p);
void attention_forward_cuda(const AttentionForwardParams& p, CudaStream stream);
void attention_backward_cuda(const AttentionBackwardParams& p, CudaStream stream);

}  // namespace minigpt
