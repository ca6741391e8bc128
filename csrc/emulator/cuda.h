// CUDA's own names, for kernels compiled by a C++ compiler: what nvcc builds in and the runtime's headers leave out.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cassert>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "emulator.h"
#include "observer.h"

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#undef __restrict__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ EMULATOR_INLINE
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__
#undef __shared__
#define __shared__ _Pragma("GCC error \"write SHARED(float[64], x) for __shared__ float x[64]: common/device.cuh\"")

#undef assert  // nvcc has it built in; a failing one ends the kernel, not the process
#define assert(condition) \
  ((condition) ? (void)0 : ::minigpt::emulator::fail("assertion failed: " #condition, {__FILE__, __LINE__}))

#define threadIdx (::minigpt::emulator::self->index)
#define blockIdx (::minigpt::emulator::self->block_index)
#define blockDim (::minigpt::emulator::block_dim)
#define gridDim (::minigpt::emulator::grid_dim)
constexpr int warpSize = 32;

// Functions that kernels call and that do the emulator's work: what they read and write themselves is not the kernel's
// doing. In the checking build they are calls, so that their return address is the place in the kernel.
#ifdef MINIGPT_EMULATOR_CHECKED
#define EMULATOR_WORK __attribute__((no_sanitize_thread, noinline))
#define EMULATOR_INLINE \
  __attribute__((always_inline)) inline  // a place in the code then tells the calls that led there
#define EMULATOR_CALLER __builtin_return_address(0)
#else
#define EMULATOR_WORK
#define EMULATOR_CALLER nullptr
#define EMULATOR_INLINE inline
#endif

namespace minigpt::emulator {

template <class T>
struct Exchange {
  T value;
  int from;
  T result;
};

// A lane that is not in the mask has no value to give: undefined on a GPU, poison here.
template <class T>
EMULATOR_WORK void exchange(void* const* frames, unsigned mask) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    auto* const mine = static_cast<Exchange<T>*>(frames[lane]);
    if (mask >> mine->from & 1)
      mine->result = static_cast<Exchange<T>*>(frames[mine->from])->value;
    else
      poison(&mine->result, sizeof(T));
  }
}

template <class T>
EMULATOR_WORK T shuffle(unsigned mask, T value, int from, const char* what, Where where) {
  Exchange<T> frame{value, from, value};
  meet_warp(mask, what, exchange<T>, &frame, false, where);
  return frame.result;
}

struct Vote {
  bool yes;
  unsigned ballot;
};

EMULATOR_WORK inline void count_votes(void* const* frames, unsigned mask) {
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) ballot |= unsigned(static_cast<Vote*>(frames[lane])->yes) << lane;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) static_cast<Vote*>(frames[lane])->ballot = ballot;
}

EMULATOR_WORK inline unsigned vote(unsigned mask, bool yes, const char* what, Where where) {
  Vote frame{yes, 0};
  meet_warp(mask, what, count_votes, &frame, false, where);
  return frame.ballot;
}

inline void only_meet(void* const*, unsigned) {}

// An atomic operation: new = f(old), returns old. Threads of the emulator are never interrupted.
template <class T, class F>
EMULATOR_WORK T atomically(T* p, const void* code, const F& f) {
  observer::accessed({p, sizeof(T), true, true, false, code});
  const T old = *p;
  *p = f(old);
  may_spin();
  return old;
}

}  // namespace minigpt::emulator

// ---- barriers, shuffles and votes ---------------------------------------------------------------------------------

inline void __syncthreads(EMULATOR_HERE) { minigpt::emulator::meet_block(0, 0, true, "__syncthreads", where); }

inline void __syncwarp(unsigned mask = ~0u, EMULATOR_HERE) {
  if (minigpt::emulator::removed(where)) return;
  char nothing;
  minigpt::emulator::meet_warp(mask, "__syncwarp", minigpt::emulator::only_meet, &nothing, true, where);
}

