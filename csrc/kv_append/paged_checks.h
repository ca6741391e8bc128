// The checks that kv_append and decode_attention share: a paged cache, its table, and the new tokens' place in it.
#pragma once
#include "../common/checks.h"
#include "kv_append.h"

namespace minigpt {

inline void check_index_tensor(const Tensor& t, const Tensor& cache, std::vector<int64_t> shape, const char* op,
                               const char* argument, const char* letters) {
  check_same_device(t, cache, op, argument);
  check_type(t, ScalarType::Int, op, argument);
  check_shape(t, std::move(shape), op, argument, letters);
  check(t.is_contiguous(), op, ": ", argument, " must be contiguous");
}

// The values of tables and lengths, which must be in the CPU's memory. `before`: whether seq_lens counts the tokens before
// the new ones (kv_append) or with them.
inline void check_table_values(const PagedLayout& l, bool before, const char* op) {
  const int64_t rows = l.T;
  if (l.query_start) {
    check(l.query_start[0] == 0, op, ": query_start must begin with 0, got ", l.query_start[0]);
    for (int64_t b = 0; b < l.B; ++b)
      check(l.query_start[b + 1] >= l.query_start[b], op, ": query_start must not decrease, got ", l.query_start[b],
            " then ", l.query_start[b + 1], " for sequence ", b);
    check(l.query_start[l.B] == rows, op, ": query_start must end with the number of new tokens, ", rows, ", got ",
          l.query_start[l.B]);
  }
  for (int64_t b = 0; b < l.B; ++b) {
    const int64_t fresh = l.query_start ? l.query_start[b + 1] - l.query_start[b] : l.T;
    const int64_t total = l.seq_lens[b] + (before ? fresh : 0);
    check(l.seq_lens[b] >= 0, op, ": seq_lens must not be negative, got ", l.seq_lens[b], " for sequence ", b);
    check(total <= l.max_blocks * l.block_size, op, ": sequence ", b, " would have ", total,
          " tokens, its row of block_table holds ", l.max_blocks, " blocks of ", l.block_size, ", ",
          l.max_blocks * l.block_size, " tokens in all");
    const int64_t first_used = before ? l.seq_lens[b] / l.block_size : 0;
    for (int64_t i = first_used; i * l.block_size < total; ++i) {
      const int64_t block = l.block_table[b * l.max_blocks + i];
      check(block >= 0 && block < l.n_blocks, op, ": block_table[", b, "][", i, "] is ", block, ", the cache has ",
            l.n_blocks, " blocks (0 ... ", l.n_blocks - 1, ")");
    }
  }
}

inline void check_tables(PagedLayout layout, const Tensor& block_table, const Tensor& seq_lens,
                         const std::optional<Tensor>& query_start, bool before, const char* op) {
  if (!values_are_checked(seq_lens)) return;
  const Tensor table = on_cpu(block_table), lengths = on_cpu(seq_lens);
  const std::optional<Tensor> starts = query_start ? std::optional(on_cpu(*query_start)) : std::nullopt;
  layout.block_table = static_cast<const int32_t*>(table.const_data_ptr());
  layout.seq_lens = static_cast<const int32_t*>(lengths.const_data_ptr());
  if (starts) layout.query_start = static_cast<const int32_t*>(starts->const_data_ptr());
  check_table_values(layout, before, op);
}

// int8 caches come with scales and with new tokens that are to be quantised; others have new tokens of their own type.
inline void check_scales(const Tensor& new_tokens, const char* name, const Tensor& k_cache,
                         const std::optional<Tensor>& k_scales, const std::optional<Tensor>& v_scales, const char* op) {
  const bool quantised = k_cache.scalar_type() == ScalarType::Char;
  for (const auto& [scales, argument] : {std::pair(&k_scales, "k_scales"), std::pair(&v_scales, "v_scales")}) {
    if (!quantised) {
      check(!*scales, op, ": ", argument, " belongs to int8 caches, and k_cache is ", name_of(k_cache.scalar_type()));
      continue;
    }
    check(bool(*scales), op, ": ", argument, " must be given with int8 caches");
    check_same_device(**scales, k_cache, op, argument);
    check_type(**scales, ScalarType::Float, op, argument);
    check_shape(**scales, {k_cache.size(0), k_cache.size(1), k_cache.size(2)}, op, argument,
                "(n_blocks, block_size, H_kv)");
    check((*scales)->is_contiguous(), op, ": ", argument, " must be contiguous");
  }
  const ScalarType type = new_tokens.scalar_type();
  if (!quantised) return check_type(new_tokens, k_cache.scalar_type(), op, name);
  check(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half, op, ": ", name,
        " must be float32, bfloat16 or float16 with int8 caches, got ", name_of(type));
}

// Shapes, types and devices of caches, table, lengths and query_start, and the layout they make. new_tokens: q or k.
inline PagedLayout checked_layout(const Tensor& new_tokens, const char* name, const Tensor& k_cache,
                                  const Tensor& v_cache, const Tensor& block_table, const Tensor& seq_lens,
                                  const std::optional<Tensor>& query_start, const std::optional<Tensor>& k_scales,
                                  const std::optional<Tensor>& v_scales, const char* op) {
  check(k_cache.dim() == 4, op, ": k_cache must be (n_blocks, block_size, H_kv, D), got ", shape_of(k_cache));
  const int64_t n_blocks = k_cache.size(0), block_size = k_cache.size(1), H_kv = k_cache.size(2), D = k_cache.size(3);
  check_shape(v_cache, {n_blocks, block_size, H_kv, D}, op, "v_cache", "(n_blocks, block_size, H_kv, D)");
  check(block_size >= 1 && H_kv >= 1 && D >= 1, op, ": k_cache must have block_size, H_kv and D of at least 1, got ",
        shape_of(k_cache));
  check_same_device(v_cache, k_cache, op, "v_cache");
  check_type(v_cache, k_cache.scalar_type(), op, "v_cache");
  check(k_cache.is_contiguous() && v_cache.is_contiguous(), op, ": k_cache and v_cache must be contiguous");

  check(block_table.dim() == 2, op, ": block_table must be (B, max_blocks), got ", shape_of(block_table));
  const int64_t B = block_table.size(0), max_blocks = block_table.size(1);
  check_index_tensor(block_table, k_cache, {B, max_blocks}, op, "block_table", "(B, max_blocks)");
  check_index_tensor(seq_lens, k_cache, {B}, op, "seq_lens", "(B,)");
  if (query_start) check_index_tensor(*query_start, k_cache, {B + 1}, op, "query_start", "(B + 1,)");

  check_same_device(new_tokens, k_cache, op, name);
  check_scales(new_tokens, name, k_cache, k_scales, v_scales, op);
  if (query_start) {
    check(new_tokens.dim() == 3, op, ": with query_start, ", name, " must be (new tokens, heads, D), got ",
          shape_of(new_tokens));
  } else {
    check(new_tokens.dim() == 4 && new_tokens.size(0) == B, op, ": ", name, " must be (B, T, heads, D) with B = ", B,
          ", got ", shape_of(new_tokens));
  }
  check(new_tokens.size(new_tokens.dim() - 1) == D, op, ": ", name, " must have the cache's D = ", D,
        " in its last dimension, got ", shape_of(new_tokens));
  check_last_stride(new_tokens, op, name);

  return {
      .n_blocks = n_blocks,
      .block_size = block_size,
      .H_kv = H_kv,
      .D = D,
      .B = B,
      .max_blocks = max_blocks,
      .block_table = static_cast<const int32_t*>(input(block_table)),
      .seq_lens = static_cast<const int32_t*>(input(seq_lens)),
      .query_start = static_cast<const int32_t*>(input(query_start)),
      .T = query_start ? new_tokens.size(0) : new_tokens.size(1),
  };
}

}  // namespace minigpt
