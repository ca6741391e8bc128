// The part of a layer between its first two matrices: queries and keys are normalised and rotated, keys and values go into
// the cache, and the queries attend. With a bf16 cache queries, keys, values and what comes out are rounded to bf16; with an
// int8 one all are floats, and keys and values are quantised as they go in.
#include <algorithm>
#include <cmath>

#include "../attention/attention.h"
#include "../common/simd.h"
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

// Of a layer; null where the cache has none.
float* scales(const std::vector<float*>& layers, int64_t index) { return layers.empty() ? nullptr : layers[index]; }

// n numbers, from floats to bf16 or back.
struct Convert {
  template <int Bytes, class From, class To>
  static ALWAYS_INLINE void run(const From* from, To* to, int64_t n) {
    constexpr int W = simd::lanes<float, Bytes>;
    for (int64_t i = 0; i < n; i += W) simd::store_part<Bytes>(to + i, simd::load_part<Bytes>(from + i, n - i), n - i);
  }
};

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
    if (rounded()) round_rows(begin, begin + rows);
    const KvAppendParams append{.layout = layout(/*after=*/false),
                                .element_size = keys_.element_size,
                                .k = keys_.data,
                                .v = values_.data,
                                .k_token_stride = keys_.stride,
                                .k_head_stride = s.D,
                                .v_token_stride = values_.stride,
                                .v_head_stride = s.D,
                                .k_batch_stride = chunk_.T * keys_.stride,
                                .v_batch_stride = chunk_.T * values_.stride,
                                .k_cache = cache_->k[index],
                                .v_cache = cache_->v[index],
                                .k_scales = scales(cache_->k_scales, index),
                                .v_scales = scales(cache_->v_scales, index),
                                .dtype = cache_->dtype};
    kv_append_rows_cpu(append, begin, begin + rows);
  }
  pool_->barrier();
}

void Decoder::round_rows(int64_t begin, int64_t end) {
  const Shape& s = shape_;
  for (int64_t row = begin; row < end; ++row) {
    bfloat16* to = rounded_.data() + row * s.qkv_width();
    for (const auto& [rows, n] : {std::pair(q_rows_, s.H * s.D), {k_rows_, s.H_kv * s.D}, {v_rows_, s.H_kv * s.D}}) {
      simd::call<Convert>(static_cast<const float*>(rows.row(row)), to, n);
      to += n;
    }
  }
}

void* Decoder::attention_out(int64_t row) {
  const int64_t at = row * shape_.H * shape_.D;
  return rounded() ? static_cast<void*>(attended_rounded_.data() + at) : attended_.data() + at;
}

const float* Decoder::attended(int thread) {
  if (!rounded()) return attended_.data();
  const int64_t M = chunk_.rows(), width = shape_.H * shape_.D;
  const bool own = M == 1;
  const int64_t begin = own ? 0 : begin_of(M, thread) * width, end = own ? width : begin_of(M, thread + 1) * width;
  float* const to = attended_.data() + (own ? thread * width : 0);
  simd::call<Convert>(static_cast<const bfloat16*>(attended_rounded_.data() + begin), to + begin, end - begin);
  return to;
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
  // The tiled kernel reads floats, so of an int8 cache nothing: its first tokens attend to what was not quantised.
  const bool fresh = chunk_.start == 0;
  if (quantised() ? fresh : chunk_.T > 1 && (fresh || in_one_piece()))
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
    const auto keys = [&](const Placed& own, const void* cache) {
      return fresh ? own.row(row)
                   : static_cast<const std::byte*>(cache) + block * cache_->block_size * token * own.element_size;
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
                           .dtype = cache_->dtype,
                           .rule = {s.attention_softcap, or_null(weights_.alibi_slopes)},
                           .q = queries_.row(row + begin),
                           .k = keys(keys_, cache_->k[index]),
                           .v = keys(values_, cache_->v[index]),
                           .q_strides = {0, queries_.stride, s.D},
                           .k_strides = {0, fresh ? keys_.stride : token, s.D},
                           .v_strides = {0, fresh ? values_.stride : token, s.D},
                           .seed = nullptr,
                           .out = attention_out(row + begin),
                           .lse = lse_.data() + thread * s.H * query_run});
  });
  pool_->barrier();
}

void Decoder::attend_cache(int64_t index, int thread) {
  const Shape& s = shape_;
  DecodeAttentionParams p{.layout = layout(/*after=*/true),
                          .dtype = cache_->dtype,
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
                          .k_scales = scales(cache_->k_scales, index),
                          .v_scales = scales(cache_->v_scales, index),
                          .out = attention_out(0),
                          .partial_out = partial_out_.data(),
                          .partial_stats = partial_stats_.data(),
                          .splits = 1,
                          .keys_per_split = chunk_.start + chunk_.T};
  const DecodeSplits splits = decode_splits_cpu(p.layout, p.H);
  if (chunk_.rows() * splits.count <= partial_rows) p.splits = splits.count, p.keys_per_split = splits.keys;
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
