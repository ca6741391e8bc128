// Copies keys and values of new tokens into a paged cache. A block takes one token and writes its row of H_kv * D
// values, in words as wide as all addresses allow: the values are moved, never read. For an int8 cache a warp takes a head,
// whose largest |x| makes its scale (see kv_append.h).
// k, v: (rows, H_kv, D), by strides.  k_cache, v_cache: (n_blocks, block_size, H_kv, D).
#pragma once
#include <cmath>

#include "../common/reduce.cuh"
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

// From where this block's token is read, in elements, to which row of the cache; -1: to none.
struct Move {
  int64_t k_from, v_from, row;
};

DEVICE Move find_move(const KvAppendParams& p) {
  const PagedLayout& c = p.layout;
  const NewToken token = find_new_token(c, blockIdx.x);
  if (token.count == 0 || c.seq_lens[token.b] < 0) return {0, 0, -1};
  const int64_t row = cache_row(c, token.b, c.seq_lens[token.b] + token.i);
  if (c.query_start) return {blockIdx.x * p.k_token_stride, blockIdx.x * p.v_token_stride, row};
  return {token.b * p.k_batch_stride + token.i * p.k_token_stride,
          token.b * p.v_batch_stride + token.i * p.v_token_stride, row};
}

template <class Word>
__global__ void __launch_bounds__(kAppendThreads) kv_append_kernel(const __grid_constant__ KvAppendParams p) {
  const PagedLayout& c = p.layout;
  const Move move = find_move(p);
  if (move.row < 0) return;
  const int64_t bytes = p.element_size, words = c.D * bytes / int64_t{sizeof(Word)};
  const int64_t at = move.row * c.H_kv * c.D * bytes;
  copy_token<Word>(static_cast<const char*>(p.k) + move.k_from * bytes, p.k_head_stride * bytes,
                   static_cast<char*>(p.k_cache) + at, c.H_kv, words);
  copy_token<Word>(static_cast<const char*>(p.v) + move.v_from * bytes, p.v_head_stride * bytes,
                   static_cast<char*>(p.v_cache) + at, c.H_kv, words);
}

template <class T>
DEVICE void quantise_token(const T* from, int64_t head_stride, int8_t* to, float* scales, int64_t heads, int64_t D) {
  const int lane = threadIdx.x % 32;
  for (int64_t h = threadIdx.x / 32; h < heads; h += kAppendThreads / 32) {
    const T* const x = from + h * head_stride;
    float highest = 0, nan = 0;  // 0 x is NaN where x is not finite; a maximum passes over NaN
    for (int64_t d = lane; d < D; d += 32) {
      highest = std::fmax(highest, std::fabs(static_cast<float>(x[d])));
      nan += 0 * static_cast<float>(x[d]);
    }
    const float top = lanes_max<32>(highest) / 127;
    const float scale = (top < 0x1p-126f ? 0.0f : top) + lanes_sum<32>(nan);
    if (lane == 0) scales[h] = scale;
    for (int64_t d = lane; d < D; d += 32)
      to[h * D + d] = scale > 0 ? static_cast<int8_t>(std::rint(static_cast<float>(x[d]) / scale)) : int8_t(0);
  }
}

template <class T>
__global__ void __launch_bounds__(kAppendThreads) kv_append_int8_kernel(const __grid_constant__ KvAppendParams p) {
  const PagedLayout& c = p.layout;
  const Move move = find_move(p);
  if (move.row < 0) return;
  const int64_t at = move.row * c.H_kv;
  quantise_token(static_cast<const T*>(p.k) + move.k_from, p.k_head_stride, static_cast<int8_t*>(p.k_cache) + at * c.D,
                 p.k_scales + at, c.H_kv, c.D);
  quantise_token(static_cast<const T*>(p.v) + move.v_from, p.v_head_stride, static_cast<int8_t*>(p.v_cache) + at * c.D,
                 p.v_scales + at, c.H_kv, c.D);
}

}  // namespace minigpt
