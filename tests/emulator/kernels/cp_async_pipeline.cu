// c = a b^T with two stages of cp.async, ldmatrix and mma: while one stage is multiplied, the next one lands.
//
// a: [m, k], b: [32, k] of bfloat16, k a multiple of 32.  c: [m, 32] of float.
// A block takes 64 rows of a, each of its four warps 16 of them.
#include "common/tensor_core.cuh"

namespace minigpt {
namespace {

using bf16 = __nv_bfloat16;

constexpr int kM = 64, kN = 32, kK = 32, kRow = kK + 8;  // rows of 80 bytes: ldmatrix meets no bank twice

struct Stage {
  bf16 a[kM][kRow], b[kN][kRow];
};

DEVICE void load(Stage& stage, const bf16* a, const bf16* b, int m, int k, int step) {
  constexpr int pieces = kK / 8;
  for (int i = threadIdx.x; i < kM * pieces; i += 128) {
    const int row = i / pieces, column = i % pieces * 8, from = blockIdx.x * kM + row;
    const bool there = from < m;
    cp_async_16(&stage.a[row][column], &a[size_t(there ? from : 0) * k + step * kK + column], there);
  }
  for (int i = threadIdx.x; i < kN * pieces; i += 128) {
    const int row = i / pieces, column = i % pieces * 8;
    cp_async_16(&stage.b[row][column], &b[size_t(row) * k + step * kK + column]);
  }
}

__global__ void pipeline_kernel(const bf16* a, const bf16* b, float* c, int m, int k) {
  SHARED(Stage[2], stages);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, steps = k / kK;
  float sums[kN / 8][4] = {};

  load(stages[0], a, b, m, k, 0);
  cp_async_commit();
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) load(stages[(step + 1) % 2], a, b, m, k, step + 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    const Stage& stage = stages[step % 2];
    for (int kk = 0; kk < kK; kk += 16) {
      uint32_t of_a[4];
      ldmatrix_x4(of_a, &stage.a[warp * 16 + lane % 16][kk + lane / 16 * 8]);
      for (int n = 0; n < kN / 8; ++n) {
        uint32_t of_b[2];
        ldmatrix_x2(of_b, &stage.b[n * 8 + lane % 8][kk + lane / 8 % 2 * 8]);
        mma_m16n8k16<bf16>(sums[n], of_a, of_b);
      }
    }
    __syncthreads();
  }
  cp_async_wait<0>();  // equivalent without: the last group is empty

  for (int n = 0; n < kN / 8; ++n)
    for (int i = 0; i < 4; ++i) {
      const int row = blockIdx.x * kM + warp * 16 + lane / 4 + i / 2 * 8;
      if (row < m) c[size_t(row) * kN + n * 8 + lane % 4 * 2 + i % 2] = sums[n][i];
    }
}

}  // namespace

extern "C" void cp_async_pipeline(const bf16* a, const bf16* b, float* c, int64_t m, int64_t k) {
  launch("pipeline_kernel", pipeline_kernel, dim3(unsigned((m + kM - 1) / kM)), dim3(128), 0, nullptr, a, b, c, int(m),
         int(k));
}

}  // namespace minigpt
