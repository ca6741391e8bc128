// Copies keys and values of new tokens into a paged cache. A block takes one token and writes its row of H_kv * D
// values, in words as wide as all addresses allow: the values are moved, never read.
// k, v: (rows, H_kv, D), by strides.  k_cache, v_cache: (n_blocks, block_size, H_kv, D).
#pragma once
#include "../common/vector.cuh"
#include "paged.cuh"

namespace minigpt {

constexpr int kAppendThreads = 128;

template <class Word>
DEVICE void copy_token(const void* from, int64_t head_stride, void* to, int64_t heads, int64_t words) {
  for (int64_t i = threadIdx.x; i < heads * words; i += kAppendThreads) {
    const Word* const head = reinterpret_cast<const Word*>(static_cast<const char*>(from) + i / words * head_stride);
    store_vec(static_cast<Word*>(to) + i, load_vec(head + i % words));
  }
}

template <class Word>
__global__ void __launch_bounds__(kAppendThreads) kv_append_kernel(const __grid_constant__ KvAppendParams p) {
  const PagedLayout& c = p.layout;
  const NewToken token = find_new_token(c, blockIdx.x);
  if (token.count == 0 || c.seq_lens[token.b] < 0) return;
  const int64_t row = cache_row(c, token.b, c.seq_lens[token.b] + token.i);
  if (row < 0) return;

  const int64_t bytes = p.element_size, words = c.D * bytes / int64_t{sizeof(Word)}, at = row * c.H_kv * c.D * bytes;
  const int64_t k_from =
      c.query_start ? blockIdx.x * p.k_token_stride : token.b * p.k_batch_stride + token.i * p.k_token_stride;
  const int64_t v_from =
      c.query_start ? blockIdx.x * p.v_token_stride : token.b * p.v_batch_stride + token.i * p.v_token_stride;
  copy_token<Word>(static_cast<const char*>(p.k) + k_from * bytes, p.k_head_stride * bytes,
                   static_cast<char*>(p.k_cache) + at, c.H_kv, words);
  copy_token<Word>(static_cast<const char*>(p.v) + v_from * bytes, p.v_head_stride * bytes,
                   static_cast<char*>(p.v_cache) + at, c.H_kv, words);
}

}  // namespace minigpt
