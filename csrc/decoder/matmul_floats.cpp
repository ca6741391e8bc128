// fp32 and bf16 weights: a word of K (a float, or a pair of bf16) at a time, for all rows of a panel.
#include "matmul_kernels.h"

namespace minigpt::decoder {
namespace {

template <WeightFormat format>
struct Floats {
  template <simd::Isa isa>
  static constexpr int most_rows = isa.bytes == 64 ? 12 : 4;
  static constexpr int words = 1;  // in a step

  template <simd::Isa isa, int Rows, int U>
  static ALWAYS_INLINE void columns(const Product& p, const Block& b, int64_t n) {
    using V = simd::Vector<float, isa.bytes>;
    using Words = simd::Words<isa.bytes>;
    constexpr int W = simd::lanes<float, isa.bytes>;
    const uint32_t* x[Rows];
    for (int r = 0; r < Rows; ++r) x[r] = input_row(p, b, r);
    const auto* w = reinterpret_cast<const uint32_t*>(b.panel) + b.begin * panel_rows + n;
    V sum[Rows][U];
    Sums<isa, Rows, U> sums(p, b, b.n + n, sum);
    for (int64_t k = b.begin; k < b.end; ++k, w += panel_rows) {
      if (Rows <= 8 && n == 0) prefetch<panel_rows>(w);
      Words words[U];
      for (int u = 0; u < U; ++u) words[u] = *(const Words*)(w + u * W);
      for (int r = 0; r < Rows; ++r) {
        const Words factor = Words{} + x[r][k];
        for (int u = 0; u < U; ++u) {
          if constexpr (format == WeightFormat::bf16)
            sum[r][u] = simd::dot_bf16<isa>(sum[r][u], words[u], factor);
          else
            sum[r][u] += (V)words[u] * (V)factor;
        }
      }
    }
    sums.store(p, b, b.n + n, sum);
  }

  template <simd::Isa isa, int Rows>
  static ALWAYS_INLINE void block(const Product& p, const Block& b) {
    constexpr int P = panel_rows / simd::lanes<float, isa.bytes>, U = isa.bytes == 64 || Rows > 1 ? 2 : 4;
    for (int u = 0; u < P; u += U) columns<isa, Rows, U>(p, b, u * simd::lanes<float, isa.bytes>);
  }
};

}  // namespace

void multiply_fp32(const Product& p, int64_t n_begin, int64_t n_end) {
  simd::call<Multiply<Floats<WeightFormat::fp32>>>(p, n_begin, n_end);
}

void multiply_bf16(const Product& p, int64_t n_begin, int64_t n_end) {
  simd::call_dots<Multiply<Floats<WeightFormat::bf16>>>(p, n_begin, n_end);
}

}  // namespace minigpt::decoder
