// The part of a layer between its first two matrices: queries and keys are normalised and rotated, keys and values go into
// the cache, and the queries attend.
#include <algorithm>
#include <cmath>

#include "../attention/attention.h"
#include "../decode_attention/decode_splits.h"
#include "../kv_append/kv_append.h"
#include "../rms_norm/rms_norm.h"
#include "../rope/rope.h"
#include "decoder.h"

namespace minigpt::decoder {
namespace {

// This thread's tasks out of n, which grow shorter from the first to the last: to and fro, so that the shares come out even.
template <class F>
void deal(int64_t n, int thread, int threads, const F& task) {
  for (int64_t round = 0; round * threads < n; ++round) {
    const int64_t i = round * threads + (round % 2 ? threads - 1 - thread : thread);
    if (i < n) task(i);
  }
}

}  // namespace

void Decoder::place_keys(const Layer& layer, int64_t index, int thread) {
  const Shape& s = shape_;
  const int64_t M = chunk_.rows(), begin = begin_of(M, thread), rows = begin_of(M, thread + 1) - begin;
  const int64_t width = s.qkv_width();
  if (rows && (s.qk_norm || s.rope_half)) {
    struct {
      const Numbers& norm;
      int64_t heads;
      const float* x;
      float* y;
    } const parts[] = {{layer.q_norm, s.H, qkv_.data(), q_.data()},
                       {layer.k_norm, s.H_kv, qkv_.data() + s.H * s.D, k_.data()}};
    for (const auto& [norm, heads, source, out] : parts) {
      const float* x = source + begin * width;
      float* const y = out + begin * heads * s.D;
      int64_t stride = width;
      if (s.qk_norm) {
        rms_norm_forward_cpu({.rows = rows * heads,
                              .C = s.D,
                              .dtype = DType::f32,
                              .weight_dtype = DType::f32,
                              .x = x,
                              .layout = {heads, s.D, width},
                              .weight = norm.data(),
                              .eps = s.eps,
                              .y = y,
                              .rstd = stats_.data() + begin * s.H});
        x = y, stride = heads * s.D;
      }
      if (s.rope_half)
        rope_cpu({.B = 1,
                  .T = rows,
                  .H = heads,
                  .D = s.D,
                  .half = s.rope_half,
                  .n_positions = int64_t(weights_.cos.size()) / s.rope_half,
                  .dtype = DType::f32,
                  .inverse = false,
                  .x = x,
                  .batch_stride = 0,
                  .token_stride = stride,
                  .head_stride = s.D,
                  .cos = weights_.cos.data(),
                  .sin = weights_.sin.data(),
                  .positions = positions_.data() + begin,
                  .y = y});
    }
  }
  if (rows) {
    const KvAppendParams append{.layout = layout(/*after=*/false),
                                .element_size = sizeof(float),
                                .k = keys_.data,
                                .v = values_.data,
                                .k_token_stride = keys_.stride,
                                .k_head_stride = s.D,
                                .v_token_stride = values_.stride,
                                .v_head_stride = s.D,
                                .k_batch_stride = chunk_.T * keys_.stride,
                                .v_batch_stride = chunk_.T * values_.stride,
                                .k_cache = cache_->k[index],
                                .v_cache = cache_->v[index]};
    kv_append_rows_cpu(append, begin, begin + rows);
  }
  pool_->barrier();
}

PagedLayout Decoder::layout(bool after) const {
  return {.n_blocks = cache_->n_blocks,
          .block_size = cache_->block_size,
          .H_kv = shape_.H_kv,
          .D = shape_.D,
          .B = chunk_.B,
          .max_blocks = cache_->max_blocks,
          .block_table = cache_->block_table + chunk_.first * cache_->max_blocks,
          .seq_lens = after ? seq_lens_after_.data() : seq_lens_.data(),
          .query_start = nullptr,
          .T = chunk_.T};
}

void Decoder::attend(int64_t index, int thread) {
  if (chunk_.T > 1 && (chunk_.start == 0 || in_one_piece()))
    attend_prompt(index, thread);
  else
    attend_cache(index, thread);
}

bool Decoder::in_one_piece() const {
  const PagedLayout l = layout(true);
  const int64_t blocks = (chunk_.start + chunk_.T + l.block_size - 1) / l.block_size;
  for (int64_t b = 0; b < l.B; ++b)
    for (int64_t i = 1; i < blocks; ++i)
      if (l.block_table[b * l.max_blocks + i] != l.block_table[b * l.max_blocks] + i) return false;
  return true;
}

// Several new tokens a sequence, by the tiled kernel: over their own keys where they are the first, else over those of the
// cache, which lie one behind the other. A task takes a run of queries, all heads; the runs with most keys come first.
void Decoder::attend_prompt(int64_t index, int thread) {
  const Shape& s = shape_;
  const int64_t T = chunk_.T, runs = (T + query_run - 1) / query_run, token = s.H_kv * s.D;
  const bool fresh = chunk_.start == 0;
  deal(chunk_.B * runs, thread, pool_->threads(), [&](int64_t task) {
    const int64_t b = task % chunk_.B, begin = (runs - 1 - task / chunk_.B) * query_run;
    const int64_t n = std::min(T - begin, query_run), row = b * T;
    const int64_t block = fresh ? 0 : layout(true).block_table[b * cache_->max_blocks];
    const auto keys = [&](const Rows& own, const void* cache) {
      return fresh ? own.data + row * own.stride
                   : static_cast<const float*>(cache) + block * cache_->block_size * token;
    };
    attention_forward_cpu({.shape = {.B = 1,
                                     .T = n,
                                     .S = chunk_.start + begin + n,
                                     .H = s.H,
                                     .H_kv = s.H_kv,
                                     .D = s.D,
                                     .scale = 1 / std::sqrt(double(s.D)),
                                     .causal = true,
                                     .window = s.windows[index],
                                     .dropout_threshold = 0,
                                     .dropout_scale = 1},
                           .dtype = DType::f32,
                           .rule = {s.attention_softcap, or_null(weights_.alibi_slopes)},
                           .q = queries_.data + (row + begin) * queries_.stride,
                           .k = keys(keys_, cache_->k[index]),
                           .v = keys(values_, cache_->v[index]),
                           .q_strides = {0, queries_.stride, s.D},
                           .k_strides = {0, fresh ? keys_.stride : token, s.D},
                           .v_strides = {0, fresh ? values_.stride : token, s.D},
                           .seed = nullptr,
                           .out = attended_.data() + (row + begin) * s.H * s.D,
                           .lse = lse_.data() + thread * s.H * query_run});
  });
  pool_->barrier();
}

void Decoder::attend_cache(int64_t index, int thread) {
  const Shape& s = shape_;
  DecodeAttentionParams p{.layout = layout(/*after=*/true),
                          .dtype = DType::f32,
                          .H = s.H,
                          .scale = 1 / std::sqrt(double(s.D)),
                          .rule = {s.attention_softcap, or_null(weights_.alibi_slopes)},
                          .window = s.windows[index],
                          .q = queries_.data,
                          .q_batch_stride = chunk_.T * queries_.stride,
                          .q_token_stride = queries_.stride,
                          .q_head_stride = s.D,
                          .k_cache = cache_->k[index],
                          .v_cache = cache_->v[index],
                          .out = attended_.data(),
                          .partial_out = partial_out_.data(),
                          .partial_stats = partial_stats_.data(),
                          .splits = 1,
                          .keys_per_split = chunk_.start + chunk_.T};
  if (chunk_.T == 1) {
    const DecodeSplits splits = decode_splits_cpu(p.layout, p.H);
    p.splits = splits.count, p.keys_per_split = splits.keys;
  }
  const int threads = pool_->threads();
  const int64_t tasks = decode_attention_tasks(p), merges = decode_attention_merges(p);
  for (int64_t i = tasks * thread / threads; i < tasks * (thread + 1) / threads; ++i) decode_attention_task_cpu(p, i);
  pool_->barrier();
  if (!merges) return;
  for (int64_t i = merges * thread / threads; i < merges * (thread + 1) / threads; ++i)
    decode_attention_merge_cpu(p, i);
  pool_->barrier();
}

}  // namespace minigpt::decoder
