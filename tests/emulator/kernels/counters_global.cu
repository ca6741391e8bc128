// Kernels of a few lines whose requests to global memory can be counted by hand: see test_counters_global.py.
#include "common/hopper.cuh"
#include "common/tensor_core.cuh"
#include "common/vector.cuh"

using namespace minigpt;

namespace {

struct alignas(128) TmaBox {
  float values[8][32];
  uint64_t landed;
};

// Lane i loads element `stride` i + `offset` and stores element i; lanes from `active` on do nothing.
template <class T>
__global__ void strided_kernel(const T* in, T* out, int64_t stride, int64_t offset, int64_t active) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= active) return;
  const T value = in[i * stride + offset];
  out[i] = value;
}

template <int W>
__global__ void vectors_kernel(const float* in, float* out) {
  using V = Vec<float, W>;
  const V value = load_vec(reinterpret_cast<const V*>(in) + threadIdx.x);
  store_vec(reinterpret_cast<V*>(out) + threadIdx.x, value);
}

// Lane i adds up the first i + 1 elements.
__global__ void triangle_kernel(const float* in, float* out) {
  float sum = 0;
  for (unsigned i = 0; i <= threadIdx.x; ++i) sum += in[i];
  out[threadIdx.x] = sum;
}

// The conversion of a 16-bit type is a function of CUDA's own header, which reads it.
__global__ void widening_kernel(const __nv_bfloat16* in, float* out) {
  out[threadIdx.x] = static_cast<float>(in[threadIdx.x]);
}

// Even lanes load in the first round, odd ones in the second; they meet in between.
__global__ void in_turns_kernel(const float* in, float* out, int64_t whole_block) {
  float value = 0;
  for (unsigned round = 0; round < 2; ++round) {
    if (threadIdx.x % 2 == round) value = in[threadIdx.x];
    if (whole_block)
      __syncthreads();
    else
      __syncwarp();
  }
  out[threadIdx.x] = value;
}

__global__ void atomic_kernel(int* sums, int64_t addresses) { atomicAdd(sums + threadIdx.x % addresses, 1); }

__global__ void cp_async_kernel(const float* in, float* out, int64_t rows) {
  SHARED(float[128], tile);
  cp_async_16(tile + 4 * threadIdx.x, in + 4 * threadIdx.x, threadIdx.x < rows);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

// A box of 8 rows of 32 floats.
__global__ void tma_kernel(const __grid_constant__ TensorMap map, float* out) {
  SHARED(TmaBox, box);
  if (threadIdx.x == 0) {
    mbarrier_init(&box.landed, 1);
    fence_barrier_init();
    mbarrier_arrive_expect_tx(&box.landed, sizeof box.values);
    tma_load_2d(box.values, &map, &box.landed, 0, 0);
  }
  __syncthreads();
  mbarrier_wait(&box.landed, 0);
  out[threadIdx.x] = box.values[7][threadIdx.x];
}

}  // namespace

#define LAUNCHER(name, ...) extern "C" __attribute__((visibility("default"))) void name(__VA_ARGS__)

LAUNCHER(strided_float, const float* in, float* out, int64_t stride, int64_t offset, int64_t active, int64_t blocks) {
  launch("strided_kernel", strided_kernel<float>, dim3(unsigned(blocks)), dim3(64), 0, {}, in, out, stride, offset,
         active);
}
LAUNCHER(strided_half, const __half* in, __half* out, int64_t stride, int64_t offset, int64_t active, int64_t blocks) {
  launch("strided_kernel", strided_kernel<__half>, dim3(unsigned(blocks)), dim3(64), 0, {}, in, out, stride, offset,
         active);
}
LAUNCHER(strided_double, const double* in, double* out, int64_t stride, int64_t offset, int64_t active,
         int64_t blocks) {
  launch("strided_kernel", strided_kernel<double>, dim3(unsigned(blocks)), dim3(64), 0, {}, in, out, stride, offset,
         active);
}
LAUNCHER(vectors_of_4, const float* in, float* out) {
  launch("vectors_kernel", vectors_kernel<4>, dim3(1), dim3(32), 0, {}, in, out);
}
LAUNCHER(vectors_of_8, const float* in, float* out) {
  launch("vectors_kernel", vectors_kernel<8>, dim3(1), dim3(32), 0, {}, in, out);
}
LAUNCHER(triangle, const float* in, float* out) {
  launch("triangle_kernel", triangle_kernel, dim3(1), dim3(32), 0, {}, in, out);
}
LAUNCHER(widening, const __nv_bfloat16* in, float* out) {
  launch("widening_kernel", widening_kernel, dim3(1), dim3(32), 0, {}, in, out);
}
LAUNCHER(in_turns, const float* in, float* out, int64_t whole_block) {
  launch("in_turns_kernel", in_turns_kernel, dim3(1), dim3(32), 0, {}, in, out, whole_block);
}
LAUNCHER(atomic, int* sums, int64_t addresses, int64_t threads) {
  launch("atomic_kernel", atomic_kernel, dim3(1), dim3(unsigned(threads)), 0, {}, sums, addresses);
}
LAUNCHER(asynchronous, const float* in, float* out, int64_t rows) {
  launch("cp_async_kernel", cp_async_kernel, dim3(1), dim3(32), 0, {}, in, out, rows);
}
LAUNCHER(tma, const float* in, float* out, int64_t stride) {
  const TensorMap map = make_tensor_map_2d(in, 8, 32, stride, 8, 32, Swizzle::none);
  launch("tma_kernel", tma_kernel, dim3(1), dim3(32), 0, {}, map, out);
}
