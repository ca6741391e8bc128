// What the race checker must see with two accesses kept a byte, and what it must let pass.
#include "common/device.cuh"

using namespace minigpt;

// Every thread reads x[31] before thread 31 changes it, with no barrier between.
__global__ void subtract_last_kernel(float* x) {
  const float last = x[31];
  x[threadIdx.x] -= last;
}
extern "C" void subtract_last(float* x) { launch("subtract_last_kernel", subtract_last_kernel, 1, 32, 0, nullptr, x); }

// The last block reads what all have added to by atomics.
__global__ void read_after_atomics_kernel(float* x, float* y) {
  atomicAdd(x, 1.0f);
  if (blockIdx.x == gridDim.x - 1) y[0] = *x;
}
extern "C" void read_after_atomics(float* x, float* y) {
  launch("read_after_atomics_kernel", read_after_atomics_kernel, 4, 1, 0, nullptr, x, y);
}

// The same within a block, in shared memory.
__global__ void read_after_shared_atomics_kernel(float* y) {
  SHARED(float[1], sum);
  if (threadIdx.x == 0) sum[0] = 0;
  __syncthreads();
  atomicAdd(&sum[0], 1.0f);
  if (threadIdx.x == 31) y[0] = sum[0];
}
extern "C" void read_after_shared_atomics(float* y) {
  launch("read_after_shared_atomics_kernel", read_after_shared_atomics_kernel, 1, 32, 0, nullptr, y);
}

// A full mask where 12 lanes have returned: the others alone meet.
__global__ void lanes_returned_kernel(float* y) {
  if (threadIdx.x >= 20) return;
  float v = threadIdx.x;
  __syncwarp();
  v += __shfl_xor_sync(~0u, v, 1);
  y[threadIdx.x] = v;
}
extern "C" void lanes_returned(float* y) {
  launch("lanes_returned_kernel", lanes_returned_kernel, 1, 32, 0, nullptr, y);
}

// A thread that waits in a loop for what the others count.
__global__ void wait_for_others_kernel(int* count) {
  if (threadIdx.x > 0) {
    atomicAdd(count, 1);
  } else {
    while (atomicAdd(count, 0) < 31) {
    }
  }
}
extern "C" void wait_for_others(int* count) {
  launch("wait_for_others_kernel", wait_for_others_kernel, 1, 32, 0, nullptr, count);
}

// Each block says how many came before it.
__global__ void ticket_kernel(int* count, int* order) { order[blockIdx.x] = atomicAdd(count, 1); }
extern "C" void ticket(int* count, int* order, int64_t blocks) {
  launch("ticket_kernel", ticket_kernel, grid_of(blocks), 1, 0, nullptr, count, order);
}

__global__ void assert_kernel(int* y) { assert(y[0] == 7); }
extern "C" void assertion(int* y) { launch("assert_kernel", assert_kernel, 1, 1, 0, nullptr, y); }

__global__ void misaligned_kernel(float* y, const float* x) {
  store_vec(reinterpret_cast<float4*>(y), load_vec(reinterpret_cast<const float4*>(x + 1)));
}
extern "C" void misaligned(float* y, const float* x) {
  launch("misaligned_kernel", misaligned_kernel, 1, 1, 0, nullptr, y, x);
}
