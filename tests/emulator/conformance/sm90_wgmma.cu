// common/hopper.cuh: wgmma in all its forms.
//
// a: the bytes of A's tile in shared memory, 8 KiB, or [128][4] registers; b: of B's, 32 KiB; c and out: [128][N / 2]
// accumulators. p = {A's leading and stride, B's leading and stride (each: leading + stride << 32), swizzle, accumulate +
// bytes that K is advanced by << 8}.
#include "case.h"
#include "common/hopper.cuh"

namespace minigpt {
namespace {

constexpr int kBytesA = 8 * 1024, kBytesB = 32 * 1024;

struct Tiles {
  uint32_t leading_a, stride_a, leading_b, stride_b;
  Swizzle swizzle;
  bool accumulate;
  int advance;
};

template <class T, int N, Major MajorA, Major MajorB, bool FromRegisters>
__global__ void __launch_bounds__(128)
    wgmma_kernel(const uint4* in_a, const uint4* in_b, const float* in_d, float* out, Tiles tiles) {
  DYNAMIC_SHARED(memory);
  unsigned char* const tile_a = memory + (1024 - shared_address(memory) % 1024) % 1024;
  unsigned char* const tile_b = tile_a + kBytesA;
  const int thread = threadIdx.x;
  float d[N / 2];
  uint32_t a[4] = {};
#pragma unroll
  for (int i = 0; i < N / 2; ++i) d[i] = in_d[thread * (N / 2) + i];
  if constexpr (FromRegisters) {
    const uint4 four = load_vec(in_a + thread);
    a[0] = four.x, a[1] = four.y, a[2] = four.z, a[3] = four.w;
  } else {
    for (int i = thread; i < kBytesA / 16; i += 128)
      store_vec(reinterpret_cast<uint4*>(tile_a) + i, load_vec(in_a + i));
  }
  for (int i = thread; i < kBytesB / 16; i += 128) store_vec(reinterpret_cast<uint4*>(tile_b) + i, load_vec(in_b + i));
  fence_proxy_async();
  __syncthreads();

  const uint64_t of_b = wgmma_descriptor(tile_b + tiles.advance, tiles.leading_b, tiles.stride_b, tiles.swizzle);
  if constexpr (FromRegisters) {
    wgmma_fence(a);
    wgmma_fence(d);
    wgmma_rs<T, N, MajorB>(d, a, of_b, tiles.accumulate);
  } else {
    const uint64_t of_a = wgmma_descriptor(tile_a + tiles.advance, tiles.leading_a, tiles.stride_a, tiles.swizzle);
    wgmma_fence(d);
    wgmma_ss<T, N, MajorA, MajorB>(d, of_a, of_b, tiles.accumulate);
  }
  wgmma_commit();
  wgmma_wait<0>(d);
#pragma unroll
  for (int i = 0; i < N / 2; ++i) out[thread * (N / 2) + i] = d[i];
}

template <class T, int N, Major MajorA, Major MajorB, bool FromRegisters>
void wgmma_case(const Arguments& x) {
  const auto low = [](int64_t v) { return static_cast<uint32_t>(v); };
  const Tiles tiles{low(x.p[0]),       low(x.p[0] >> 32), low(x.p[1]), low(x.p[1] >> 32), static_cast<Swizzle>(x.p[2]),
                    (x.p[3] & 1) != 0, int(x.p[3] >> 8)};
  launch("wgmma_kernel", wgmma_kernel<T, N, MajorA, MajorB, FromRegisters>, dim3(1), dim3(128),
         size_t(kBytesA + kBytesB + 1024), nullptr, as<uint4>(x.a), as<uint4>(x.b), as<float>(x.c), as<float>(x.out),
         tiles);
}

using bf16 = __nv_bfloat16;
using f16 = __half;

template <class T, int N, Major MajorA = Major::k, Major MajorB = Major::k>
constexpr auto ss = wgmma_case<T, N, MajorA, MajorB, false>;
template <class T, int N, Major MajorB = Major::k>
constexpr auto rs = wgmma_case<T, N, Major::k, MajorB, true>;

const Case cases[] = {
    {"wgmma_ss_bf16_n8_kk", ss<bf16, 8>},
    {"wgmma_ss_bf16_n16_kk", ss<bf16, 16>},
    {"wgmma_ss_bf16_n32_kk", ss<bf16, 32>},
    {"wgmma_ss_bf16_n64_kk", ss<bf16, 64>},
    {"wgmma_ss_bf16_n96_kk", ss<bf16, 96>},
    {"wgmma_ss_bf16_n128_kk", ss<bf16, 128>},
    {"wgmma_ss_bf16_n192_kk", ss<bf16, 192>},
    {"wgmma_ss_bf16_n256_kk", ss<bf16, 256>},
    {"wgmma_ss_bf16_n64_km", ss<bf16, 64, Major::k, Major::mn>},
    {"wgmma_ss_bf16_n64_mk", ss<bf16, 64, Major::mn, Major::k>},
    {"wgmma_ss_bf16_n128_mm", ss<bf16, 128, Major::mn, Major::mn>},
    {"wgmma_ss_f16_n64_kk", ss<f16, 64>},
    {"wgmma_ss_f16_n64_mm", ss<f16, 64, Major::mn, Major::mn>},
    {"wgmma_rs_bf16_n8_k", rs<bf16, 8>},
    {"wgmma_rs_bf16_n16_k", rs<bf16, 16>},
    {"wgmma_rs_bf16_n32_k", rs<bf16, 32>},
    {"wgmma_rs_bf16_n64_k", rs<bf16, 64>},
    {"wgmma_rs_bf16_n96_k", rs<bf16, 96>},
    {"wgmma_rs_bf16_n128_k", rs<bf16, 128>},
    {"wgmma_rs_bf16_n192_k", rs<bf16, 192>},
    {"wgmma_rs_bf16_n256_k", rs<bf16, 256>},
    {"wgmma_rs_bf16_n64_m", rs<bf16, 64, Major::mn>},
    {"wgmma_rs_f16_n64_k", rs<f16, 64>},
    {"wgmma_rs_f16_n128_m", rs<f16, 128, Major::mn>},
};

}  // namespace

CASES_OF(sm90_wgmma)

}  // namespace minigpt
