// Squared ReLU forward and backward, elementwise.
//   y = max(x, 0)^2     dx = 2 max(x, 0) dy
// x, y, dy, dx: n elements of T. A thread takes 16 bytes at a time, then those a grid further on.
#pragma once
#include "../common/vector.cuh"
#include "relu_squared.h"

namespace minigpt {

constexpr int kReluSquaredThreads = 256;

template <class T>
constexpr int kReluSquaredWidth = 16 / int(sizeof(T));

template <class T>
__global__ void __launch_bounds__(kReluSquaredThreads)
    relu_squared_forward_kernel(const __grid_constant__ ReluSquaredForwardParams p) {
  constexpr int W = kReluSquaredWidth<T>;
  const T* const x = static_cast<const T*>(p.x);
  T* const y = static_cast<T*>(p.y);
  const int64_t step = int64_t{gridDim.x} * kReluSquaredThreads * W;
  for (int64_t i = (int64_t{blockIdx.x} * kReluSquaredThreads + threadIdx.x) * W; i < p.n; i += step) {
    auto v = load_part<W>(x + i, p.n - i);
#pragma unroll
    for (int e = 0; e < W; ++e) v.at[e] = v.at[e] <= 0 ? 0 : v.at[e] * v.at[e];  // NaN stays NaN
    store_part<W>(y + i, v, p.n - i);
  }
}

template <class T>
__global__ void __launch_bounds__(kReluSquaredThreads)
    relu_squared_backward_kernel(const __grid_constant__ ReluSquaredBackwardParams p) {
  constexpr int W = kReluSquaredWidth<T>;
  const T *const dy = static_cast<const T*>(p.dy), *const x = static_cast<const T*>(p.x);
  T* const dx = static_cast<T*>(p.dx);
  const int64_t step = int64_t{gridDim.x} * kReluSquaredThreads * W;
  for (int64_t i = (int64_t{blockIdx.x} * kReluSquaredThreads + threadIdx.x) * W; i < p.n; i += step) {
    auto gradient = load_part<W>(dy + i, p.n - i);
    const auto v = load_part<W>(x + i, p.n - i);
#pragma unroll
    for (int e = 0; e < W; ++e) gradient.at[e] = v.at[e] <= 0 ? 0 : 2 * (v.at[e] * gradient.at[e]);
    store_part<W>(dx + i, gradient, p.n - i);
  }
}

}  // namespace minigpt
