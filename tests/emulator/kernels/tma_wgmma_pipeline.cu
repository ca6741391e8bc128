// The inner loop of attention on Hopper, without its softmax: for each tile of 64 keys o = o / 2 + bfloat16(q k^T) v.
//
// q, o: [m, 64], k, v: [n, 64] of bfloat16.
// A block takes 64 rows of q. A producer warp brings tiles of k and v by TMA, two stages of them; a warpgroup of consumers
// multiplies, by wgmma from shared memory (q k^T) and from registers (p v). Barriers: full[stage], where TMA's bytes arrive;
// empty[stage], where the consumers do.
#include <cstring>

#include "common/hopper.cuh"

namespace minigpt {
namespace {

using bf16 = __nv_bfloat16;

constexpr int kTile = 64, kStages = 2, kConsumers = 128, kThreads = kConsumers + 32;
constexpr int kTileBytes = kTile * kTile * int(sizeof(bf16));  // rows of 128 bytes

struct Memory {
  unsigned char q[kTileBytes], k[kStages][kTileBytes], v[kStages][kTileBytes], o[kTileBytes];
  uint64_t full[kStages], empty[kStages], q_full;
};

DEVICE void produce(Memory& memory, const TensorMap& q, const TensorMap& k, const TensorMap& v, int tiles) {
  mbarrier_arrive_expect_tx(&memory.q_full, kTileBytes);
  tma_load_2d(memory.q, &q, &memory.q_full, 0, int(blockIdx.x) * kTile);
  for (int tile = 0; tile < tiles; ++tile) {
    const int stage = tile % kStages, phase = tile / kStages % 2;
    mbarrier_wait(&memory.empty[stage], phase ^ 1);
    mbarrier_arrive_expect_tx(&memory.full[stage], 2 * kTileBytes);
    tma_load_2d(memory.k[stage], &k, &memory.full[stage], 0, tile * kTile);
    tma_load_2d(memory.v[stage], &v, &memory.full[stage], 0, tile * kTile);
  }
}

DEVICE uint32_t packed(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  std::memcpy(&bits, &both, sizeof bits);
  return bits;
}

DEVICE void consume(Memory& memory, float (&o)[kTile / 2], int tiles) {
  mbarrier_wait(&memory.q_full, 0);
  for (int tile = 0; tile < tiles; ++tile) {
    const int stage = tile % kStages, phase = tile / kStages % 2;
    mbarrier_wait(&memory.full[stage], phase);

    float s[kTile / 2] = {};
    wgmma_fence(s);
#pragma unroll
    for (int kk = 0; kk < kTile / 16; ++kk)  // 16 of q's and k's columns: 32 bytes on
      wgmma_ss<bf16, kTile>(s, wgmma_descriptor(memory.q + kk * 32, 0, 1024, Swizzle::bytes128),
                            wgmma_descriptor(memory.k[stage] + kk * 32, 0, 1024, Swizzle::bytes128));
    wgmma_commit();
    wgmma_wait<0>(s);

    uint32_t p[kTile / 16][4];  // what s holds of 16 keys is laid out like A's registers
#pragma unroll
    for (int kk = 0; kk < kTile / 16; ++kk)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 8 * kk + i / 2 * 4 + i % 2 * 2;
        p[kk][i] = packed(s[at], s[at + 1]);
      }
#pragma unroll
    for (float& each : o) each *= 0.5f;
    wgmma_fence(o);
#pragma unroll
    for (int kk = 0; kk < kTile / 16; ++kk)  // 16 keys: 16 rows on
      wgmma_rs<bf16, kTile, Major::mn>(o, p[kk],
                                       wgmma_descriptor(memory.v[stage] + kk * 16 * 128, 0, 1024, Swizzle::bytes128));
    wgmma_commit();
    wgmma_wait<0>(o);
    mbarrier_arrive(&memory.empty[stage]);
  }
}

DEVICE void store(Memory& memory, const TensorMap& map, const float (&o)[kTile / 2]) {
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
#pragma unroll
  for (int i = 0; i < kTile / 2; i += 2) {
    const uint32_t both = packed(o[i], o[i + 1]);
    const int column = i / 4 * 8 + threadIdx.x % 4 * 2, to = (row + i / 2 % 2 * 8) * kTile + column;
    std::memcpy(memory.o + to * sizeof(bf16), &both, sizeof both);
  }
  fence_proxy_async();
  named_barrier_sync(1, kConsumers);
  if (threadIdx.x == 0) {
    tma_store_2d(&map, memory.o, 0, int(blockIdx.x) * kTile);
    tma_store_commit();
    tma_store_wait<0>();
  }
}

__global__ void __launch_bounds__(kThreads)
    pipeline_kernel(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                    const __grid_constant__ TensorMap v, const __grid_constant__ TensorMap map_o, int tiles) {
  DYNAMIC_SHARED(bytes);
  Memory& memory = *reinterpret_cast<Memory*>(bytes + (1024 - shared_address(bytes) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(&memory.full[stage], 1);
      mbarrier_init(&memory.empty[stage], kConsumers);
    }
    mbarrier_init(&memory.q_full, 1);
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x == kConsumers) produce(memory, q, k, v, tiles);
  if (threadIdx.x < kConsumers) {
    float o[kTile / 2] = {};
    consume(memory, o, tiles);
    store(memory, map_o, o);
  }
}

}  // namespace

extern "C" void tma_wgmma_pipeline(const bf16* q, const bf16* k, const bf16* v, bf16* o, int64_t m, int64_t n) {
  const auto map_of = [](const bf16* tensor, int64_t rows, Swizzle swizzle) {
    return make_tensor_map_2d(tensor, rows, kTile, kTile, kTile, kTile, swizzle);
  };
  launch("pipeline_kernel", pipeline_kernel, dim3(unsigned((m + kTile - 1) / kTile)), dim3(kThreads),
         sizeof(Memory) + 1024, nullptr, map_of(q, m, Swizzle::bytes128), map_of(k, n, Swizzle::bytes128),
         map_of(v, n, Swizzle::bytes128), map_of(o, m, Swizzle::none), int((n + kTile - 1) / kTile));
}

}  // namespace minigpt
