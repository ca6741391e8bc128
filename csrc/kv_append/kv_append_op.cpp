#include "kv_append.h"
#include "paged_checks.h"

namespace minigpt {

void kv_append(const Tensor& k_cache, const Tensor& v_cache, const Tensor& k, const Tensor& v,
               const Tensor& block_table, const Tensor& seq_lens, const std::optional<Tensor>& query_start,
               const std::optional<Tensor>& k_scales, const std::optional<Tensor>& v_scales) {
  constexpr const char* op = "kv_append";
  if (k_cache.scalar_type() != ScalarType::Char) dtype_of(k_cache, op, "k_cache, unless it is int8,");
  const PagedLayout layout =
      checked_layout(k, "k", k_cache, v_cache, block_table, seq_lens, query_start, k_scales, v_scales, op);
  check(k.size(k.dim() - 2) == layout.H_kv, op, ": k must have the cache's H_kv = ", layout.H_kv, " heads, got ",
        shape_of(k));
  check_same_device(v, k_cache, op, "v");
  check_type(v, k.scalar_type(), op, "v");
  check_shape(v, {k.sizes().begin(), k.sizes().end()}, op, "v", "k's shape");
  check_last_stride(v, op, "v");
  check_tables(layout, block_table, seq_lens, query_start, /*before=*/true, op);
  if (k.numel() == 0) return;

  const int64_t token = k.dim() - 3, head = k.dim() - 2;  // with query_start there is no batch dimension
  const KvAppendParams params{
      .layout = layout,
      .element_size = int64_t(k.element_size()),
      .k = input(k),
      .v = input(v),
      .k_token_stride = k.stride(token),
      .k_head_stride = k.stride(head),
      .v_token_stride = v.stride(token),
      .v_head_stride = v.stride(head),
      .k_batch_stride = k.stride(0),
      .v_batch_stride = v.stride(0),
      .k_cache = output(k_cache),
      .v_cache = output(v_cache),
      .k_scales = static_cast<float*>(output(k_scales)),
      .v_scales = static_cast<float*>(output(v_scales)),
      .dtype = dtype_of(k, op, "k"),
  };
  RUN(kv_append, k_cache, params);
}

}  // namespace minigpt

REGISTER(kv_append)
