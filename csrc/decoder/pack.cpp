// Packing. 32 columns of a panel's 32 rows are turned over, so that a vector holds one column of several rows: each row's
// group is rounded in a lane of its own, and what comes out are the panel's words.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "../common/lanes.h"
#include "packed_matrix.h"

namespace minigpt::decoder {
namespace {

constexpr float nothing = 1e-36f;  // a group without a greater weight is packed as zeros: its scale has no reciprocal
constexpr float magic = 12582912;  // 1.5 * 2^23: of magic + x the lowest bits are x rounded to the nearest integer
constexpr int64_t block_size = panel_rows * group_size;

// `rows` rows of w (.., K) into the panel `out`. *finite becomes false where a format of integers meets inf or NaN.
template <WeightFormat format>
struct PackPanel {
  template <int Bytes>
  using V = simd::Vector<float, Bytes>;
  template <int Bytes>
  using I = simd::Vector<int32_t, Bytes>;

  // A block (rows, columns), rows `stride` apart, to (columns, rows).
  template <int Bytes>
  static ALWAYS_INLINE void turn(const float* from, int64_t stride, float* to) {
    constexpr int W = simd::lanes<float, Bytes>;
    for (int64_t n = 0; n < panel_rows; n += W)
      for (int64_t i = 0; i < group_size; i += W) {
        V<Bytes> part[W];
        for (int r = 0; r < W; ++r) part[r] = simd::load<Bytes>(from + (n + r) * stride + i);
        simd::transpose<float, Bytes>(part);
        for (int r = 0; r < W; ++r) simd::store<Bytes>(to + (i + r) * panel_rows + n, part[r]);
      }
  }

  template <int Bytes>
  static ALWAYS_INLINE void bf16(const float* block, int64_t columns, uint32_t* out) {
    constexpr int W = simd::lanes<float, Bytes>;
    const auto rounded = [&](int64_t i) {
      return simd::zero_extend<Bytes>(simd::narrow<Bytes>(simd::load<Bytes>(block + i), bfloat16{}));
    };
    for (int64_t i = 0; i < columns; i += 2, out += panel_rows)
      for (int64_t n = 0; n < panel_rows; n += W)
        *(simd::Words<Bytes>*)(out + n) = rounded(i * panel_rows + n) | rounded((i + 1) * panel_rows + n) << 16;
  }

  // Of rows n and behind, a vector of them: the group's scales, as bf16, and its integers. scale = max |w| / 127, rounded
  // up, so that every w / scale is within 127.
  template <int Bytes>
  static ALWAYS_INLINE simd::Words<Bytes> int8(const float* block, V<Bytes> most, uint32_t* out) {
    using Words = simd::Words<Bytes>;
    const Words scale = most < nothing ? Words{} : ((Words)(most / 127.0f) + 0xffff) >> 16;
    const V<Bytes> inverse = most < nothing ? V<Bytes>{} : 1.0f / (V<Bytes>)(scale << 16);
    for (int i = 0; i < group_size; i += 4, out += panel_rows) {
      Words word{};
      for (int j = 0; j < 4; ++j) {
        const auto shifted = simd::load<Bytes>(block + (i + j) * panel_rows) * inverse + magic;
        word |= (((Words)shifted + 128) & 255) << 8 * j;
      }
      *(Words*)out = word;
    }
    return scale;
  }

  // Integers -8 ... 7. Of some ways to round, each with its best scale <w, q> / <q, q>, the one that leaves the least
  // squared error |w|^2 - <w, q>^2 / <q, q>. The extreme w goes to -8, where there is one integer more.
  template <int Bytes>
  static ALWAYS_INLINE simd::Words<Bytes> int4(const float* block, V<Bytes> most, uint32_t* out) {
    using Words = simd::Words<Bytes>;
    V<Bytes> extreme{}, ratio[group_size];
    for (int i = 0; i < group_size; ++i) {
      const auto w = simd::load<Bytes>(block + i * panel_rows);
      extreme = (w < 0 ? -w : w) == most ? w : extreme;
    }
    const V<Bytes> inverse = most < nothing ? V<Bytes>{} : 1.0f / extreme;
    for (int i = 0; i < group_size; ++i) ratio[i] = simd::load<Bytes>(block + i * panel_rows) * inverse;
    const auto shifted = [&](int i, V<Bytes> factor) __attribute__((always_inline)) {
      const V<Bytes> x = ratio[i] * factor, low = simd::max(x, V<Bytes>{} - 8.0f);
      return (low > 7.0f ? V<Bytes>{} + 7.0f : low) + magic;
    };
    V<Bytes> best_wq{}, best_qq = V<Bytes>{} + 1.0f;
    for (float reach = -9.5f; reach <= -6.5f; reach += 0.25f) {  // what extreme / scale would be
      V<Bytes> wq{}, qq{};
      for (int i = 0; i < group_size; ++i) {
        const V<Bytes> q = shifted(i, V<Bytes>{} + reach) - magic;
        wq += ratio[i] * q;
        qq += q * q;
      }
      const auto better = wq * wq * best_qq > best_wq * best_wq * qq;
      best_wq = better ? wq : best_wq;
      best_qq = better ? qq : best_qq;
    }
    const Words scale = simd::zero_extend<Bytes>(simd::narrow<Bytes>(extreme * (best_wq / best_qq), bfloat16{}));
    const V<Bytes> factor = most < nothing ? V<Bytes>{} : extreme / (V<Bytes>)(scale << 16);
    for (int i = 0; i < group_size / 2; i += 4, out += panel_rows) {
      Words word{};
      for (int j = 0; j < 4; ++j) {
        const auto low = (Words)shifted(i + j, factor), high = (Words)shifted(i + j + group_size / 2, factor);
        word |= (((low + 8) & 15) | ((high + 8) & 15) << 4) << 8 * j;
      }
      *(Words*)out = word;
    }
    return scale;
  }

