// Kernels with one fault each, for test_emulator_faults.py, which finds the faulty lines by the comments at their ends.
#include "common/vector.cuh"

namespace minigpt {
namespace {

// ---- threads that do not meet -------------------------------------------------------------------------------------

__global__ void deadlock_kernel(float* x) {
  if (threadIdx.x == 0) __syncwarp();  // deadlock
  __syncthreads();
  x[threadIdx.x] = 1;
}

__global__ void absent_lane_kernel(float* x) {
  if (threadIdx.x == 3)
    __syncthreads();
  else
    x[threadIdx.x] = __shfl_sync(~0u, x[threadIdx.x], 0);  // absent lane
}

__global__ void divergence_kernel(float* x) {
  if (threadIdx.x < 16)
    x[threadIdx.x] = __shfl_sync(~0u, 1.0f, 0);
  else
    x[threadIdx.x] = __shfl_xor_sync(~0u, 2.0f, 1);  // divergence
}

__global__ void two_barriers_kernel(float* x) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();  // two places
  x[threadIdx.x] = 1;
}

__global__ void not_in_mask_kernel(float* x) {
  x[threadIdx.x] = __shfl_sync(~1u, 1.0f, 5);  // not in its own mask
}

__global__ void trap_kernel(float*) {
  if (threadIdx.x == 7) __trap();  // trap
}

// ---- device memory ------------------------------------------------------------------------------------------------

__global__ void read_kernel(float* x, int64_t i) {
  x[0] = x[i] + 1;  // global read
}

__global__ void write_kernel(float* x, int64_t i) {
  x[i] = 1;  // global write
}

__global__ void write_byte_kernel(char* x, int64_t i) {
  x[i] = 1;  // global write of a byte
}

__global__ void wide_kernel(float* x, int64_t i) {
  store_vec(reinterpret_cast<Vec<float, 4>*>(x + i), Vec<float, 4>{});  // wide access
}

__global__ void misaligned_word_kernel(char* x) {
  *reinterpret_cast<float*>(x + 1) = 1;  // misaligned word
}

__attribute__((noinline)) void deep(float* x, int depth) {
  volatile char frame[1024];
  frame[depth % 1024] = 1;
  if (depth > 0) deep(x, depth - 1);
  x[0] = frame[depth % 1024];
}

__global__ void stack_kernel(float* x, int64_t depth) { deep(x, int(depth)); }

// ---- shared memory ------------------------------------------------------------------------------------------------

__global__ void uninitialised_kernel(float* x) {
  SHARED(float[32], s);
  if (threadIdx.x < 31) s[threadIdx.x] = 1;
  __syncthreads();
  x[threadIdx.x] = s[threadIdx.x];  // uninitialised
}

__global__ void shared_write_kernel(float* x, int64_t i) {
  SHARED(float[8], s);
  if (threadIdx.x == 0) s[i] = 1;  // shared write
  x[threadIdx.x] = 1;
}

__global__ void dynamic_write_kernel(float* x, int64_t i) {
  DYNAMIC_SHARED(bytes);
  if (threadIdx.x == 0) bytes[i] = 1;  // dynamic write
  x[threadIdx.x] = 1;
}

// ---- races --------------------------------------------------------------------------------------------------------

__global__ void read_after_write_kernel(float* x) {
  SHARED(float[64], s);
  s[threadIdx.x] = float(threadIdx.x);   // written
  x[threadIdx.x] = s[63 - threadIdx.x];  // read without a barrier
}

__global__ void write_after_read_kernel(float* x) {
  SHARED(float[64], s);
  s[threadIdx.x] = float(threadIdx.x);
  __syncthreads();
  x[threadIdx.x] = s[63 - threadIdx.x];
  s[threadIdx.x] = 0;  // written without a barrier
}

__global__ void write_after_write_kernel(float* x) {
  SHARED(float, s);
  s = float(threadIdx.x);  // all write
  __syncthreads();
  x[threadIdx.x] = s;
}

// Lanes of one warp need __syncwarp as threads need __syncthreads: a shuffle orders no memory.
__global__ void shuffle_is_no_barrier_kernel(float* x) {
  SHARED(float[32], s);
  s[threadIdx.x] = 1;
  const float v = __shfl_sync(~0u, x[threadIdx.x], 0);
  x[threadIdx.x] = v + s[31 - threadIdx.x];  // after a shuffle
}

__global__ void global_in_block_kernel(float* x) {
  x[threadIdx.x] = 1;
  if (threadIdx.x == 40) x[3] = 2;  // another thread's element
}

__global__ void global_between_blocks_kernel(float* x) {
  x[threadIdx.x] = float(blockIdx.x);  // every block's element
}

__global__ void global_read_kernel(float* x) {
  if (blockIdx.x == 0)
    x[0] = 1;
  else if (threadIdx.x == 0)
    x[1] = x[0];  // another block's result
}

__global__ void atomic_and_plain_kernel(int* x) {
  atomicAdd(x, 1);
  if (threadIdx.x == 5) x[1] = x[0];  // beside atomics
}

}  // namespace
}  // namespace minigpt

