#include "input.h"

#include "../common/lanes.h"
#include "matmul.h"

namespace minigpt::decoder {
namespace {

struct InputRow {
  WeightFormat format;
  const float* x;
  int64_t K;
  std::byte* out;
};

// A row of x to bf16, or to groups of int8.
struct PrepareRow {
  template <int Bytes>
  static ALWAYS_INLINE void bf16(const InputRow& r) {
    constexpr int W = simd::lanes<float, Bytes>;
    auto* out = reinterpret_cast<bfloat16*>(r.out);
    for (int64_t k = 0; k < r.K; k += W)
      simd::store_part<Bytes>(out + k, simd::load_part<Bytes>(r.x + k, r.K - k), r.K - k);
    if (r.K % 2) out[r.K] = {0};
  }

  template <int Bytes>
  static ALWAYS_INLINE void groups(const InputRow& r) {
    using V = simd::Vector<float, Bytes>;
    using I = simd::Vector<int32_t, Bytes>;
    constexpr int W = simd::lanes<float, Bytes>, vectors = group_size / W;
    auto* q = reinterpret_cast<int8_t*>(r.out);
    auto* scales = reinterpret_cast<float*>(r.out) + input_words(r.format, r.K);
    auto* offsets = reinterpret_cast<int32_t*>(r.out) + input_offsets(r.format, r.K);
    for (int64_t g = 0; g < group_count(r.K); ++g, q += group_size) {
      V x[vectors], most{};
      for (int i = 0; i < vectors; ++i) {
        const int64_t k = g * group_size + i * W;
        x[i] = k < r.K ? simd::load_part<Bytes>(r.x + k, r.K - k) : V{};
        most = simd::max(most, x[i] < 0 ? -x[i] : x[i]);
      }
      const float scale = simd::highest(most) / 127.0f;
      const float inverse = scale < 1e-36f ? 0 : 1 / scale;
      I total{};
      for (int i = 0; i < vectors; ++i) {
        const I rounded = __builtin_convertvector((x[i] * inverse + 12582912.0f) - 12582912.0f, I);
        const auto bytes = simd::low_bytes<Bytes>(rounded);
        memcpy(q + i * W, &bytes, W);
        total += rounded;
      }
      scales[g] = scale;
      offsets[g] = -weight_offset(r.format) * simd::sum(total);
    }
  }

  template <int Bytes>
  static ALWAYS_INLINE void run(InputRow r) {
    if (in_groups(r.format)) return groups<Bytes>(r);
    if (r.format == WeightFormat::bf16) return bf16<Bytes>(r);
    memcpy(r.out, r.x, r.K * sizeof(float));
  }
};

}  // namespace

int64_t input_bytes(WeightFormat format, int64_t M, int64_t K) { return M * input_row_bytes(format, K); }

void prepare_input(WeightFormat format, const float* x, int64_t x_stride, int64_t K, int64_t row_begin, int64_t row_end,
                   std::byte* out) {
  for (int64_t m = row_begin; m < row_end; ++m)
    simd::call<PrepareRow>(InputRow{format, x + m * x_stride, K, out + m * input_row_bytes(format, K)});
}

}  // namespace minigpt::decoder
