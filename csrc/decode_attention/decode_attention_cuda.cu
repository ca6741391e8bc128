#include "../common/dispatch.h"
#include "../common/head_dim.h"
#include "decode_attention.cuh"

namespace minigpt {

// With a single split the scratch is not touched.
void decode_attention_cuda(const DecodeAttentionParams& p, CudaStream stream) {
  const PagedLayout& c = p.layout;
  const int64_t row_heads = new_token_rows(c) * p.H;
  if (row_heads == 0) return;
  dispatch(p.dtype, [&](auto type) {
    using T = device_t<typename decltype(type)::type>;
    const auto attend_over = [&](auto cache_type) {
      using C = typename decltype(cache_type)::type;
      dispatch_head_dim<T>(c.D, [&](auto head_dim) {
        dispatch_rule(p.rule, [&](auto rule) {
          launch("decode_attention_kernel", decode_attention_kernel<T, C, decltype(head_dim)::value, rule.value>,
                 grid_of(row_heads * p.splits), kDecodeThreads, 0, stream, p);
        });
      });
    };
    if constexpr (sizeof(T) < 8) {
      if (p.k_scales) attend_over(Type<int8_t>{});
    }
    if (!p.k_scales) attend_over(Type<T>{});
    if (p.splits > 1)
      launch("decode_attention_merge_kernel", decode_attention_merge_kernel<T>, grid_of(row_heads), kMergeThreads, 0,
             stream, p);
  });
}

}  // namespace minigpt
