#include "packed_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "../common/simd.h"

namespace minigpt::decoder {
namespace {

constexpr int64_t scale_bytes = panel_rows * 2, scale_half = panel_rows / 2;

int64_t groups(int64_t K) { return (K + group_size - 1) / group_size; }

float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

uint32_t to_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

uint16_t to_bf16(float x) { return simd::narrow<16>(simd::Vector<float, 16>{x}, bfloat16{})[0]; }
float from_bf16(uint16_t bits) { return from_bits(uint32_t(bits) << 16); }

// To integers, ties to even, |x| < 2^22; unlike rint() this is vectorised everywhere.
template <class V>
V nearest(V x) {
  return (x + 12582912.0f) - 12582912.0f;
}

constexpr float nothing = 1e-36f;  // a group without a greater weight is packed as zeros: its scale has no reciprocal

// Where row n's scale lies among a group's.
int64_t scale_place(int64_t n) { return n % scale_half * 2 + n / scale_half; }

// ---- a group of one row -> its scale and 32 integers -----------------------------------------------------------------

// scale = max |w| / 127, rounded up, so that every w / scale is within 127.
uint16_t quantise_int8(const float* w, float* q) {
  float most = 0;
  for (int64_t k = 0; k < group_size; ++k) most = std::max(most, std::fabs(w[k]));
  std::fill(q, q + group_size, 0.0f);
  if (most < nothing) return 0;
  const uint16_t scale = (to_bits(most / 127.0f) + 0xffff) >> 16;
  const float inverse = 1.0f / from_bf16(scale);
  for (int64_t k = 0; k < group_size; ++k) q[k] = nearest(w[k] * inverse);
  return scale;
}

// Integers -8 ... 7. Of some ways to round, each with its best scale <w, q> / <q, q>, the one that leaves the least squared
// error |w|^2 - <w, q>^2 / <q, q>. The extreme w goes to -8, where there is one integer more.
uint16_t quantise_int4(const float* w, float* q) {
  using V = simd::Vector<float, 16>;
  constexpr int vectors = group_size / simd::lanes<float, 16>;
  float extreme = 0;
  for (int64_t k = 0; k < group_size; ++k) extreme = std::fabs(w[k]) > std::fabs(extreme) ? w[k] : extreme;
  std::fill(q, q + group_size, 0.0f);
  if (std::fabs(extreme) < nothing) return 0;
  V ratio[vectors];  // w / extreme
  for (int i = 0; i < vectors; ++i) ratio[i] = simd::load<16>(w + 4 * i) * (1.0f / extreme);
  const auto rounded = [&](int i, float factor) {
    const V x = ratio[i] * factor, low = x < -8.0f ? V{} - 8.0f : x;
    return nearest(low > 7.0f ? V{} + 7.0f : low);
  };
  float best_wq = 0, best_qq = 1;
  for (float reach = -9.5f; reach <= -6.5f; reach += 0.25f) {  // what extreme / scale would be
    V wqs{}, qqs{};
    for (int i = 0; i < vectors; ++i) {
      const V x = rounded(i, reach);
      wqs += ratio[i] * x;
      qqs += x * x;
    }
    const float wq = simd::sum(wqs), qq = simd::sum(qqs);
    if (wq * wq * best_qq > best_wq * best_wq * qq) best_wq = wq, best_qq = qq;
  }
  const uint16_t scale = to_bf16(extreme * (best_wq / best_qq));
  for (int i = 0; i < vectors; ++i) simd::store<16>(q + 4 * i, rounded(i, extreme / from_bf16(scale)));
  return scale;
}

// ---- a panel ---------------------------------------------------------------------------------------------------------

// row(n): the K weights of the panel's row n, or null behind the last.
// A few k at a time: what is written stays in the first cache until all rows have been there.
template <class Row>
void pack_fp32(const Row& row, int64_t K, std::byte* out) {
  constexpr int64_t some = 16;
  auto* to = reinterpret_cast<float*>(out);
  for (int64_t k = 0; k < K; k += some)
    for (int64_t n = 0; n < panel_rows; ++n)
      for (int64_t i = k; i < std::min(K, k + some); ++i) to[i * panel_rows + n] = row(n) ? row(n)[i] : 0;
}

template <class Row>
void pack_bf16(const Row& row, int64_t K, std::byte* out) {
  for (int64_t n = 0; n < panel_rows; ++n) {
    const float* w = row(n);
    uint16_t* to = reinterpret_cast<uint16_t*>(out) + 2 * n;
    for (int64_t k = 0; k < K + K % 2; ++k) to[k / 2 * 2 * panel_rows + k % 2] = w && k < K ? to_bf16(w[k]) : 0;
  }
}

template <WeightFormat format, class Row>
void pack_groups(const Row& row, int64_t K, std::byte* out) {
  constexpr bool four = format == WeightFormat::int4;
  for (int64_t k = 0; k < K; k += group_size, out += panel_bytes(format, group_size)) {
    auto* scales = reinterpret_cast<uint16_t*>(out);
    auto* bytes = reinterpret_cast<uint8_t*>(out) + scale_bytes;
    for (int64_t n = 0; n < panel_rows; ++n) {
      float w[group_size] = {}, q[group_size];
      if (row(n)) std::copy_n(row(n) + k, std::min(group_size, K - k), w);
      scales[scale_place(n)] = four ? quantise_int4(w, q) : quantise_int8(w, q);
      const auto place = [&](int64_t i) -> uint8_t& { return bytes[i / 4 * 4 * panel_rows + 4 * n + i % 4]; };
      if constexpr (four)
        for (int i = 0; i < group_size / 2; ++i) place(i) = (int(q[i]) + 8) | (int(q[i + group_size / 2]) + 8) << 4;
      else
        for (int i = 0; i < group_size; ++i) place(i) = int(q[i]) + 128;
    }
  }
}

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

void pack_rows(WeightFormat format, const float* w, int64_t N, int64_t K, int64_t row_begin, int64_t row_end,
               std::byte* out) {
  if (row_begin % panel_rows || (row_end % panel_rows && row_end != N) || row_begin < 0 || row_end > N)
    throw std::invalid_argument("rows [" + std::to_string(row_begin) + ", " + std::to_string(row_end) + ") of " +
                                std::to_string(N) + " are not whole panels of " + std::to_string(panel_rows));
  for (int64_t first = row_begin; first < row_end; first += panel_rows) {
    const auto row = [&](int64_t n) { return first + n < N ? w + (first + n) * K : nullptr; };
    std::byte* panel = out + first / panel_rows * panel_bytes(format, K);
    switch (format) {
      case WeightFormat::fp32:
        pack_fp32(row, K, panel);
        break;
      case WeightFormat::bf16:
        pack_bf16(row, K, panel);
        break;
      case WeightFormat::int8:
        pack_groups<WeightFormat::int8>(row, K, panel);
        break;
      case WeightFormat::int4:
        pack_groups<WeightFormat::int4>(row, K, panel);
        break;
    }
  }
}

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
