// How prepare_input() lays a row of x out. Every format has one 32-bit word for each step of K, beside the 32 words of the
// weights: a float, a pair of bf16, or four int8. The integer formats have, behind the words, for each group of 32 a float
// scale, and an int32 that takes out the weights' offset: -offset * sum(q), where the sum of (w + offset) * q begins.
#pragma once
#include "packed_matrix.h"

namespace minigpt::decoder {

// Weights in one 32-bit word.
constexpr int step_size(WeightFormat format) {
  return format == WeightFormat::fp32 ? 1 : format == WeightFormat::bf16 ? 2 : 4;
}

constexpr bool in_groups(WeightFormat format) { return format == WeightFormat::int8 || format == WeightFormat::int4; }

constexpr int weight_offset(WeightFormat format) { return format == WeightFormat::int8 ? 128 : 8; }

inline int64_t group_count(int64_t K) { return (K + group_size - 1) / group_size; }

// 32-bit words before the scales, and where the offsets' part begins.
inline int64_t input_words(WeightFormat format, int64_t K) {
  return in_groups(format) ? group_count(K) * (group_size / 4) : (K + step_size(format) - 1) / step_size(format);
}

inline int64_t input_offsets(WeightFormat format, int64_t K) { return input_words(format, K) + group_count(K); }

// Bytes from one row to the next: an odd number of cache lines, so that rows do not meet in the same sets of a cache.
inline int64_t input_row_bytes(WeightFormat format, int64_t K) {
  const int64_t words = in_groups(format) ? input_offsets(format, K) + group_count(K) : input_words(format, K);
  return ((words * 4 + 63) / 64 | 1) * 64;
}

}  // namespace minigpt::decoder
