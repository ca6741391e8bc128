// Writes the keys and values of new tokens into a paged cache: what a kernel is handed. No torch in here.
// Token i of the new ones of sequence b goes to position p = seq_lens[b] + i, which lives in cache block
// block_table[b][p / block_size] at row p % block_size.
#pragma once
#include <cstdint>

#include "../common/cuda_stream.h"
#include "../common/dtype.h"

namespace minigpt {

// The cache of one layer: k_cache, v_cache (n_blocks, block_size, H_kv, D), contiguous.
struct PagedLayout {
  int64_t n_blocks, block_size, H_kv, D;
  int64_t B, max_blocks;
  const int32_t* block_table;  // (B, max_blocks)
  const int32_t* seq_lens;     // (B,)
  const int32_t* query_start;  // (B+1,): sequence b's new tokens are rows query_start[b] ... query_start[b+1]-1 of the
                               // packed new tokens; null: every sequence has T of them, at rows b * T ... b * T + T - 1
  int64_t T;                   // new tokens a sequence; with query_start, the total over the batch
};

// Rows of the packed new tokens, over the whole batch.
inline int64_t new_token_rows(const PagedLayout& c) { return c.query_start ? c.T : c.B * c.T; }

struct KvAppendParams {
  PagedLayout layout;
  int64_t element_size;  // bytes of one of k; the values are copied, never read, unless the caches are int8
  const void *k, *v;     // (rows, H_kv, D): new tokens, packed over the batch
  int64_t k_token_stride, k_head_stride, v_token_stride, v_head_stride;  // in elements; D is contiguous
  int64_t k_batch_stride, v_batch_stride;                                // unused with query_start
  void *k_cache, *v_cache;
  // Where the caches are int8: (n_blocks, block_size, H_kv), one a token and head. A token's D values x of a head become
  // round(x / scale), scale = max |x| / 127. Where that is below 2^-126, scale and values are 0; where x is not finite
  // throughout, the scale is NaN and the values are 0, so that the token reads as NaN.
  float *k_scales, *v_scales;  // null: the caches are of k's type
  DType dtype;                 // of k and v, with scales: f32, bf16 or f16
};

void kv_append_cpu(const KvAppendParams& p);
void kv_append_rows_cpu(const KvAppendParams& p, int64_t begin, int64_t end);  // of the packed new tokens
void kv_append_cuda(const KvAppendParams& p, CudaStream stream);

}  // namespace minigpt
