// Weight matrices as the decode engine keeps them: W (N, K), the rows of which are the outputs of y = x W^T.
//
// 32 rows make a panel, and panels follow each other: a thread that multiplies some of them reads one stream. Inside a
// panel the rows lie side by side in 32-bit lanes, so that a vector holds one step of K for several rows, each row's sum
// stays in its lane, and nothing is added across lanes:
//
//   fp32   K steps of 32 floats
//   bf16   K / 2 steps of 32 pairs: w[n][k], w[n][k + 1]
//   int8   K / 32 groups: 32 scales, then 8 steps of 32 quadruples of bytes w / scale + 128
//   int4   K / 32 groups: 32 scales, then 4 steps of 32 quadruples of bytes, each with w[n][k] / scale + 8 in its lower
//          four bits and the same of w[n][k + 16] in its upper ones
//
// Scales are bf16: two bytes of any magnitude, widened by a shift. The word i of 16 holds the scales of rows i (lower half)
// and i + 16. Rows behind N and columns behind K are packed as zeros.
//
// int8 has a scale for every 32 weights of a row, not one a row: 8.5 bits a weight instead of 8, so at most 6% less speed,
// and an rms error 1.4 times smaller with normal weights (0.54% instead of 0.77%), 2.4 to 2.6 times with heavy tails
// (Student's t of 4 degrees) or with columns of different sizes (e^(0.7 normal)).
#pragma once
#include <cstddef>
#include <cstdint>

namespace minigpt::decoder {

enum class WeightFormat { fp32, bf16, int8, int4 };

struct PackedMatrix {
  WeightFormat format;
  int64_t N, K;
  const std::byte* data;  // packed_bytes() of them, aligned to 64
};

constexpr int64_t panel_rows = 32, group_size = 32;

inline int64_t panel_count(int64_t N) { return (N + panel_rows - 1) / panel_rows; }
int64_t panel_bytes(WeightFormat format, int64_t K);
int64_t packed_bytes(WeightFormat format, int64_t N, int64_t K);

// Rows [row_begin, row_end) of w (N, K) into the whole matrix's `out`. Parts may be packed at once by several threads; they
// begin at whole panels and end at one, or at N (std::invalid_argument otherwise). False where the format is one of
// integers and a weight is inf or NaN: then `out` is of no use.
bool pack_rows(WeightFormat format, const float* w, int64_t N, int64_t K, int64_t row_begin, int64_t row_end,
               std::byte* out);

// The K numbers that row `row` stands for.
void unpack_row(const PackedMatrix& matrix, int64_t row, float* out);

}  // namespace minigpt::decoder
