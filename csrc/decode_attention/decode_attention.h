// Attention of new queries over a paged cache: what a kernel is handed. No torch in here.
// seq_lens[b] counts the tokens of sequence b with the new ones; its query i of T sees the first seq_lens[b] - T + i + 1,
// of those the last `window` if there is one. A query that sees nothing gives zeros.
#pragma once
#include "../common/dtype.h"
#include "../common/score.h"
#include "../kv_append/kv_append.h"

namespace minigpt {

struct DecodeAttentionParams {
  PagedLayout layout;
  DType dtype;
  int64_t H;  // query heads; H_kv divides H
  double scale;
  ScoreRule rule;
  int64_t window;  // 0: none
  const void* q;   // (B, T, H, D), or (rows, H, D) with query_start; D contiguous
  int64_t q_batch_stride, q_token_stride, q_head_stride;  // in elements; the batch stride is unused with query_start
  const void *k_cache, *v_cache;
  const float *k_scales, *v_scales;  // of int8 caches, (n_blocks, block_size, H_kv); null: caches of q's dtype
  void* out;                         // like q, contiguous
  // Scratch for a long cache: its keys are cut into `splits` runs that are attended to independently and merged by their
  // logsumexp. (rows, H, splits, D) unnormalised sums and (rows, H, splits, 2) maximum and sum; float (double for f64).
  void *partial_out, *partial_stats;
  int64_t splits, keys_per_split;
};

void decode_attention_cpu(const DecodeAttentionParams& p);
// The same in parts, for a caller with threads of its own: tasks 0 ... decode_attention_tasks(p) - 1 in any order and on any
// threads; then, behind a barrier, the merges likewise (none with a single split).
int64_t decode_attention_tasks(const DecodeAttentionParams& p);
void decode_attention_task_cpu(const DecodeAttentionParams& p, int64_t task);
int64_t decode_attention_merges(const DecodeAttentionParams& p);
void decode_attention_merge_cpu(const DecodeAttentionParams& p, int64_t merge);

void decode_attention_cuda(const DecodeAttentionParams& p, CudaStream stream);

}  // namespace minigpt
