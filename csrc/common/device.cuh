// What a CUDA kernel uses besides plain CUDA C++: launches, shared memory, wide accesses. No other file may hold <<<>>>
// or __shared__. Under nvcc the bodies are here; compiled by a C++ compiler, for the emulator, in emulator/device.h.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

#include "cuda_stream.h"
#include "dtype.h"

#define DEVICE __device__ __forceinline__

#ifdef MINIGPT_CUDA_EMULATOR
#include "../emulator/device.h"
#else
// Shared memory of a block: SHARED(float[32], sums) of a size known to the compiler, DYNAMIC_SHARED(bytes) as launched.
#define SHARED(T, name) __shared__::minigpt::same_type<T> name
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace minigpt {

// The type a kernel computes with, for the one that names a dtype on the host.
template <class T>
struct DeviceType {
  using type = T;
};
template <>
struct DeviceType<bfloat16> {
  using type = __nv_bfloat16;
};
template <>
struct DeviceType<float16> {
  using type = __half;
};
template <class T>
using device_t = typename DeviceType<T>::type;

// A grid of `blocks` blocks. Everything is folded into x: y and z end at 65535.
inline dim3 grid_of(int64_t blocks) {
  if (blocks > 0x7fffffff) throw std::runtime_error("a grid of " + std::to_string(blocks) + " blocks is too large");
  return dim3(static_cast<unsigned>(blocks));
}

#ifndef MINIGPT_CUDA_EMULATOR
template <class T>
using same_type = T;  // lets SHARED take an array type

// Loads and stores of a whole vector; p is aligned to the size of V.
template <class V>
DEVICE V load_vec(const V* p) {
  return *p;
}
template <class V>
DEVICE void store_vec(V* p, const V& v) {
  *p = v;
}

// 2^x as the hardware approximates it, within 2 units in the last place; results below 2^-126 are 0.
DEVICE float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

inline void check_cuda(cudaError_t error, const char* kernel) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
}

template <class Kernel>
void allow_shared_memory(const char* name, Kernel* kernel, size_t bytes) {
  if (bytes <= 48 * 1024) return;  // more must be asked for
  const void* function = reinterpret_cast<const void*>(kernel);
  check_cuda(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)), name);
}

// Starts a kernel with `smem` bytes of dynamic shared memory. Throws, naming the kernel, where CUDA refuses.
template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem, CudaStream stream,
            const Args&... args) {
  allow_shared_memory(name, kernel, smem);
  kernel<<<grid, block, smem, stream>>>(static_cast<Params>(args)...);
  check_cuda(cudaGetLastError(), name);
}

// The same, with all blocks on the GPU at once (CUDA refuses a grid that does not fit), so that they may wait for each
// other at a grid_barrier.
template <class... Params, class... Args>
void launch_cooperative(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem,
                        CudaStream stream, const Args&... args) {
  allow_shared_memory(name, kernel, smem);
  std::tuple<Params...> values(static_cast<Params>(args)...);
  std::apply(
      [&](auto&... value) {
        void* pointers[] = {&value...};
        const void* function = reinterpret_cast<const void*>(kernel);
        check_cuda(cudaLaunchCooperativeKernel(function, grid, block, pointers, smem, stream), name);
      },
      values);
}

// All threads of all blocks of a cooperative launch wait for each other. count: one number in global memory, 0 before the
// first launch that uses it; each barrier adds the number of blocks to it. What was written before is seen behind it.
DEVICE void grid_barrier(unsigned* count) {
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
    __threadfence();
    const unsigned blocks = gridDim.x * gridDim.y * gridDim.z, arrived = atomicAdd(count, 1u);
    const unsigned goal = (arrived / blocks + 1) * blocks;
    while (static_cast<int>(atomicAdd(count, 0u) - goal) < 0) {
    }
    __threadfence();
  }
  __syncthreads();
}
#endif

}  // namespace minigpt
