// Kernels of a few lines whose wavefronts of shared memory can be counted by hand: see test_counters_shared.py.
#include "common/tensor_core.cuh"
#include "common/vector.cuh"

using namespace minigpt;

namespace {

constexpr int kBytes = 8192;

// Fills the dynamic shared memory with zeros, a word a lane at a time.
DEVICE unsigned char* zeros() {
  DYNAMIC_SHARED(memory);
  for (int i = threadIdx.x; i < kBytes / 4; i += 32) reinterpret_cast<int*>(memory)[i] = 0;
  __syncthreads();
  return memory;
}

// Lane i loads V number i in memory where one begins every `pitch` bytes, from `offset` on, and stores it
// there again unless all of them share one place.
template <class V>
__global__ void pitched_kernel(V* out, int64_t pitch, int64_t offset, int64_t active) {
  unsigned char* const at = zeros() + threadIdx.x * pitch + offset;
  if (int64_t{threadIdx.x} >= active) return;
  const V value = load_vec(reinterpret_cast<const V*>(at));
  out[threadIdx.x] = value;
  __syncwarp(active < 32 ? (1u << active) - 1 : ~0u);
  if (pitch > 0) store_vec(reinterpret_cast<V*>(at), value);
}

// A column of a 32 x 32 tile, whose column c lies in row r at c ^ r.
__global__ void swizzled_kernel(float* out, int64_t column) {
  const float* const tile = reinterpret_cast<const float*>(zeros());
  out[threadIdx.x] = tile[threadIdx.x * 32 + (column ^ threadIdx.x)];
}

__global__ void ldmatrix_x4_kernel(float* out, int64_t pitch) {
  uint32_t r[4];
  unsigned char* const rows = zeros();
  ldmatrix_x4(r, rows + threadIdx.x * pitch);
  out[threadIdx.x] = float(r[0] + r[1] + r[2] + r[3]);
}

__global__ void ldmatrix_x2_kernel(float* out, int64_t pitch) {
  uint32_t r[2];
  unsigned char* const rows = zeros();
  ldmatrix_x2(r, rows + threadIdx.x % 16 * pitch);
  out[threadIdx.x] = float(r[0] + r[1]);
}

__global__ void shared_atomic_kernel(int* out, int64_t addresses) {
  int* const sums = reinterpret_cast<int*>(zeros());
  atomicAdd(sums + threadIdx.x % addresses, 1);
  __syncthreads();
  out[threadIdx.x] = sums[threadIdx.x];
}

__global__ void mma_kernel(float* out) {
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  mma_m16n8k16<__half>(d, a, b);
  mma_m16n8k8_tf32(d, a, b);
  out[threadIdx.x] = d[0];
}

}  // namespace

#define LAUNCHER(name, ...) extern "C" __attribute__((visibility("default"))) void name(__VA_ARGS__)

#define PITCHED(bytes, Type)                                                                                   \
  LAUNCHER(pitched_##bytes, Type* out, int64_t pitch, int64_t offset, int64_t active) {                        \
    launch("pitched_kernel", pitched_kernel<Type>, dim3(1), dim3(32), kBytes, {}, out, pitch, offset, active); \
  }
using Four = Vec<float, 4>;
PITCHED(2, __half)
PITCHED(4, float)
PITCHED(8, double)
PITCHED(16, Four)

LAUNCHER(swizzled, float* out, int64_t column) {
  launch("swizzled_kernel", swizzled_kernel, dim3(1), dim3(32), kBytes, {}, out, column);
}
LAUNCHER(ldmatrix_4, float* out, int64_t pitch) {
  launch("ldmatrix_x4_kernel", ldmatrix_x4_kernel, dim3(1), dim3(32), kBytes, {}, out, pitch);
}
LAUNCHER(ldmatrix_2, float* out, int64_t pitch) {
  launch("ldmatrix_x2_kernel", ldmatrix_x2_kernel, dim3(1), dim3(32), kBytes, {}, out, pitch);
}
LAUNCHER(shared_atomic, int* out, int64_t addresses) {
  launch("shared_atomic_kernel", shared_atomic_kernel, dim3(1), dim3(32), kBytes, {}, out, addresses);
}
LAUNCHER(multiply, float* out) { launch("mma_kernel", mma_kernel, dim3(1), dim3(32), 0, {}, out); }
