// The loops around a kernel. A kernel multiplies some rows of x by a panel of weights, for a part of K:
//
//   struct Kernel {
//     template <simd::Isa isa> static constexpr int most_rows;
//     template <simd::Isa isa, int Rows> static ALWAYS_INLINE void block(const Product& p, const Block& b);
//   };
#pragma once
#include <algorithm>

#include "../common/dots.h"
#include "input.h"

namespace minigpt::decoder {

struct Product {
  const std::byte *weights, *input;
  int64_t panel_bytes, input_row_bytes;
  int64_t scales, offsets;  // where these begin in a row of the input, in words
  float* y;
  int64_t y_stride;
  const float* bias;
  int64_t M, N, steps;  // steps of K in all: of words, or of groups
};

struct Block {
  const std::byte* panel;
  int64_t n, m;        // first row of W and of x; rows behind the last of x repeat it
  int64_t begin, end;  // of the steps
};

// Sums of `rows` rows of x and `columns` rows of W, from column n of y on: what earlier blocks of K left there, or zeros.
void load_sums(const Product& p, const Block& b, int64_t n, int rows, int columns, float* sums);

// Back to y; with the bias after the last block of K.
void store_sums(const Product& p, const Block& b, int64_t n, int rows, int columns, const float* sums);

// The sums of Rows x U vectors, on their way between y and registers.
template <simd::Isa isa, int Rows, int U>
struct Sums {
  using V = simd::Vector<float, isa.bytes>;
  static constexpr int columns = U * simd::lanes<float, isa.bytes>;
  alignas(64) float values[Rows][columns];

  ALWAYS_INLINE Sums(const Product& p, const Block& b, int64_t n, V (&sum)[Rows][U]) {
    load_sums(p, b, n, Rows, columns, values[0]);
    memcpy(sum, values, sizeof values);
  }
  ALWAYS_INLINE void store(const Product& p, const Block& b, int64_t n, const V (&sum)[Rows][U]) {
    memcpy(values, sum, sizeof values);
    store_sums(p, b, n, Rows, columns, values[0]);
  }
};

inline int64_t row_of(const Product& p, const Block& b, int r) { return std::min(b.m + r, p.M - 1); }

inline const uint32_t* input_row(const Product& p, const Block& b, int r) {
  return reinterpret_cast<const uint32_t*>(p.input + row_of(p, b, r) * p.input_row_bytes);
}

// Asks for the weights 4 KiB ahead. Beside the arithmetic of several rows the CPU's own prefetching falls behind; with
// this, 4 rows of fp32 or bf16 rise from 77 to 92% of read bandwidth, 1 row of int4 from 82 to 90%, and 8 rows of int8 or
// int4 take 4.5 and 2.6 ms a GPT-2 instead of 13.7 and 6.8.
template <int Words>
ALWAYS_INLINE void prefetch(const uint32_t* w) {
  for (int i = 0; i < Words; i += 16) __builtin_prefetch(w + 1024 + i);
}

// Blocks of K and of rows that stay in the second cache while the panels go by: about 100 KiB of a panel, which is read
// again for each few rows, and some 700 KiB of x.
constexpr int64_t rows_at_once = 240, words_at_once = 768;

template <class Kernel>
struct Multiply {
  template <simd::Isa isa>
  static ALWAYS_INLINE void rows(const Product& p, Block b, int64_t end) {
    constexpr int most = Kernel::template most_rows<isa>;
    while (b.m < end) {
      const int64_t left = end - b.m;
      if constexpr (most >= 12)
        if (left > 8) {
          Kernel::template block<isa, 12>(p, b);
          b.m += 12;
          continue;
        }
      if constexpr (most >= 8)
        if (left > 4) {
          Kernel::template block<isa, 8>(p, b);
          b.m += 8;
          continue;
        }
      if constexpr (most >= 4)
        if (left > 2) {
          Kernel::template block<isa, 4>(p, b);
          b.m += 4;
          continue;
        }
      if (left > 1)
        Kernel::template block<isa, 2>(p, b);
      else
        Kernel::template block<isa, 1>(p, b);
      b.m += 2;
    }
  }

  template <simd::Isa isa>
  static ALWAYS_INLINE void run(Product p, int64_t n_begin, int64_t n_end) {
    const int64_t step = p.M <= 12 ? p.steps : words_at_once / Kernel::words;
    for (int64_t m = 0; m < p.M; m += rows_at_once)
      for (int64_t k = 0; k < p.steps; k += step)
        for (int64_t n = n_begin; n < n_end; n += panel_rows) {
          const Block block{p.weights + n / panel_rows * p.panel_bytes, n, m, k, std::min(k + step, p.steps)};
          rows<isa>(p, block, std::min(m + rows_at_once, p.M));
        }
  }

  template <int Bytes>  // for kernels without dot products
  static ALWAYS_INLINE void run(Product p, int64_t n_begin, int64_t n_end) {
    run<simd::Isa{Bytes, false, false}>(p, n_begin, n_end);
  }
};

}  // namespace minigpt::decoder
