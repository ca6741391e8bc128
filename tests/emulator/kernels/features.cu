// Kernels that use what kernels may use, rightly, for test_emulator.py.
#include "common/reduce.cuh"

namespace minigpt {
namespace {

// out: (threads, 4): shuffles of the lane's own number, in one direction each.
__global__ void shuffles_kernel(int* out, int64_t width, int64_t by) {
  const int lane = threadIdx.x % 32, w = int(width), n = int(by);
  int* const mine = out + 4 * threadIdx.x;
  mine[0] = __shfl_sync(~0u, lane, n, w);
  mine[1] = __shfl_up_sync(~0u, lane, n, w);
  mine[2] = __shfl_down_sync(~0u, lane, n, w);
  mine[3] = __shfl_xor_sync(~0u, lane, n, w);
}

// out: (threads, 3): votes on whether the lane's number is below `limit`, among the lanes of its own parity.
__global__ void votes_kernel(unsigned* out, int64_t limit) {
  const int lane = threadIdx.x % 32;
  const unsigned mask = lane % 2 ? 0xaaaaaaaau : 0x55555555u;
  out[3 * threadIdx.x] = __ballot_sync(mask, lane < limit);
  out[3 * threadIdx.x + 1] = __any_sync(mask, lane < limit);
  out[3 * threadIdx.x + 2] = __all_sync(mask, lane < limit);
}

// x: n elements; out: their sum, by the threads that have one. The others have returned when the barriers come.
__global__ void early_return_kernel(const float* x, float* out, int64_t n) {
  SHARED(float[64], s);
  if (threadIdx.x >= n) return;
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += s[i];
  __syncthreads();
  out[threadIdx.x] = sum;
}

// out[flat block][flat thread]: where the thread stands, each coordinate in a decimal digit.
__global__ void places_kernel(int* out) {
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int threads = blockDim.x * blockDim.y * blockDim.z;
  out[block * threads + thread] =
      threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z + 1000 * blockIdx.x + 10000 * blockIdx.y + 100000 * blockIdx.z;
}

// Shared memory of a function that a kernel holds twice, in two sizes, side by side.
template <int N>
DEVICE int* shared_numbers() {
  SHARED(int[N], numbers);
  return numbers;
}
__global__ void templates_kernel(int* out) {
  int *const small = shared_numbers<4>(), *const large = shared_numbers<32>();
  if (threadIdx.x < 4) small[threadIdx.x] = 100;
  large[threadIdx.x] = int(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = small[threadIdx.x % 4] + large[31 - threadIdx.x] + int(small == large);
}

// Every block adds up what all blocks have written before the barrier.
__global__ void cooperative_kernel(int* x, int* out, unsigned* count) {
  const int blocks = int(gridDim.x);
  for (int round = 0; round < 3; ++round) {
    if (threadIdx.x == 0) x[blockIdx.x] = int(blockIdx.x) + round;
    grid_barrier(count);
    int sum = 0;
    for (int i = 0; i < blocks; ++i) sum += x[i];
    if (threadIdx.x == 0) out[3 * blockIdx.x + round] = sum;
    grid_barrier(count);
  }
}

// x: a sum, a maximum, a minimum, a count of exchanges that succeed; over all threads of all blocks.
__global__ void atomics_kernel(int* x) {
  const int me = int(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(x, me);
  atomicMax(x + 1, me);
  atomicMin(x + 2, -me);
  if (atomicCAS(x + 3, 0, 1) == 0) atomicExch(x + 4, 7);
}

// Wrong on purpose: what is in x[0] at the end depends on the order of the threads.
__global__ void last_wins_kernel(int* x) {
  __syncthreads();
  x[0] = int(threadIdx.x);
}

}  // namespace
}  // namespace minigpt

using namespace minigpt;

extern "C" void shuffles(int* out, int64_t threads, int64_t width, int64_t by) {
  launch("shuffles", shuffles_kernel, 1, static_cast<unsigned>(threads), 0, nullptr, out, width, by);
}
extern "C" void votes(unsigned* out, int64_t limit) { launch("votes", votes_kernel, 1, 64, 0, nullptr, out, limit); }
extern "C" void early_return(const float* x, float* out, int64_t n) {
  launch("early_return", early_return_kernel, 1, 64, 0, nullptr, x, out, n);
}
extern "C" void places(int* out) { launch("places", places_kernel, dim3(2, 3, 2), dim3(3, 2, 4), 0, nullptr, out); }
extern "C" void templates(int* out) { launch("templates", templates_kernel, 1, 32, 0, nullptr, out); }
extern "C" void cooperative(int* x, int* out, unsigned* count, int64_t blocks) {
  launch_cooperative("cooperative", cooperative_kernel, static_cast<unsigned>(blocks), 64, 0, nullptr, x, out, count);
}
extern "C" void atomics(int* x) { launch("atomics", atomics_kernel, 3, 64, 0, nullptr, x); }
extern "C" void last_wins(int* x) { launch("last_wins", last_wins_kernel, 1, 96, 0, nullptr, x); }
