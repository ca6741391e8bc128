#include "matmul.h"

#include "matmul_kernels.h"

namespace minigpt::decoder {

void multiply(const PackedMatrix& w, const std::byte* input, int64_t M, const float* bias, float* y, int64_t y_stride,
              int64_t n_begin, int64_t n_end) {
  const WeightFormat format = w.format;
  const Product p{.weights = w.data,
                  .input = input,
                  .panel_bytes = panel_bytes(format, w.K),
                  .input_row_bytes = input_row_bytes(format, w.K),
                  .scales = input_words(format, w.K),
                  .offsets = input_offsets(format, w.K),
                  .y = y,
                  .y_stride = y_stride,
                  .bias = bias,
                  .M = M,
                  .N = w.N,
                  .steps = in_groups(format) ? group_count(w.K) : input_words(format, w.K)};
  switch (format) {
    case WeightFormat::fp32:
      return multiply_fp32(p, n_begin, n_end);
    case WeightFormat::bf16:
      return multiply_bf16(p, n_begin, n_end);
    case WeightFormat::int8:
      return multiply_int8(p, n_begin, n_end);
    case WeightFormat::int4:
      return multiply_int4(p, n_begin, n_end);
  }
}

void load_sums(const Product& p, const Block& b, int64_t n, int rows, int columns, float* sums) {
  const int64_t count = std::clamp<int64_t>(p.N - n, 0, columns);
  std::fill_n(sums, rows * columns, 0.0f);
  if (b.begin > 0)
    for (int r = 0; r < rows; ++r) std::copy_n(p.y + row_of(p, b, r) * p.y_stride + n, count, sums + r * columns);
}

void store_sums(const Product& p, const Block& b, int64_t n, int rows, int columns, const float* sums) {
  const int64_t count = std::clamp<int64_t>(p.N - n, 0, columns);
  const float* bias = b.end == p.steps ? p.bias : nullptr;
  for (int r = 0; r < rows; ++r, sums += columns) {
    float* y = p.y + row_of(p, b, r) * p.y_stride + n;
    for (int64_t i = 0; i < count; ++i) y[i] = bias ? sums[i] + bias[n + i] : sums[i];
  }
}

int64_t share_begin(const PackedMatrix& matrix, int thread, int threads) {
  return std::min(panel_count(matrix.N) * thread / threads * panel_rows, matrix.N);
}

}  // namespace minigpt::decoder