using namespace minigpt;

#define LAUNCH(name, blocks, threads, smem, ...) \
  launch(#name, name##_kernel, blocks, threads, smem, nullptr, __VA_ARGS__)
#define OF_X(name, blocks, threads) \
  extern "C" void name(float* x) { LAUNCH(name, blocks, threads, 0, x); }
#define OF_X_AND_I(name, smem) \
  extern "C" void name(float* x, int64_t i) { LAUNCH(name, 1, 32, smem, x, i); }

OF_X(deadlock, 1, 64)
OF_X(absent_lane, 1, 32)
OF_X(divergence, 1, 32)
OF_X(two_barriers, 1, 64)
OF_X(not_in_mask, 1, 32)
OF_X(trap, 2, 32)
OF_X(uninitialised, 1, 32)
OF_X(read_after_write, 1, 64)
OF_X(write_after_read, 1, 64)
OF_X(write_after_write, 1, 64)
OF_X(shuffle_is_no_barrier, 1, 32)
OF_X(global_in_block, 1, 64)
OF_X(global_between_blocks, 2, 32)
OF_X(global_read, 2, 1)
OF_X_AND_I(shared_write, 0)
OF_X_AND_I(dynamic_write, 100)

extern "C" void read_at(float* x, int64_t i) { LAUNCH(read, 1, 1, 0, x, i); }
extern "C" void write_at(float* x, int64_t i) { LAUNCH(write, 1, 1, 0, x, i); }
extern "C" void write_to(int64_t address) { LAUNCH(write, 1, 1, 0, reinterpret_cast<float*>(address), int64_t{0}); }
extern "C" void wide(float* x, int64_t i) { LAUNCH(wide, 1, 1, 0, x, i); }
extern "C" void write_byte(char* x, int64_t i) { LAUNCH(write_byte, 1, 1, 0, x, i); }
extern "C" void misaligned_word(char* x) { LAUNCH(misaligned_word, 1, 1, 0, x); }
extern "C" void stack_overflow(float* x, int64_t depth) { LAUNCH(stack, 1, 1, 0, x, depth); }
extern "C" void atomic_and_plain(int* x) { LAUNCH(atomic_and_plain, 1, 32, 0, x); }
// A launch of any size, in x and y, with this much dynamic shared memory.
extern "C" void any_size(float* x, int64_t grid_x, int64_t grid_y, int64_t threads, int64_t smem, int64_t cooperative) {
  const dim3 grid(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y));
  if (cooperative)
    launch_cooperative("any_size", write_kernel, grid, static_cast<unsigned>(threads), smem, nullptr, x, 0);
  else
    launch("any_size", write_kernel, grid, static_cast<unsigned>(threads), smem, nullptr, x, 0);
}
