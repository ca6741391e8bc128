// Causal attention, forward and backward: what a kernel is handed. No torch in here.
//   s_ij = rule(scale <q_i, k_j>)     p_ij = exp(s_ij - lse_i) over the keys that query i sees     out_i = sum_j drop(p_ij) v_j
// Query i stands at position i + S - T (queries are aligned to the end); causal: it sees keys up to its position; with a
// window w, the last w of those. A query that sees nothing gives out = 0, lse = -inf and no gradient.
#pragma once
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
  void* delta;       // CUDA: (B, H, T): sum_d dout * out
  void* dq_partial;  // CPU: (chunks, B, H, T, D) where chunks > 1: each chunk of keys has its own share of dq
  int64_t chunks;    // CPU: the keys of a head are cut into this many runs
};

// On the CPU a task owns all keys of one key/value head, or where those are few, a run of them. A function of the shape
// alone, not of the threads, so that the sums over the chunks come out the same everywhere. Cut finer, two threads would
// mostly write and add up shares of dq: T = 4096, D = 64 in 32 runs takes a quarter longer than in 16.
inline int64_t attention_backward_chunks(const AttentionShape& s) {
  const int64_t heads = s.B * s.H_kv < 1 ? 1 : s.B * s.H_kv, wanted = (16 + heads - 1) / heads,
                blocks = (s.S + 63) / 64;
  return blocks < 1 ? 1 : wanted < blocks ? wanted : blocks;
}

void attention_forward_cpu(const AttentionForwardParams& p);
void attention_backward_cpu(const AttentionBackwardParams& p);
void attention_forward_cuda(const AttentionForwardParams& p, CudaStream stream);
void attention_backward_cuda(const AttentionBackwardParams& p, CudaStream stream);

}  // namespace minigpt
