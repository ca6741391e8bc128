#include "../common/dispatch.h"
#include "kv_append.cuh"

namespace minigpt {
namespace {

// Every address a token's values are read from or written to is a multiple of the lowest bit set here.
uint64_t address_bits(const KvAppendParams& p) {
  const PagedLayout& c = p.layout;
  const int64_t strides = c.D | p.k_token_stride | p.k_head_stride | p.v_token_stride | p.v_head_stride |
                          (c.query_start ? 0 : p.k_batch_stride | p.v_batch_stride);
  uint64_t bits = static_cast<uint64_t>(strides) * p.element_size;
  for (const void* pointer : {p.k, p.v, static_cast<const void*>(p.k_cache), static_cast<const void*>(p.v_cache)})
    bits |= reinterpret_cast<uint64_t>(pointer);
  return bits;
}

template <class Word>
void append(const KvAppendParams& p, int64_t rows, CudaStream stream) {
  launch("kv_append_kernel", kv_append_kernel<Word>, grid_of(rows), kAppendThreads, 0, stream, p);
}

}  // namespace

void kv_append_cuda(const KvAppendParams& p, CudaStream stream) {
  const PagedLayout& c = p.layout;
  const int64_t rows = new_token_rows(c);
  if (rows == 0 || c.B == 0 || c.H_kv == 0 || c.D == 0 || c.n_blocks == 0 || c.block_size == 0) return;
  if (p.k_scales)
    return dispatch(p.dtype, [&](auto type) {
      using T = device_t<typename decltype(type)::type>;
      if constexpr (sizeof(T) < 8)
        launch("kv_append_int8_kernel", kv_append_int8_kernel<T>, grid_of(rows), kAppendThreads, 0, stream, p);
    });
  const uint64_t bits = address_bits(p);
  if (bits % 16 == 0) return append<Vec<uint32_t, 4>>(p, rows, stream);
  if (bits % 8 == 0) return append<uint64_t>(p, rows, stream);
  if (bits % 4 == 0) return append<uint32_t>(p, rows, stream);
  if (bits % 2 == 0) return append<uint16_t>(p, rows, stream);
  append<uint8_t>(p, rows, stream);
}

}  // namespace minigpt
