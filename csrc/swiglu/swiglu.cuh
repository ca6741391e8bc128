// SwiGLU forward and backward. x: (rows, 2 F) of T, gate and up side by side.  y, dy: (rows, F).  dx: (rows, 2 F).
//   s = 1 / (1 + e^(-gate))     y = gate s up     dgate = dy up (s + gate s (1 - s))     dup = dy gate s
// A thread takes W neighbouring values of gate and the W of up that go with them; a block has blockDim.y rows of
// blockDim.x such threads, and the grid is as many tiles beside each other as a row needs, times the rows.
#pragma once
#include <cmath>

#include "../common/vector.cuh"
#include "swiglu.h"

namespace minigpt {

constexpr int kSwigluThreads = 256;

template <class T>
constexpr int kSwigluWidth = 16 / int(sizeof(T));

template <class A>
struct Silu {
  A value, slope;  // gate s, and s + gate s (1 - s)
};

// For a gate of -infinity both are 0.
template <class A>
DEVICE Silu<A> silu(A gate) {
  // e = e^(-|gate|) never overflows, and s (1 - s) = e / (1 + e)^2 does not cancel.
  const A e = std::exp(-std::fabs(gate)), r = A(1) / (A(1) + e);
  const A s = gate < 0 ? e * r : r, bell = e * r * r;
  return {s == 0 ? 0 : gate * s, bell == 0 ? s : s + gate * bell};
}

// Where a thread works: `left` is the number of values from its first one to the end of the row, below 1 if it has none.
struct SwigluPlace {
  int64_t row, column, left;
};

template <int W>
DEVICE SwigluPlace swiglu_place(int64_t rows, int64_t F) {
  const unsigned width = blockDim.x * W, tiles = unsigned((F + width - 1) / width);
  const int64_t row = int64_t{blockIdx.x / tiles} * blockDim.y + threadIdx.y;
  const int64_t column = int64_t{blockIdx.x % tiles} * width + threadIdx.x * W;
  return {row, column, row < rows ? F - column : 0};
}

template <class T>
__global__ void __launch_bounds__(kSwigluThreads) swiglu_forward_kernel(const __grid_constant__ SwigluForwardParams p) {
  constexpr int W = kSwigluWidth<T>;
  const SwigluPlace at = swiglu_place<W>(p.rows, p.F);
  if (at.left < 1) return;
  const T* const gate = static_cast<const T*>(p.x) + at.row * 2 * p.F + at.column;
  auto g = load_part<W>(gate, at.left);
  const auto u = load_part<W>(gate + p.F, at.left);
#pragma unroll
  for (int e = 0; e < W; ++e) g.at[e] = silu(g.at[e]).value * u.at[e];
  store_part<W>(static_cast<T*>(p.y) + at.row * p.F + at.column, g, at.left);
}

template <class T>
__global__ void __launch_bounds__(kSwigluThreads)
    swiglu_backward_kernel(const __grid_constant__ SwigluBackwardParams p) {
  constexpr int W = kSwigluWidth<T>;
  const SwigluPlace at = swiglu_place<W>(p.rows, p.F);
  if (at.left < 1) return;
  const T* const gate = static_cast<const T*>(p.x) + at.row * 2 * p.F + at.column;
  T* const dgate = static_cast<T*>(p.dx) + at.row * 2 * p.F + at.column;
  auto g = load_part<W>(gate, at.left), u = load_part<W>(gate + p.F, at.left);
  const auto d = load_part<W>(static_cast<const T*>(p.dy) + at.row * p.F + at.column, at.left);
#pragma unroll
  for (int e = 0; e < W; ++e) {
    const auto of_gate = silu(g.at[e]);
    g.at[e] = d.at[e] * u.at[e] * of_gate.slope;
    u.at[e] = d.at[e] * of_gate.value;
  }
  store_part<W>(dgate, g, at.left);
  store_part<W>(dgate + p.F, u, at.left);
}

}  // namespace minigpt
