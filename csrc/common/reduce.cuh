// Sums and maxima over threads. The order of additions is fixed: equal inputs give equal bits.
#pragma once
#include <cmath>

#include "device.cuh"

namespace minigpt {

// Softmax takes its exponentials to base 2, which the hardware has: e^x = 2^(x log2 e).
constexpr double kLog2e = 1.4426950408889634074, kLn2 = 0.69314718055994530942;

constexpr unsigned kAllLanes = 0xffffffffu;

// Over each run of `Lanes` (a power of 2) neighbouring lanes; all of them receive the result. `present`: the lanes of the
// warp that are here.
template <int Lanes, class A>
DEVICE A lanes_sum(A v, unsigned present = kAllLanes) {
#pragma unroll
  for (int offset = Lanes / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(present, v, offset);
  return v;
}

template <int Lanes, class A>
DEVICE A lanes_max(A v) {
#pragma unroll
  for (int offset = Lanes / 2; offset > 0; offset /= 2) v = std::fmax(v, __shfl_xor_sync(kAllLanes, v, offset));
  return v;
}

// Over a team: half a warp, one warp, or the whole block of `Threads` threads.
template <int Threads, class A>
DEVICE A team_sum(A v) {
  static_assert(Threads == 16 || (Threads % 32 == 0 && Threads <= 1024));
  if constexpr (Threads == 16) return lanes_sum<16>(v, threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u);
  v = lanes_sum<32>(v);
  if constexpr (Threads > 32) {
    SHARED(A[Threads / 32], warp_sums);
    __syncthreads();  // a sum before this one may still be being read
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
#pragma unroll
    for (int warp = 0; warp < Threads / 32; ++warp) v += warp_sums[warp];
  }
  return v;
}

// Likewise. NaN is passed over.
template <int Threads, class A>
DEVICE A team_max(A v) {
  static_assert(Threads % 32 == 0 && Threads <= 1024);
  v = lanes_max<32>(v);
  if constexpr (Threads > 32) {
    SHARED(A[Threads / 32], warp_maxima);
    // A maximum before this one may still be being read.
    // equivalent without: no kernel takes two so far
    __syncthreads();
    if (threadIdx.x % 32 == 0) warp_maxima[threadIdx.x / 32] = v;
    __syncthreads();
    for (int warp = 0; warp < Threads / 32; ++warp) v = std::fmax(v, warp_maxima[warp]);
  }
  return v;
}

}  // namespace minigpt
