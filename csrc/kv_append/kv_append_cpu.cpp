#include <algorithm>
#include <bit>
#include <cstring>

#include "../common/dispatch.h"
#include "../common/lanes.h"
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

// From where new token t is read, in elements, and the row of the cache that it goes to.
struct Move {
  int64_t k_from, v_from, row;
};

Move find_move(const KvAppendParams& p, int64_t t) {
  const PagedLayout& l = p.layout;
  int64_t b, i, k_from, v_from;  // token t is the i-th new one of sequence b
  if (l.query_start) {
    b = std::upper_bound(l.query_start, l.query_start + l.B + 1, t) - l.query_start - 1;
    i = t - l.query_start[b];
    k_from = t * p.k_token_stride, v_from = t * p.v_token_stride;
  } else {
    b = t / l.T, i = t % l.T;
    k_from = b * p.k_batch_stride + i * p.k_token_stride, v_from = b * p.v_batch_stride + i * p.v_token_stride;
  }
  const int64_t position = l.seq_lens[b] + i;
  const int64_t block = l.block_table[b * l.max_blocks + position / l.block_size];
  return {k_from, v_from, block * l.block_size + position % l.block_size};
}

// New tokens for int8 caches: values and scales.
template <class T>
struct Quantise {
  // One token's row (H_kv, D). x / scale is rounded to float, then to an integer.
  template <int Bytes>
  static ALWAYS_INLINE void token(const T* x, int64_t head_stride, int64_t H_kv, int64_t D, int8_t* values,
                                  float* scales) {
    using V = simd::Vector<float, Bytes>;
    using I = simd::Vector<int32_t, Bytes>;
    for (int64_t h = 0; h < H_kv; ++h, x += head_stride, values += D) {
      I top = {};  // the bits of |x| are in order: finite numbers, infinity, NaN
      simd::each_vector<float, Bytes>(D, [&](int64_t d, auto left) __attribute__((always_inline)) {
        top = simd::max(top, (I)simd::load_part<Bytes>(x + d, left) & 0x7fffffff);
      });
      const int32_t bits = simd::highest(top);
      const float scale = std::bit_cast<float>(bits) / 127;
      const bool finite = bits < 0x7f800000;
      scales[h] = !finite ? __builtin_nanf("") : scale < 0x1p-126f ? 0.0f : scale;
      if (!(scales[h] > 0)) {
        memset(values, 0, D);
        continue;
      }
      simd::each_vector<float, Bytes>(D, [&](int64_t d, auto left) __attribute__((always_inline)) {
        // 1.5 * 2^23: the integer, to nearest even, lands in the lowest bits
        const V shifted = simd::load_part<Bytes>(x + d, left) / scale + 12582912.0f;
        const auto rounded = simd::low_bytes<Bytes>((I)shifted);
        if constexpr (std::is_same_v<decltype(left), simd::Whole>)
          memcpy(values + d, &rounded, sizeof rounded);
        else
          memcpy(values + d, &rounded, left);
      });
    }
  }

  template <int Bytes>
  static ALWAYS_INLINE void run(const KvAppendParams* p, int64_t begin, int64_t end) {
    const int64_t H_kv = p->layout.H_kv, D = p->layout.D;
    const auto row_of = [&](void* cache, int64_t row) { return static_cast<int8_t*>(cache) + row * H_kv * D; };
    for (int64_t t = begin; t < end; ++t) {
      const Move move = find_move(*p, t);
      token<Bytes>(static_cast<const T*>(p->k) + move.k_from, p->k_head_stride, H_kv, D, row_of(p->k_cache, move.row),
                   p->k_scales + move.row * H_kv);
      token<Bytes>(static_cast<const T*>(p->v) + move.v_from, p->v_head_stride, H_kv, D, row_of(p->v_cache, move.row),
                   p->v_scales + move.row * H_kv);
    }
  }
};

}  // namespace

void kv_append_rows_cpu(const KvAppendParams& p, int64_t begin, int64_t end) {
  if (p.k_scales)
    return dispatch(p.dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      if constexpr (sizeof(T) < 8) simd::call<Quantise<T>>(&p, begin, end);
    });
  const int64_t H_kv = p.layout.H_kv, bytes = p.element_size, head_bytes = p.layout.D * bytes;
  for (int64_t t = begin; t < end; ++t) {
    const Move move = find_move(p, t);
    const int64_t to = move.row * H_kv * head_bytes;
    copy_token(static_cast<char*>(p.k_cache) + to, static_cast<const char*>(p.k) + move.k_from * bytes,
               p.k_head_stride * bytes, H_kv, head_bytes);
    copy_token(static_cast<char*>(p.v_cache) + to, static_cast<const char*>(p.v) + move.v_from * bytes,
               p.v_head_stride * bytes, H_kv, head_bytes);
  }
}

void kv_append_cpu(const KvAppendParams& p) {
  const int64_t row_bytes = p.layout.H_kv * p.layout.D * p.element_size;
  const int64_t tokens_a_task = std::max<int64_t>(1, (1 << 16) / row_bytes);
  parallel_ranges(new_token_rows(p.layout), tokens_a_task,
                  [&](int64_t begin, int64_t end) { kv_append_rows_cpu(p, begin, end); });
}

}  // namespace minigpt
