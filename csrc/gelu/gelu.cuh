// GELU forward and backward, elementwise.
//   y = x s                     dx = dy (s + x s')
//   erf:  s = Phi(x) = erfc(-x / sqrt 2) / 2 (no cancelling for negative x);   s' = phi(x) = e^(-x^2 / 2) / sqrt(2 pi)
//   tanh: s = (1 + tanh u) / 2 = 1 / (1 + e^(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3);   s' = 2 s (1 - s) u'
// x, y, dy, dx: n elements of T. A thread takes 16 bytes at a time, then those a grid further on.
#pragma once
#include <cmath>

#include "../common/vector.cuh"
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

}  // namespace minigpt
