// common/tensor_core.cuh.
#include "case.h"
#include "common/tensor_core.cuh"

namespace minigpt {
namespace {

// ---- cp.async: 32 pieces, in two groups; p[0] has a bit for each piece that is there ------------------------------

template <int Bytes>
DEVICE void cp_async(void* to, const void* from, bool valid) {
  if constexpr (Bytes == 16) cp_async_16(to, from, valid);
  if constexpr (Bytes == 8) cp_async_8(to, from, valid);
  if constexpr (Bytes == 4) cp_async_4(to, from, valid);
}

template <int Bytes>
__global__ void cp_async_kernel(const char* in, char* out, unsigned valid) {
  DYNAMIC_SHARED(shared);
  const int i = threadIdx.x, other = 31 - i;
  cp_async<Bytes>(shared + i * Bytes, in + i * Bytes, valid >> i & 1);
  cp_async_commit();
  cp_async<Bytes>(shared + (32 + i) * Bytes, in + (32 + i) * Bytes, true);
  cp_async_commit();
  cp_async_wait<1>();
  __syncthreads();
  for (int b = 0; b < Bytes; ++b) out[i * Bytes + b] = shared[other * Bytes + b];
  cp_async_wait<0>();
  __syncthreads();
  for (int b = 0; b < Bytes; ++b) out[(32 + i) * Bytes + b] = shared[(32 + other) * Bytes + b];
}

template <int Bytes>
void copies(const Arguments& x) {
  launch("cp_async_kernel", cp_async_kernel<Bytes>, dim3(1), dim3(32), 64 * Bytes, nullptr, as<char>(x.a),
         as<char>(x.out), unsigned(x.p[0]));
}

// ---- ldmatrix: a holds 32 rows of 16 bytes, b the row that each lane gives; out: [32][matrices] -------------------

template <int Matrices, bool Transposed>
__global__ void ldmatrix_kernel(const uint4* in, const int* row, uint32_t* out) {
  SHARED(uint4[32], rows);
  const int i = threadIdx.x;
  store_vec(&rows[i], load_vec(&in[i]));
  __syncthreads();
  uint32_t r[Matrices];
  if constexpr (Matrices == 2 && !Transposed) ldmatrix_x2(r, &rows[row[i]]);
  if constexpr (Matrices == 2 && Transposed) ldmatrix_x2_trans(r, &rows[row[i]]);
  if constexpr (Matrices == 4 && !Transposed) ldmatrix_x4(r, &rows[row[i]]);
  if constexpr (Matrices == 4 && Transposed) ldmatrix_x4_trans(r, &rows[row[i]]);
  for (int m = 0; m < Matrices; ++m) out[i * Matrices + m] = r[m];
}

template <int Matrices, bool Transposed>
void ldmatrix(const Arguments& x) {
  launch("ldmatrix_kernel", ldmatrix_kernel<Matrices, Transposed>, dim3(1), dim3(32), 0, nullptr, as<uint4>(x.a),
         as<int>(x.b), as<uint32_t>(x.out));
}

// ---- mma: a: [32][4] registers, b: [32][2], c and out: [32][4] ----------------------------------------------------

template <class T>
__global__ void mma_kernel(const uint32_t* in_a, const uint32_t* in_b, const float* in_d, float* out) {
  const int i = threadIdx.x;
  uint32_t a[4], b[2];
  float d[4];
  for (int j = 0; j < 4; ++j) a[j] = in_a[4 * i + j], d[j] = in_d[4 * i + j];
  for (int j = 0; j < 2; ++j) b[j] = in_b[2 * i + j];
  if constexpr (std::is_same_v<T, float>)
    mma_m16n8k8_tf32(d, a, b);
  else
    mma_m16n8k16<T>(d, a, b);
  for (int j = 0; j < 4; ++j) out[4 * i + j] = d[j];
}

template <class T>
void mma(const Arguments& x) {
  launch("mma_kernel", mma_kernel<T>, dim3(1), dim3(32), 0, nullptr, as<uint32_t>(x.a), as<uint32_t>(x.b),
         as<float>(x.c), as<float>(x.out));
}

__global__ void tf32_kernel(const float* in, uint32_t* out) { out[threadIdx.x] = round_to_tf32(in[threadIdx.x]); }
void tf32(const Arguments& x) {
  launch("tf32_kernel", tf32_kernel, dim3(1), dim3(64), 0, nullptr, as<float>(x.a), as<uint32_t>(x.out));
}

const Case cases[] = {
    {"cp_async_16", copies<16>},
    {"cp_async_8", copies<8>},
    {"cp_async_4", copies<4>},
    {"ldmatrix_x2", ldmatrix<2, false>},
    {"ldmatrix_x2_trans", ldmatrix<2, true>},
    {"ldmatrix_x4", ldmatrix<4, false>},
    {"ldmatrix_x4_trans", ldmatrix<4, true>},
    {"mma_m16n8k16_bf16", mma<__nv_bfloat16>},
    {"mma_m16n8k16_f16", mma<__half>},
    {"mma_m16n8k8_tf32", mma<float>},
    {"round_to_tf32", tf32},
};

}  // namespace

CASES_OF(sm80)

}  // namespace minigpt
