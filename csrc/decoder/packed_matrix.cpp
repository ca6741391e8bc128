#include "packed_matrix.h"

#include <bit>
#include <stdexcept>
#include <string>

namespace minigpt::decoder {
namespace {

constexpr int64_t scale_bytes = panel_rows * 2, scale_half = panel_rows / 2;

int64_t groups(int64_t K) { return (K + group_size - 1) / group_size; }

float from_bf16(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }

// Where row n's scale lies among a group's.
int64_t scale_place(int64_t n) { return n % scale_half * 2 + n / scale_half; }

}  // namespace

int64_t panel_bytes(WeightFormat format, int64_t K) {
  switch (format) {
    case WeightFormat::fp32:
      return K * panel_rows * 4;
    case WeightFormat::bf16:
      return (K + 1) / 2 * panel_rows * 4;
    case WeightFormat::int8:
      return groups(K) * (scale_bytes + group_size * panel_rows);
    case WeightFormat::int4:
      return groups(K) * (scale_bytes + group_size * panel_rows / 2);
  }
  throw std::invalid_argument("no weight format: " + std::to_string(int(format)));
}

int64_t packed_bytes(WeightFormat format, int64_t N, int64_t K) { return panel_count(N) * panel_bytes(format, K); }

void unpack_row(const PackedMatrix& matrix, int64_t row, float* out) {
  const std::byte* panel = matrix.data + row / panel_rows * panel_bytes(matrix.format, matrix.K);
  const int64_t n = row % panel_rows;
  for (int64_t k = 0; k < matrix.K; ++k) {
    const std::byte* group = panel + k / group_size * panel_bytes(matrix.format, group_size);
    const int64_t i = k % group_size;
    const auto scale = [&] { return from_bf16(reinterpret_cast<const uint16_t*>(group)[scale_place(n)]); };
    const auto byte = [&](int64_t i) { return int(group[scale_bytes + i / 4 * 4 * panel_rows + 4 * n + i % 4]); };
    switch (matrix.format) {
      case WeightFormat::fp32:
        out[k] = reinterpret_cast<const float*>(panel)[k * panel_rows + n];
        break;
      case WeightFormat::bf16:
        out[k] = from_bf16(reinterpret_cast<const uint16_t*>(panel)[k / 2 * 2 * panel_rows + 2 * n + k % 2]);
        break;
      case WeightFormat::int8:
        out[k] = scale() * float(byte(i) - 128);
        break;
      case WeightFormat::int4:
        out[k] = scale() * float((byte(i % (group_size / 2)) >> (i / (group_size / 2) * 4) & 15) - 8);
        break;
    }
  }
}

}  // namespace minigpt::decoder