  template <int Bytes>
  static ALWAYS_INLINE void group(const float* block, uint32_t* out, bool* finite) {
    constexpr int W = simd::lanes<float, Bytes>;
    uint32_t scales[panel_rows];
    I<Bytes> highest{};
    for (int64_t n = 0; n < panel_rows; n += W) {
      I<Bytes> top{};  // the bits of |w| are in order: finite numbers, infinity, NaN
      for (int64_t i = n; i < block_size; i += panel_rows)
        top = simd::max(top, (I<Bytes>)simd::load<Bytes>(block + i) & 0x7fffffff);
      highest = simd::max(highest, top);
      uint32_t* const words = out + panel_rows / 2 + n;
      *(simd::Words<Bytes>*)(scales + n) = format == WeightFormat::int8 ? int8<Bytes>(block + n, (V<Bytes>)top, words)
                                                                        : int4<Bytes>(block + n, (V<Bytes>)top, words);
    }
    for (int64_t n = 0; n < panel_rows / 2; ++n) out[n] = scales[n] | scales[n + panel_rows / 2] << 16;
    if (simd::highest(highest) >= 0x7f800000) *finite = false;
  }

  template <int Bytes>
  static ALWAYS_INLINE void run(const float* w, int64_t rows, int64_t K, std::byte* out, bool* finite) {
    alignas(64) float block[block_size], copy[block_size];
    for (int64_t k = 0; k < K; k += group_size, out += panel_bytes(format, group_size)) {
      const int64_t columns = std::min(group_size, K - k);
      const bool whole = columns == group_size && rows == panel_rows;
      if (!whole) {
        std::fill_n(copy, block_size, 0.0f);
        for (int64_t n = 0; n < rows; ++n) std::copy_n(w + n * K + k, columns, copy + n * group_size);
      }
      const float* const from = whole ? w + k : copy;
      const int64_t stride = whole ? K : group_size;
      if constexpr (format == WeightFormat::fp32) {
        auto* const to = reinterpret_cast<float*>(out);
        turn<Bytes>(from, stride, whole ? to : block);
        if (!whole) std::copy_n(block, columns * panel_rows, to);
      } else {
        auto* const to = reinterpret_cast<uint32_t*>(out);
        turn<Bytes>(from, stride, block);
        if constexpr (format == WeightFormat::bf16)
          bf16<Bytes>(block, columns, to);
        else
          group<Bytes>(block, to, finite);
      }
    }
  }
};

}  // namespace

bool pack_rows(WeightFormat format, const float* w, int64_t N, int64_t K, int64_t row_begin, int64_t row_end,
               std::byte* out) {
  if (row_begin % panel_rows || (row_end % panel_rows && row_end != N) || row_begin < 0 || row_end > N)
    throw std::invalid_argument("rows [" + std::to_string(row_begin) + ", " + std::to_string(row_end) + ") of " +
                                std::to_string(N) + " are not whole panels of " + std::to_string(panel_rows));
  bool finite = true;
  for (int64_t first = row_begin; first < row_end; first += panel_rows) {
    const float* const from = w + first * K;
    const int64_t rows = std::min(panel_rows, N - first);
    std::byte* const panel = out + first / panel_rows * panel_bytes(format, K);
    switch (format) {
      case WeightFormat::fp32:
        simd::call<PackPanel<WeightFormat::fp32>>(from, rows, K, panel, &finite);
        break;
      case WeightFormat::bf16:
        simd::call<PackPanel<WeightFormat::bf16>>(from, rows, K, panel, &finite);
        break;
      case WeightFormat::int8:
        simd::call<PackPanel<WeightFormat::int8>>(from, rows, K, panel, &finite);
        break;
      case WeightFormat::int4:
        simd::call<PackPanel<WeightFormat::int4>>(from, rows, K, panel, &finite);
        break;
    }
  }
  return finite;
}

}  // namespace minigpt::decoder
