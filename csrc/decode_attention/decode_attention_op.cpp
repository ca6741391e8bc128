#include <algorithm>
#include <cmath>

#include "../common/score_checks.h"
#include "../kv_append/paged_checks.h"
#include "decode_attention.h"

namespace minigpt {
namespace {

struct Splits {
  int64_t count, keys;
};

// Into how many runs a long cache is cut, so that there is work for many threads or blocks also where sequences and heads
// are few. The numbers depend on the shapes (and on the CPU the lengths) alone, never on the threads: results repeat.
Splits splits_for(const PagedLayout& l, int64_t rows, bool cuda) {
  int64_t longest = l.max_blocks * l.block_size;
  int64_t tasks = l.B * l.H_kv, wanted_tasks = 512, least_keys = 256;
  if (!cuda) {
    longest = 0;
    for (int64_t b = 0; b < l.B; ++b) longest = std::max<int64_t>(longest, l.seq_lens[b]);
    wanted_tasks = 64;
    if (rows <= l.B) tasks = l.B, least_keys = 64;  // one new token a sequence: its task takes all heads
  }
  const int64_t wanted =
      std::max<int64_t>(1, std::min(wanted_tasks / std::max<int64_t>(1, tasks), longest / least_keys));
  const int64_t keys = std::max<int64_t>(1, (longest + wanted - 1) / wanted);
  return {std::max<int64_t>(1, (longest + keys - 1) / keys), keys};
}

}  // namespace

Tensor decode_attention(const Tensor& q, const Tensor& k_cache, const Tensor& v_cache, const Tensor& block_table,
                        const Tensor& seq_lens, const std::optional<Tensor>& query_start, double scale, int64_t window,
                        const std::optional<Tensor>& alibi_slopes, double softcap) {
  constexpr const char* op = "decode_attention";
  const DType dtype = dtype_of(q, op, "q");
  const PagedLayout layout = checked_layout(q, "q", k_cache, v_cache, block_table, seq_lens, query_start, op);
  const int64_t H = q.size(q.dim() - 2), D = layout.D;
  check(H >= 1 && H % layout.H_kv == 0, op, ": q must have a multiple of the cache's H_kv = ", layout.H_kv,
        " heads, got ", H);
  check(D <= 256, op, ": D must be at most 256, got ", D);
  check(std::isfinite(scale), op, ": scale must be finite, got ", scale);
  check(window >= 0, op, ": window must be positive, or 0 for none, got ", window);
  check_score_rule(alibi_slopes, softcap, q, H, /*causal=*/true, op);
  const int64_t rows = query_start ? layout.T : layout.B * layout.T;
  check_tables(layout, block_table, seq_lens, query_start, /*before=*/false, op);

  Tensor out = empty(q, {q.sizes().begin(), q.sizes().end()}, q.scalar_type());
  if (q.numel() == 0) return out;
  const Splits splits = splits_for(layout, rows, runs_cuda(q));
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
