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

void kv_append_cpu(const KvAppendParams& p) {
  const PagedLayout& l = p.layout;
  const int64_t head_bytes = l.D * p.element_size, row_bytes = l.H_kv * head_bytes;
  const int64_t tokens = l.query_start ? l.T : l.B * l.T;
  parallel_tasks(l.B, tokens * row_bytes > 1 << 17, [&](int64_t b) {
    const int64_t first = l.query_start ? l.query_start[b] : 0;
    const int64_t count = l.query_start ? l.query_start[b + 1] - first : l.T;
    const int64_t k_batch = l.query_start ? 0 : b * p.k_batch_stride,
                  v_batch = l.query_start ? 0 : b * p.v_batch_stride;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t position = l.seq_lens[b] + i;
      const int64_t block = l.block_table[b * l.max_blocks + position / l.block_size];
      const int64_t row = (block * l.block_size + position % l.block_size) * row_bytes;
      const int64_t k_at = k_batch + (first + i) * p.k_token_stride, v_at = v_batch + (first + i) * p.v_token_stride;
      copy_token(static_cast<char*>(p.k_cache) + row, static_cast<const char*>(p.k) + k_at * p.element_size,
                 p.k_head_stride * p.element_size, l.H_kv, head_bytes);
      copy_token(static_cast<char*>(p.v_cache) + row, static_cast<const char*>(p.v) + v_at * p.element_size,
                 p.v_head_stride * p.element_size, l.H_kv, head_bytes);
    }
  });
}

}  // namespace minigpt
