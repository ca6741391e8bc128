// common/device.cuh, and what CUDA builds in: shuffles, votes, atomics, wide accesses, fast arithmetic, barriers.
#include "case.h"

namespace minigpt {
namespace {

// ---- within a warp: p = {width, argument, mask}; lanes outside the mask do not take part --------------------------

enum class Shuffle { from, up, down, xor_ };

template <class T, Shuffle kind>
__global__ void shuffle_kernel(const T* in, T* out, int width, int argument, unsigned mask) {
  const int lane = threadIdx.x;
  if (!(mask >> lane & 1)) return;
  if constexpr (kind == Shuffle::from) out[lane] = __shfl_sync(mask, in[lane], argument, width);
  if constexpr (kind == Shuffle::up) out[lane] = __shfl_up_sync(mask, in[lane], argument, width);
  if constexpr (kind == Shuffle::down) out[lane] = __shfl_down_sync(mask, in[lane], argument, width);
  if constexpr (kind == Shuffle::xor_) out[lane] = __shfl_xor_sync(mask, in[lane], argument, width);
}

template <class T, Shuffle kind>
void shuffle(const Arguments& x) {
  launch("shuffle_kernel", shuffle_kernel<T, kind>, dim3(1), dim3(32), 0, nullptr, as<T>(x.a), as<T>(x.out),
         int(x.p[0]), int(x.p[1]), unsigned(x.p[2]));
}

__global__ void vote_kernel(const int* in, unsigned* out, unsigned mask) {
  const int lane = threadIdx.x;
  if (!(mask >> lane & 1)) return;
  out[lane] = __ballot_sync(mask, in[lane]);
  out[32 + lane] = __any_sync(mask, in[lane]) != 0;
  out[64 + lane] = __all_sync(mask, in[lane]) != 0;
}
void vote(const Arguments& x) {
  launch("vote_kernel", vote_kernel, dim3(1), dim3(32), 0, nullptr, as<int>(x.a), as<unsigned>(x.out),
         unsigned(x.p[2]));
}

// ---- accesses -----------------------------------------------------------------------------------------------------

template <class V>
__global__ void vector_kernel(const V* in, V* out) {
  store_vec(out + threadIdx.x, load_vec(in + (threadIdx.x ^ 1)));
}
template <class V>
void vector(const Arguments& x) {
  launch("vector_kernel", vector_kernel<V>, dim3(1), dim3(32), 0, nullptr, as<V>(x.a), as<V>(x.out));
}

// out: the sum, the largest, the smallest, the number that all saw as the last exchanged, the threads that were first.
__global__ void atomic_kernel(const int* in, int* out) {
  const int v = in[threadIdx.x];
  atomicAdd(out, v);
  atomicMax(out + 1, v);
  atomicMin(out + 2, v);
  if (atomicExch(out + 3, 7) != 7) atomicAdd(out + 4, 1);
  if (atomicCAS(out + 5, 0, 5) == 0) atomicAdd(out + 6, 1);
}
void atomics(const Arguments& x) {
  launch("atomic_kernel", atomic_kernel, dim3(1), dim3(64), 0, nullptr, as<int>(x.a), as<int>(x.out));
}

__global__ void atomic_float_kernel(const float* in, float* out) { atomicAdd(out, in[threadIdx.x]); }
void atomic_float(const Arguments& x) {
  launch("atomic_float_kernel", atomic_float_kernel, dim3(1), dim3(64), 0, nullptr, as<float>(x.a), as<float>(x.out));
}

// ---- arithmetic that a GPU approximates ---------------------------------------------------------------------------

__global__ void arithmetic_kernel(const float* in, float* out) {
  const int i = threadIdx.x;
  const float v = in[i];
  out[i] = fast_exp2(v);
  out[64 + i] = rsqrtf(v * v + 0.5f);
  out[128 + i] = __fdividef(v, 3.0f);
  out[192 + i] = __expf(v);
  out[256 + i] = __logf(v * v + 0.5f);
}
void arithmetic(const Arguments& x) {
  launch("arithmetic_kernel", arithmetic_kernel, dim3(1), dim3(64), 0, nullptr, as<float>(x.a), as<float>(x.out));
}

// ---- barriers -----------------------------------------------------------------------------------------------------

__global__ void block_barrier_kernel(const int* in, int* out) {
  SHARED(int[96], passed);
  DYNAMIC_SHARED(bytes);
  int* const passed_again = reinterpret_cast<int*>(bytes);
  const int i = threadIdx.x;
  passed[i] = in[i];
  __syncthreads();
  passed_again[i] = passed[95 - i];
  __syncwarp();
  out[i] = passed_again[i ^ 1];
}
void block_barrier(const Arguments& x) {
  launch("block_barrier_kernel", block_barrier_kernel, dim3(1), dim3(96), 96 * 4, nullptr, as<int>(x.a),
         as<int>(x.out));
}

// out: [4] numbers that each block writes, [4] that another one reads behind the barrier. b: the barrier's count.
__global__ void grid_barrier_kernel(const int* in, unsigned* count, int* out) {
  const int block = blockIdx.x;
  if (threadIdx.x == 0) out[block] = in[block];
  grid_barrier(count);
  if (threadIdx.x == 0) out[4 + block] = out[3 - block];
}
void grid_barrier_(const Arguments& x) {
  launch_cooperative("grid_barrier_kernel", grid_barrier_kernel, dim3(4), dim3(32), 0, nullptr, as<int>(x.a),
                     as<unsigned>(const_cast<void*>(x.b)), as<int>(x.out));
}

const Case cases[] = {
    {"shfl_i32", shuffle<int, Shuffle::from>},
    {"shfl_up_i32", shuffle<int, Shuffle::up>},
    {"shfl_down_i32", shuffle<int, Shuffle::down>},
    {"shfl_xor_i32", shuffle<int, Shuffle::xor_>},
    {"shfl_f32", shuffle<float, Shuffle::from>},
    {"shfl_xor_f64", shuffle<double, Shuffle::xor_>},
    {"vote", vote},
    {"vector_4", vector<uint32_t>},
    {"vector_8", vector<uint2>},
    {"vector_16", vector<uint4>},
    {"atomics", atomics},
    {"atomic_float", atomic_float},
    {"arithmetic", arithmetic},
    {"block_barrier", block_barrier},
    {"grid_barrier", grid_barrier_},
};

}  // namespace

CASES_OF(basic)

}  // namespace minigpt
