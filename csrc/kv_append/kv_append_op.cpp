#include "kv_append.h"
#include "paged_checks.h"

namespace minigpt {

void kv_append(const Tensor& k_cache, const Tensor& v_cache, const Tensor& k, const Tensor& v,
               const Tensor& block_table, const Tensor& seq_lens, const std::optional<Tensor>& query_start) {
  constexpr const char* op = "kv_append";
  dtype_of(k_cache, op, "k_cache");
  const PagedLayout layout = checked_layout(k, "k", k_cache, v_cache, block_table, seq_lens, query_start, op);
  check(k.size(k.dim() - 2) == layout.H_kv, op, ": k must have the cache's H_kv = ", layout.H_kv, " heads, got ",
        shape_of(k));
  check_same_device(v, k_cache, op, "v");
  check_type(v, k_cache.scalar_type(), op, "v");
  check_shape(v, {k.sizes().begin(), k.sizes().end()}, op, "v", "k's shape");
  check_last_stride(v, op, "v");
  check_tables(layout, block_table, seq_lens, query_start, /*before=*/true, op);
  if (k.numel() == 0) return;

  const int64_t token = k.dim() - 3, head = k.dim() - 2;  // with query_start there is no batch dimension
  const KvAppendParams params{
      .layout = layout,
      .element_size = int64_t(k_cache.element_size()),
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
  };
  RUN(kv_append, k_cache, params);
}

}  // namespace minigpt

REGISTER(kv_append)
