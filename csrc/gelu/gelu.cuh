// GELU forward and backward, elementwise.
//   y = x s                     dx = dy (s + x s')
//   erf:  s = Phi(x) = erfc(-x / sqrt 2) / 2 (no cancelling for negative x);   s' = phi(x) = e^(-x^2 / 2) / sqrt(2 pi)
//   tanh: s = (1 + tanh u) / 2 = 1 / (1 + e^(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3);   s' = 2 s (1 - s) u'
// x, y, dy, dx: n elements of T. A thread takes 16 bytes at a time, then those a grid further on.
// With a bias: x, y, dy, dx: [rows, C] of T.  bias, dbias: [C] of Bias.  partial: [chunks, C] of A.
#pragma once
#include <cmath>

#include "../common/column_sums.cuh"
#include "gelu.h"

namespace minigpt {

constexpr int kGeluThreads = 256;

template <class T>
constexpr int kGeluWidth = 16 / int(sizeof(T));

template <class A>
struct Gate {
  A s, slope;  // slope: s + x s'
};

template <bool Tanh, class A>
DEVICE Gate<A> gelu_gate(A x) {
  if constexpr (Tanh) {
    // e = e^(-2|u|) never overflows, and s (1 - s) = e / (1 + e)^2 does not cancel.
    constexpr A a = A(0.79788456080286535588), b = A(0.044715);
    const A e = std::exp(-std::fabs(2 * a * x * (1 + b * x * x))), r = A(1) / (A(1) + e);
    const A s = x < 0 ? e * r : r, bell = e * r * r;
    // Where the bell has vanished x * x may be infinite, and their product is 0 all the same.
    return {s, bell == 0 ? s : s + x * bell * (2 * a) * (1 + 3 * b * x * x)};
  } else {
    const A s = A(0.5) * std::erfc(x * A(-0.70710678118654752440));
    const A bell = A(0.39894228040143267794) * std::exp(A(-0.5) * x * x);
    return {s, bell == 0 ? s : s + x * bell};
  }
}

template <class T, bool Tanh>
__global__ void __launch_bounds__(kGeluThreads) gelu_forward_kernel(const __grid_constant__ GeluForwardParams p) {
  constexpr int W = kGeluWidth<T>;
  const T* const x = static_cast<const T*>(p.x);
  T* const y = static_cast<T*>(p.y);
  const int64_t step = int64_t{gridDim.x} * kGeluThreads * W;
  for (int64_t i = (int64_t{blockIdx.x} * kGeluThreads + threadIdx.x) * W; i < p.n; i += step) {
    auto v = load_part<W>(x + i, p.n - i);
#pragma unroll
    for (int e = 0; e < W; ++e) {
      const auto s = gelu_gate<Tanh>(v.at[e]).s;
      v.at[e] = s == 0 ? 0 : v.at[e] * s;  // 0 for x = -inf too
    }
    store_part<W>(y + i, v, p.n - i);
  }
}

template <class T, bool Tanh>
__global__ void __launch_bounds__(kGeluThreads) gelu_backward_kernel(const __grid_constant__ GeluBackwardParams p) {
  constexpr int W = kGeluWidth<T>;
  const T *const dy = static_cast<const T*>(p.dy), *const x = static_cast<const T*>(p.x);
  T* const dx = static_cast<T*>(p.dx);
  const int64_t step = int64_t{gridDim.x} * kGeluThreads * W;
  for (int64_t i = (int64_t{blockIdx.x} * kGeluThreads + threadIdx.x) * W; i < p.n; i += step) {
    auto gradient = load_part<W>(dy + i, p.n - i);
    const auto v = load_part<W>(x + i, p.n - i);
#pragma unroll
    for (int e = 0; e < W; ++e) gradient.at[e] *= gelu_gate<Tanh>(v.at[e]).slope;
    store_part<W>(dx + i, gradient, p.n - i);
  }
}

// Runs of W elements within a row, dealt out to threads as they stand in memory.
template <class T, class Bias, bool Tanh>
__global__ void __launch_bounds__(kGeluThreads)
    bias_gelu_forward_kernel(const __grid_constant__ BiasGeluForwardParams p) {
  constexpr int W = kGeluWidth<T>;
  const int64_t row_runs = (p.C + W - 1) / W, runs = p.rows * row_runs, step = int64_t{gridDim.x} * kGeluThreads;
  for (int64_t run = int64_t{blockIdx.x} * kGeluThreads + threadIdx.x; run < runs; run += step) {
    const int64_t row = run / row_runs, c = run % row_runs * W;
    auto v = load_part<W>(static_cast<const T*>(p.x) + row * p.C + c, p.C - c);
    const auto b = load_part<W>(static_cast<const Bias*>(p.bias) + c, p.C - c);
#pragma unroll
    for (int e = 0; e < W; ++e) {
      const auto z = v.at[e] + b.at[e], s = gelu_gate<Tanh>(z).s;
      v.at[e] = s == 0 ? 0 : z * s;  // 0 for -inf too
    }
    store_part<W>(static_cast<T*>(p.y) + row * p.C + c, v, p.C - c);
  }
}

// A block takes one chunk of rows and 32 columns: their dx, and their share of dbias. Without rows it writes the zeros that
// the last stage adds.
template <class T, class Bias, bool Tanh>
__global__ void __launch_bounds__(kRowThreads)
    bias_gelu_backward_kernel(const __grid_constant__ BiasGeluBackwardParams p) {
  using A = accumulate_t<T>;
  const int64_t tiles = column_tiles(p.C);
  const int64_t chunk = blockIdx.x / tiles, c = blockIdx.x % tiles * kColumns + threadIdx.x % kColumns;
  const int64_t each = (p.rows + p.chunks - 1) / p.chunks;
  const int64_t begin = chunk * each, end = begin + each < p.rows ? begin + each : p.rows;
  A dbias = 0;
  if (c < p.C) {
    const T *const dy = static_cast<const T*>(p.dy) + c, *const x = static_cast<const T*>(p.x) + c;
    T* const dx = static_cast<T*>(p.dx) + c;
    const A b = static_cast<A>(static_cast<const Bias*>(p.bias)[c]);
    for (int64_t row = begin + threadIdx.x / kColumns; row < end; row += kColumnRows) {
      const A d = static_cast<A>(dy[row * p.C]) * gelu_gate<Tanh>(static_cast<A>(x[row * p.C]) + b).slope;
      dx[row * p.C] = static_cast<T>(d);
      dbias += d;
    }
  }
  dbias = column_sum(dbias);
  if (threadIdx.x < kColumns && c < p.C) static_cast<A*>(p.partial)[chunk * p.C + c] = dbias;
}

// A block adds the chunks of 32 columns.
template <class A, class Bias>
__global__ void __launch_bounds__(kRowThreads)
    bias_gelu_backward_finish_kernel(const __grid_constant__ BiasGeluBackwardParams p) {
  add_chunks(static_cast<const A*>(p.partial), p.chunks, p.C, blockIdx.x, static_cast<Bias*>(p.dbias));
}

}  // namespace minigpt
