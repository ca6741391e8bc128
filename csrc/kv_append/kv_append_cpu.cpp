#include <algorithm>
#include <cstring>

#include "../common/parallel.h"
#include "kv_append.h"

namespace minigpt {
namespace {

// One new token: its row of every head, copied from (H_kv, D) with strides to a contiguous row of the cache.
void copy_token(char* cache_row, const char* token, int64_t head_stride_bytes, int64_t H_kv, int64_t head_bytes) {
  if (head_stride_bytes == head_bytes) {
    memcpy(cache_row, token, H_kv * head_bytes);
  } else {
    for (int64_t h = 0; h < H_kv; ++h) memcpy(cache_row + h * head_bytes, token + h * head_stride_bytes, head_bytes);
  }
}

}  // namespace

void kv_append_rows_cpu(const KvAppendParams& p, int64_t begin, int64_t end) {
  const PagedLayout& l = p.layout;
  const int64_t head_bytes = l.D * p.element_size, row_bytes = l.H_kv * head_bytes;
  for (int64_t t = begin; t < end; ++t) {
    int64_t b, i, k_at, v_at;  // token t is the i-th new one of sequence b
    if (l.query_start) {
      b = std::upper_bound(l.query_start, l.query_start + l.B + 1, t) - l.query_start - 1;
      i = t - l.query_start[b];
      k_at = t * p.k_token_stride, v_at = t * p.v_token_stride;
    } else {
      b = t / l.T, i = t % l.T;
      k_at = b * p.k_batch_stride + i * p.k_token_stride, v_at = b * p.v_batch_stride + i * p.v_token_stride;
    }
    const int64_t position = l.seq_lens[b] + i;
    const int64_t block = l.block_table[b * l.max_blocks + position / l.block_size];
    const int64_t row = (block * l.block_size + position % l.block_size) * row_bytes;
    copy_token(static_cast<char*>(p.k_cache) + row, static_cast<const char*>(p.k) + k_at * p.element_size,
               p.k_head_stride * p.element_size, l.H_kv, head_bytes);
    copy_token(static_cast<char*>(p.v_cache) + row, static_cast<const char*>(p.v) + v_at * p.element_size,
               p.v_head_stride * p.element_size, l.H_kv, head_bytes);
  }
}

void kv_append_cpu(const KvAppendParams& p) {
  const int64_t row_bytes = p.layout.H_kv * p.layout.D * p.element_size;
  const int64_t tokens_a_task = std::max<int64_t>(1, (1 << 16) / row_bytes);
  parallel_ranges(new_token_rows(p.layout), tokens_a_task,
                  [&](int64_t begin, int64_t end) { kv_append_rows_cpu(p, begin, end); });
}

}  // namespace minigpt
