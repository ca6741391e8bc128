#include <algorithm>
#include <cmath>

#include "../common/score_checks.h"
#include "../kv_append/paged_checks.h"
#include "decode_attention.h"
#include "decode_splits.h"

namespace minigpt {
Tensor decode_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& block_table,
                        const Tensor& seq_lens, const std::optional<Tensor>& query_start, double scale, int64_t window,
                        const std::optional<Tensor>& alibi_slopes, double softcap,
                        const std::optional<Tensor>& k_scales, const std::optional<Tensor>& v_scales) {
  constexpr const char* op = "decode_attention";
  const DType dtype = dtype_of(q, op, "q");
  const PagedLayout layout =
      checked_layout(q, "q", k_cache, v_cache, block_table, seq_lens, query_start, k_scales, v_scales, op);
  const int64_t H = q.size(q.dim() - 2), D = layout.D;
  check(H >= 1 && H % layout.H_kv == 0, op, ": q must have a multiple of the cache's H_kv = ", layout.H_kv,
        " heads, got ", H);
  check(D <= 256, op, ": D must be at most 256, got ", D);
  check(std::isfinite(scale), op, ": scale must be finite, got ", scale);
  check(window >= 0, op, ": window must be positive, or 0 for none, got ", window);
  check_score_rule(alibi_slopes, softcap, q, H, /*causal=*/true, op);
  const int64_t rows = new_token_rows(layout);
  check_tables(layout, block_table, seq_lens, query_start, /*before=*/false, op);

  Tensor out = empty(q, {q.sizes().begin(), q.sizes().end()}, q.scalar_type());
  if (q.numel() == 0) return out;
  const DecodeSplits splits = runs_cuda(q) ? decode_splits_cuda(layout) : decode_splits_cpu(layout, H);
  const int64_t scratch_rows = splits.count > 1 ? rows : 0;
  Tensor partial_out = empty(q, {scratch_rows, H, splits.count, D}, accumulate_type(dtype));
  Tensor partial_stats = empty(q, {scratch_rows, H, splits.count, 2}, accumulate_type(dtype));
  const int64_t token = q.dim() - 3, head = q.dim() - 2;  // with query_start there is no batch dimension
  const DecodeAttentionParams params{
      .layout = layout,
      .dtype = dtype,
      .H = H,
      .scale = scale,
      .rule = {softcap, input(alibi_slopes)},
      .window = std::min(window, layout.max_blocks * layout.block_size + 1),  // a wider one bounds nothing
      .q = input(q),
      .q_batch_stride = q.stride(0),
      .q_token_stride = q.stride(token),
      .q_head_stride = q.stride(head),
      .k_cache = input(k_cache),
      .v_cache = input(v_cache),
      .k_scales = static_cast<const float*>(input(k_scales)),
      .v_scales = static_cast<const float*>(input(v_scales)),
      .out = output(out),
      .partial_out = output(partial_out),
      .partial_stats = output(partial_stats),
      .splits = splits.count,
      .keys_per_split = splits.keys,
  };
  RUN(decode_attention, q, params);
  return out;
}

}  // namespace minigpt

REGISTER(decode_attention)
