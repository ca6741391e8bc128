// Dropout, elementwise: out = (residual +) x * scale where the word of element i is not below the threshold.
// x: n elements of T.  residual, out: n of Out. A thread takes the four elements of one Philox call, then those a grid
// further on.
#pragma once
#include "../common/philox.h"
#include "../common/vector.cuh"
#include "dropout.h"

namespace minigpt {

constexpr int kDropoutThreads = 256, kDropoutWidth = 4;

template <class T, class Out>
__global__ void __launch_bounds__(kDropoutThreads) dropout_kernel(const __grid_constant__ DropoutParams p) {
  constexpr int W = sizeof(T) == 8 ? 2 : kDropoutWidth;  // no access wider than 16 bytes
  const uint64_t seed = static_cast<uint64_t>(*p.seed);
  const accumulate_t<T> scale = static_cast<accumulate_t<T>>(p.scale);
  const T* const x = static_cast<const T*>(p.x);
  const Out* const residual = static_cast<const Out*>(p.residual);
  Out* const out = static_cast<Out*>(p.out);
  const int64_t step = int64_t{gridDim.x} * kDropoutThreads * kDropoutWidth;
  for (int64_t at = (int64_t{blockIdx.x} * kDropoutThreads + threadIdx.x) * kDropoutWidth; at < p.n; at += step) {
    const PhiloxWords words = dropout_words(seed, at);
#pragma unroll
    for (int part = 0; part < kDropoutWidth; part += W) {
      const int64_t i = at + part;
      auto v = load_part<W>(x + i, p.n - i);
#pragma unroll
      for (int e = 0; e < W; ++e) v.at[e] = words.word[part + e] >= p.threshold ? v.at[e] * scale : 0;
      if (residual) {
        const auto r = load_part<W>(residual + i, p.n - i);
#pragma unroll
        for (int e = 0; e < W; ++e) v.at[e] += r.at[e];
      }
      store_part<W>(out + i, v, p.n - i);
    }
  }
}

}  // namespace minigpt
