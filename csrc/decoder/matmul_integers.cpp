// int8 and int4 weights: a group of 32 columns at a time. Its products are summed exactly in int32, beginning with what
// takes the weights' offset out, and join the float sum by the product of both scales.
#include "matmul_kernels.h"

namespace minigpt::decoder {
namespace {

template <WeightFormat format>
struct Integers {
  template <simd::Isa isa>
  static constexpr int most_rows = isa.bytes == 64 ? 8 : 2;
  static constexpr int words = group_size / 4;  // in a step, for a row of the input
  static constexpr bool four = format == WeightFormat::int4;
  static constexpr int group_words = panel_rows / 2 + panel_rows * words / (four ? 2 : 1);  // of the weights

  template <simd::Isa isa, int Rows, int U>
  static ALWAYS_INLINE void columns(const Product& p, const Block& b, int u0) {
    using V = simd::Vector<float, isa.bytes>;
    using I = simd::Vector<int32_t, isa.bytes>;
    using Words = simd::Words<isa.bytes>;
    constexpr int Set = Rows < 4 ? Rows : 4;  // rows whose integer sums are kept at once
    constexpr int W = simd::lanes<float, isa.bytes>;
    const uint32_t* x[Rows];
    for (int r = 0; r < Rows; ++r) x[r] = input_row(p, b, r);
    const auto* w = reinterpret_cast<const uint32_t*>(b.panel) + b.begin * group_words;
    V sum[Rows][U];
    Sums<isa, Rows, U> sums(p, b, b.n + u0 * W, sum);
    for (int64_t g = b.begin; g < b.end; ++g, w += group_words) {
      const uint32_t* q = w + panel_rows / 2 + u0 * W;
      if (Rows <= 8 && u0 == 0) prefetch<group_words>(w);
      V scale[U];
      for (int u = 0; u < U; ++u) scale[u] = scales<isa>(w, u0 + u);
      for (int first = 0; first < Rows; first += Set) {
        I exact[Set][U];
        for (int r = 0; r < Set; ++r)
          for (int u = 0; u < U; ++u) exact[r][u] = (I)(Words{} + x[first + r][p.offsets + g]);
        if constexpr (four && simd::has_short_dots<isa>) {  // 16 products of at most 15 * 127 fit 16 bits
          simd::Vector<int16_t, isa.bytes> shorts[Set][U] = {};
          each_product<isa, Set, U>(q, x + first, g,
                                    [&](int r, int u, Words w, Words factor) __attribute__((always_inline)) {
                                      shorts[r][u] = simd::short_dot_u8s8<isa>(shorts[r][u], w, factor);
                                    });
          for (int r = 0; r < Set; ++r)
            for (int u = 0; u < U; ++u) exact[r][u] += simd::sum_of_shorts<isa.bytes>(shorts[r][u]);
        } else {
          each_product<isa, Set, U>(q, x + first, g,
                                    [&](int r, int u, Words w, Words factor) __attribute__((always_inline)) {
                                      exact[r][u] = simd::dot_u8s8<isa>(exact[r][u], w, factor);
                                    });
        }
        for (int r = 0; r < Set; ++r) {
          float own;
          memcpy(&own, x[first + r] + p.scales + g, sizeof own);
          for (int u = 0; u < U; ++u) sum[first + r][u] += __builtin_convertvector(exact[r][u], V) * (scale[u] * own);
        }
      }
    }
    sums.store(p, b, b.n + u0 * W, sum);
  }

  // add(r, u, w, x) for every four weights of U vectors at q, and the four of each row's input that they meet.
  template <simd::Isa isa, int Set, int U, class Add>
  static ALWAYS_INLINE void each_product(const uint32_t* q, const uint32_t* const* x, int64_t g, const Add& add) {
    using Words = simd::Words<isa.bytes>;
    for (int i = 0; i < (four ? words / 2 : words); ++i)
      for (int u = 0; u < U; ++u) {
        const Words packed = *(const Words*)(q + i * panel_rows + u * simd::lanes<float, isa.bytes>);
        const Words low = four ? packed & 0x0f0f0f0f : packed, high = (packed >> 4) & 0x0f0f0f0f;
        for (int r = 0; r < Set; ++r) {
          const uint32_t* row = x[r] + g * words + i;
          add(r, u, low, Words{} + row[0]);
          if (four) add(r, u, high, Words{} + row[words / 2]);
        }
      }
  }

  // Vector u of a panel's: each of the 16 words at w holds two scales.
  template <simd::Isa isa>
  static ALWAYS_INLINE simd::Vector<float, isa.bytes> scales(const uint32_t* w, int u) {
    using Words = simd::Words<isa.bytes>;
    constexpr int W = simd::lanes<float, isa.bytes>, half = panel_rows / 2 / W;
    const Words pairs = *(const Words*)(w + u % half * W);
    return (simd::Vector<float, isa.bytes>)(u < half ? pairs << 16 : pairs & 0xffff0000u);
  }

  template <simd::Isa isa, int Rows>
  static ALWAYS_INLINE void block(const Product& p, const Block& b) {
    constexpr int P = panel_rows / simd::lanes<float, isa.bytes>, U = isa.bytes == 64 || Rows > 1 ? 2 : 4;
    for (int u = 0; u < P; u += U) columns<isa, Rows, U>(p, b, u);
  }
};

}  // namespace

void multiply_int8(const Product& p, int64_t n_begin, int64_t n_end) {
  simd::call_dots<Multiply<Integers<WeightFormat::int8>>>(p, n_begin, n_end);
}

void multiply_int4(const Product& p, int64_t n_begin, int64_t n_end) {
  simd::call_dots<Multiply<Integers<WeightFormat::int4>>>(p, n_begin, n_end);
}

}  // namespace minigpt::decoder
