// common/hopper.cuh: mbarriers, TMA, named barriers, register budgets. wgmma is in sm90_wgmma.cu.
#include "case.h"
#include "common/hopper.cuh"

namespace minigpt {
namespace {

DEVICE unsigned char* aligned_1024(unsigned char* p) { return p + (1024 - shared_address(p) % 1024) % 1024; }

// ---- TMA: tensors of 20 rows of 88 elements, 96 apart; p = {column, row, swizzle, columns of a box of 16 rows} ----

constexpr int kRows = 20, kCols = 88, kStride = 96, kBoxRows = 16;

template <class T>
TensorMap map_of(const void* tensor, const Arguments& x) {
  return make_tensor_map_2d(as<T>(tensor), kRows, kCols, kStride, kBoxRows, int(x.p[3]), static_cast<Swizzle>(x.p[2]));
}

__global__ void tma_load_kernel(const __grid_constant__ TensorMap map, uint32_t* out, int column, int row, int words) {
  DYNAMIC_SHARED(memory);
  unsigned char* const box = aligned_1024(memory);
  SHARED(uint64_t, landed);
  if (threadIdx.x == 0) {
    mbarrier_init(&landed, 1);
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(&landed, words * 4);
    tma_load_2d(box, &map, &landed, column, row);
  }
  mbarrier_wait(&landed, 0);
  for (int i = threadIdx.x; i < words; i += blockDim.x) out[i] = reinterpret_cast<const uint32_t*>(box)[i];
}

template <class T>
void tma_load(const Arguments& x) {
  const int bytes = kBoxRows * int(x.p[3] * sizeof(T));
  launch("tma_load_kernel", tma_load_kernel, dim3(1), dim3(64), size_t(bytes + 1024), nullptr, map_of<T>(x.a, x),
         as<uint32_t>(x.out), int(x.p[0]), int(x.p[1]), bytes / 4);
}

template <bool OnlyRead>
__global__ void tma_store_kernel(const __grid_constant__ TensorMap map, const uint32_t* in, int column, int row,
                                 int words) {
  DYNAMIC_SHARED(memory);
  unsigned char* const box = aligned_1024(memory);
  for (int i = threadIdx.x; i < words; i += blockDim.x) reinterpret_cast<uint32_t*>(box)[i] = in[i];
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    tma_store_2d(&map, box, column, row);
    tma_store_commit();
    if constexpr (OnlyRead)
      tma_store_wait_read<0>();
    else
      tma_store_wait<0>();
  }
}

template <class T, bool OnlyRead>
void tma_store(const Arguments& x) {
  const int bytes = kBoxRows * int(x.p[3] * sizeof(T));
  launch("tma_store_kernel", tma_store_kernel<OnlyRead>, dim3(1), dim3(64), size_t(bytes + 1024), nullptr,
         map_of<T>(x.out, x), as<uint32_t>(x.a), int(x.p[0]), int(x.p[1]), bytes / 4);
}

// ---- mbarriers: 64 threads pass numbers on, four phases long; then the barrier is made anew for half of them -------

__global__ void mbarrier_kernel(const int* in, int* out) {
  SHARED(uint64_t, barrier);
  SHARED(int[5][64], passed);
  const int i = threadIdx.x;
  if (i == 0) {
    mbarrier_init(&barrier, 64);
    fence_barrier_init();
  }
  __syncthreads();
  int v = in[i];
  for (int phase = 0; phase < 4; ++phase) {
    passed[phase][i] = v + phase;
    mbarrier_arrive(&barrier);
    mbarrier_wait(&barrier, phase & 1);
    v = passed[phase][(i + 1) % 64];
  }
  __syncthreads();
  if (i == 0) {
    mbarrier_inval(&barrier);
    mbarrier_init(&barrier, 32);
    fence_barrier_init();
  }
  __syncthreads();
  mbarrier_wait(&barrier, 1);  // the phase before the first
  passed[4][i] = v;
  __syncthreads();
  if (i < 32) {
    mbarrier_arrive_expect_tx(&barrier, 0);
  } else {
    mbarrier_wait(&barrier, 0);
    v = passed[4][i - 32];
  }
  out[i] = v;
}
void mbarriers(const Arguments& x) {
  launch("mbarrier_kernel", mbarrier_kernel, dim3(1), dim3(64), 0, nullptr, as<int>(x.a), as<int>(x.out));
}

// ---- named barriers: two warps hand over to the other two, which then meet -----------------------------------------

__global__ void named_barrier_kernel(const int* in, int* out) {
  SHARED(int[64], passed);
  SHARED(int[64], passed_again);
  const int i = threadIdx.x;
  if (i < 64) {
    passed[i] = in[i];
    named_barrier_arrive(1, 128);
  } else {
    named_barrier_sync(1, 128);
    passed_again[i - 64] = passed[127 - i];
    named_barrier_sync(2, 64);
    out[i - 64] = passed_again[(i + 32) % 64];
  }
}
void named_barriers(const Arguments& x) {
  launch("named_barrier_kernel", named_barrier_kernel, dim3(1), dim3(128), 0, nullptr, as<int>(x.a), as<int>(x.out));
}

// ---- registers: of 168 that 384 threads have each, one warpgroup gives most to the other two -----------------------

__global__ void __launch_bounds__(384, 1) setmaxnreg_kernel(const int* in, int* out) {
  const int i = threadIdx.x;
  if (i < 128) {
    setmaxnreg_dec<40>();
    out[i] = in[i];
  } else {
    setmaxnreg_inc<232>();
    out[i] = in[i] + 1;
  }
}
void registers(const Arguments& x) {
  launch("setmaxnreg_kernel", setmaxnreg_kernel, dim3(1), dim3(384), 0, nullptr, as<int>(x.a), as<int>(x.out));
}

const Case cases[] = {
    {"tma_load_bf16", tma_load<__nv_bfloat16>},
    {"tma_load_f16", tma_load<__half>},
    {"tma_load_f32", tma_load<float>},
    {"tma_store_bf16", tma_store<__nv_bfloat16, false>},
    {"tma_store_read_f32", tma_store<float, true>},
    {"mbarrier", mbarriers},
    {"named_barrier", named_barriers},
    {"setmaxnreg", registers},
};

}  // namespace

CASES_OF(sm90)

}  // namespace minigpt
