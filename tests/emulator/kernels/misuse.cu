// What asynchronous units must not be asked for: `wrong` chooses one of these. Each is right where wrong is 0.
#include "common/hopper.cuh"

namespace minigpt {
namespace {

using bf16 = __nv_bfloat16;

enum Wrong {
  nothing,
  copy_to_odd_address,
  row_at_odd_address,
  too_many_arrivals,
  too_few_bytes,
  too_many_bytes,
  box_at_odd_address,
  barrier_not_made,
  barrier_written_to,
  barrier_made_twice,
  barrier_gone_too_early,
  parity_of_two,
  block_gone_too_early,
  odd_thread_count,
  descriptors_differ,
  warps_differ,
  accumulators_touched,
  a_touched,
  tile_at_odd_row,
  tile_outside,
  warp_missing,
  descriptor_at_odd_address,
};

constexpr int kTileBytes = 64 * 128;

struct Memory {
  unsigned char a[kTileBytes], b[kTileBytes];
  uint64_t landed;
};

__global__ void tma_kernel(const __grid_constant__ TensorMap map, float* out, int wrong) {
  DYNAMIC_SHARED(bytes);
  Memory& memory = *reinterpret_cast<Memory*>(bytes);
  const int i = threadIdx.x;
  if (i == 0) {
    if (wrong != barrier_not_made) mbarrier_init(&memory.landed, 1);
    if (wrong == barrier_made_twice) mbarrier_init(&memory.landed, 1);
    fence_barrier_init();
    if (wrong == barrier_written_to) memory.landed = 0;
    mbarrier_arrive_expect_tx(&memory.landed,
                              kTileBytes + (wrong == too_few_bytes) * 16 - (wrong == too_many_bytes) * 16);
    tma_load_2d(memory.a + (wrong == box_at_odd_address) * 128, &map, &memory.landed, 0, 0);
    if (wrong == too_many_arrivals) mbarrier_arrive(&memory.landed);
    if (wrong == barrier_gone_too_early) mbarrier_inval(&memory.landed);
  }
  __syncthreads();
  if (wrong == block_gone_too_early) return;
  mbarrier_wait(&memory.landed, wrong == parity_of_two ? 2 : 0);
  named_barrier_sync(1, wrong == odd_thread_count ? 100 : 128);
  out[i] = reinterpret_cast<const float*>(memory.a)[i];
}

__global__ void copy_kernel(const float* in, float* out, int wrong) {
  SHARED(uint4[32 + 1], rows);
  const int i = threadIdx.x;
  unsigned char* const base = reinterpret_cast<unsigned char*>(rows);
  cp_async_16(base + i * 16 + (wrong == copy_to_odd_address ? 8 : 0), in + i * 4);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  uint32_t r[4];
  ldmatrix_x4(r, base + i * 16 + (wrong == row_at_odd_address ? 2 : 0));
  out[i] = __uint_as_float(r[0]);
}

__global__ void wgmma_kernel(float* out, int wrong) {
  DYNAMIC_SHARED(bytes);
  Memory& memory = *reinterpret_cast<Memory*>(bytes);
  const int i = threadIdx.x;
  for (int k = i; k < 2 * kTileBytes / 4; k += 128) reinterpret_cast<uint32_t*>(memory.a)[k] = 0x3f803f80;  // ones
  fence_proxy_async();
  __syncthreads();
  float d[32] = {};
  uint32_t a[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
  const int rows = wrong == tile_at_odd_row             ? 128
                   : wrong == descriptors_differ        ? i % 32 / 31 * 32
                   : wrong == warps_differ              ? i / 96 * 32
                   : wrong == descriptor_at_odd_address ? 8
                                                        : 0;
  const uint32_t stride = wrong == tile_outside ? 1 << 17 : 1024;
  const uint64_t b = wgmma_descriptor(memory.b + rows, 0, stride, Swizzle::bytes128);
  wgmma_fence(a);
  wgmma_fence(d);
  if (wrong != warp_missing || i < 96) wgmma_rs<bf16, 64>(d, a, b);
  if (wrong == accumulators_touched) d[3] = 0;
  if (wrong == a_touched) a[2] = 0;
  if (wrong != accumulators_touched) wgmma_rs<bf16, 64>(d, a, b);
  wgmma_commit();
  wgmma_wait<0>(d);
  out[i] = d[3] + __uint_as_float(a[2]) * 0;
}

// A box is loaded, waited for, and loaded once more; meanwhile a thread and wgmma read it.
__global__ void read_while_loading_kernel(const __grid_constant__ TensorMap map, float* by_thread, float* by_wgmma) {
  DYNAMIC_SHARED(bytes);
  Memory& memory = *reinterpret_cast<Memory*>(bytes);
  const int i = threadIdx.x;
  if (i == 0) {
    mbarrier_init(&memory.landed, 1);
    fence_barrier_init();
    for (int phase = 0; phase < 2; ++phase) {
      mbarrier_arrive_expect_tx(&memory.landed, kTileBytes);
      tma_load_2d(memory.b, &map, &memory.landed, 0, 0);
      if (phase == 0) mbarrier_wait(&memory.landed, 0);
    }
  }
  __syncthreads();
  by_thread[i] = reinterpret_cast<const float*>(memory.b)[i];
  float d[32] = {};
  uint32_t a[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
  wgmma_fence(a);
  wgmma_fence(d);
  wgmma_rs<bf16, 64>(d, a, wgmma_descriptor(memory.b, 0, 1024, Swizzle::bytes128));
  wgmma_commit();
  wgmma_wait<0>(d);
  by_wgmma[i] = d[0];
  mbarrier_wait(&memory.landed, 1);
}

}  // namespace

extern "C" void read_while_loading(const float* in, float* by_thread, float* by_wgmma) {
  launch("read_while_loading_kernel", read_while_loading_kernel, dim3(1), dim3(128), sizeof(Memory), nullptr,
         make_tensor_map_2d(in, 64, 32, 32, 64, 32, Swizzle::bytes128), by_thread, by_wgmma);
}

extern "C" void misuse(const float* in, float* out, int64_t wrong) {
  const int w = int(wrong);
  if (w == copy_to_odd_address || w == row_at_odd_address)
    launch("copy_kernel", copy_kernel, dim3(1), dim3(32), 0, nullptr, in, out, w);
  else if (w >= descriptors_differ)
    launch("wgmma_kernel", wgmma_kernel, dim3(1), dim3(128), sizeof(Memory), nullptr, out, w);
  else
    launch("tma_kernel", tma_kernel, dim3(1), dim3(128), sizeof(Memory), nullptr,
           make_tensor_map_2d(in, 64, 32, 32, 64, 32, Swizzle::bytes128), out, w);
}
extern "C" void proper_use(const float* in, float* out, int64_t kernel) {
  if (kernel == 0) launch("copy_kernel", copy_kernel, dim3(1), dim3(32), 0, nullptr, in, out, 0);
  if (kernel == 1) launch("wgmma_kernel", wgmma_kernel, dim3(1), dim3(128), sizeof(Memory), nullptr, out, 0);
  if (kernel == 2) misuse(in, out, nothing);
}

}  // namespace minigpt
