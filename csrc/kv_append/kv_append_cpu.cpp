#include <algorithm>
#include <cstring>

#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "../common/simd.h"
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

// One new token for an int8 cache: values and scale of every head.
template <class T>
struct Quantise {
  template <int Bytes>
  static ALWAYS_INLINE void run(int8_t* values, float* scales, const T* x, int64_t head_stride, int64_t H_kv,
                                int64_t D) {
    using V = simd::Vector<float, Bytes>;
    using I = simd::Vector<int32_t, Bytes>;
    constexpr int W = simd::lanes<float, Bytes>;
    for (int64_t h = 0; h < H_kv; ++h, x += head_stride, values += D) {
      I top = {};  // the bits of |x| are in order: finite numbers, infinity, NaN
      for (int64_t d = 0; d < D; d += W) top = simd::max(top, (I)simd::load_part<Bytes>(x + d, D - d) & 0x7fffffff);
      const int32_t bits = simd::highest(top);
      float highest;
      memcpy(&highest, &bits, sizeof bits);
      const float scale = highest / 127;
      const bool finite = bits < 0x7f800000;
      scales[h] = !finite ? __builtin_nanf("") : scale < 0x1p-126f ? 0.0f : scale;
      if (!(scales[h] > 0)) {
        memset(values, 0, D);
        continue;
      }
      for (int64_t d = 0; d < D; d += W) {
        // 1.5 * 2^23: the integer, to nearest even, lands in the lowest bits
        const V shifted = simd::load_part<Bytes>(x + d, D - d) / scale + 12582912.0f;
        const auto rounded = __builtin_convertvector((I)shifted, simd::Quarters<Bytes>);
        memcpy(values + d, &rounded, std::min<int64_t>(W, D - d));
      }
    }
  }
};

// Row `row` of a cache of tokens (H_kv, D), from `token`.
void append(const KvAppendParams& p, void* cache, float* scales, int64_t row, const char* token, int64_t head_stride) {
  const int64_t H_kv = p.layout.H_kv, D = p.layout.D;
  if (!scales)
    return copy_token(static_cast<char*>(cache) + row * H_kv * D * p.element_size, token, head_stride * p.element_size,
                      H_kv, D * p.element_size);
  dispatch(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (sizeof(T) < 8)
      simd::call<Quantise<T>>(static_cast<int8_t*>(cache) + row * H_kv * D, scales + row * H_kv,
                              reinterpret_cast<const T*>(token), head_stride, H_kv, D);
  });
}

}  // namespace

void kv_append_rows_cpu(const KvAppendParams& p, int64_t begin, int64_t end) {
  const PagedLayout& l = p.layout;
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
    const int64_t row = block * l.block_size + position % l.block_size;
    append(p, p.k_cache, p.k_scales, row, static_cast<const char*>(p.k) + k_at * p.element_size, p.k_head_stride);
    append(p, p.v_cache, p.v_scales, row, static_cast<const char*>(p.v) + v_at * p.element_size, p.v_head_stride);
  }
}

void kv_append_cpu(const KvAppendParams& p) {
  const int64_t row_bytes = p.layout.H_kv * p.layout.D * p.element_size;
  const int64_t tokens_a_task = std::max<int64_t>(1, (1 << 16) / row_bytes);
  parallel_ranges(new_token_rows(p.layout), tokens_a_task,
                  [&](int64_t begin, int64_t end) { kv_append_rows_cpu(p, begin, end); });
}

}  // namespace minigpt