template <class T>
T __shfl_sync(unsigned mask, T v, int from, int width = 32, EMULATOR_HERE) {
  const int first = minigpt::emulator::self->lane & ~(width - 1);
  return minigpt::emulator::shuffle(mask, v, first + (from & (width - 1)), "__shfl_sync", where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, EMULATOR_HERE) {
  const int lane = minigpt::emulator::self->lane, from = lane ^ bits;
  return minigpt::emulator::shuffle(mask, v, from / width > lane / width ? lane : from, "__shfl_xor_sync", where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, int by, int width = 32, EMULATOR_HERE) {
  const int lane = minigpt::emulator::self->lane;
  return minigpt::emulator::shuffle(mask, v, lane % width + by < width ? lane + by : lane, "__shfl_down_sync", where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, int by, int width = 32, EMULATOR_HERE) {
  const int lane = minigpt::emulator::self->lane;
  return minigpt::emulator::shuffle(mask, v, lane % width >= by ? lane - by : lane, "__shfl_up_sync", where);
}

inline unsigned __ballot_sync(unsigned mask, int yes, EMULATOR_HERE) {
  return minigpt::emulator::vote(mask, yes, "__ballot_sync", where);
}
inline int __any_sync(unsigned mask, int yes, EMULATOR_HERE) {
  return minigpt::emulator::vote(mask, yes, "__any_sync", where) != 0;
}
inline int __all_sync(unsigned mask, int yes, EMULATOR_HERE) {
  return minigpt::emulator::vote(mask, !yes, "__all_sync", where) == 0;
}

// Memory order is strong here: a fence has nothing to do, and that one is missing is not noticed.
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- atomics ------------------------------------------------------------------------------------------------------

template <class T>
EMULATOR_WORK T atomicAdd(T* p, std::type_identity_t<T> v) {
  return minigpt::emulator::atomically(p, __builtin_return_address(0), [&](T old) { return static_cast<T>(old + v); });
}
template <class T>
EMULATOR_WORK T atomicMax(T* p, std::type_identity_t<T> v) {
  return minigpt::emulator::atomically(p, __builtin_return_address(0), [&](T old) { return old < v ? v : old; });
}
template <class T>
EMULATOR_WORK T atomicMin(T* p, std::type_identity_t<T> v) {
  return minigpt::emulator::atomically(p, __builtin_return_address(0), [&](T old) { return v < old ? v : old; });
}
template <class T>
EMULATOR_WORK T atomicExch(T* p, std::type_identity_t<T> v) {
  return minigpt::emulator::atomically(p, __builtin_return_address(0), [&](T) { return v; });
}
template <class T>
EMULATOR_WORK T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return minigpt::emulator::atomically(p, __builtin_return_address(0),
                                       [&](T old) { return old == expected ? v : old; });
}

template <class T>
EMULATOR_WORK T atomicSub(T* p, std::type_identity_t<T> v) {
  return minigpt::emulator::atomically(p, __builtin_return_address(0), [&](T old) { return static_cast<T>(old - v); });
}
template <class T>
EMULATOR_WORK T atomicAnd(T* p, std::type_identity_t<T> v) {
  return minigpt::emulator::atomically(p, __builtin_return_address(0), [&](T old) { return old & v; });
}
template <class T>
EMULATOR_WORK T atomicOr(T* p, std::type_identity_t<T> v) {
  return minigpt::emulator::atomically(p, __builtin_return_address(0), [&](T old) { return old | v; });
}
template <class T>
EMULATOR_WORK T atomicXor(T* p, std::type_identity_t<T> v) {
  return minigpt::emulator::atomically(p, __builtin_return_address(0), [&](T old) { return old ^ v; });
}

// ---- arithmetic ---------------------------------------------------------------------------------------------------

template <class T>
T max(T a, std::type_identity_t<T> b) {
  return a < b ? b : a;
}
template <class T>
T min(T a, std::type_identity_t<T> b) {
  return b < a ? b : a;
}
template <class T>
T __ldg(const T* p) {
  return *p;
}
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clzll(long long v) { return v ? __builtin_clzll(static_cast<unsigned long long>(v)) : 64; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __int_as_float(int v) { return __builtin_bit_cast(float, v); }
inline int __float_as_int(float v) { return __builtin_bit_cast(int, v); }
inline float __uint_as_float(unsigned v) { return __builtin_bit_cast(float, v); }
inline unsigned __float_as_uint(float v) { return __builtin_bit_cast(unsigned, v); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
inline void __trap(EMULATOR_HERE) { minigpt::emulator::fail("__trap()", where); }
#define __expf(x) std::exp(static_cast<float>(x))  // the C library has functions of these names
#define __logf(x) std::log(static_cast<float>(x))
