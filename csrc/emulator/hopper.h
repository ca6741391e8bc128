// The emulated bodies of what common/hopper.cuh declares for kernels; the work is done in mbarrier.cpp, tma.cpp and wgmma.cpp.
#pragma once
#include "cuda.h"

namespace minigpt {

namespace emulator {

struct WgmmaShape {
  MmaType type;
  int n;
  Major a, b;
  bool operator==(const WgmmaShape&) const = default;
};

void mbarrier_init(uint64_t* barrier, int arrivals, Where where);
void mbarrier_inval(uint64_t* barrier, Where where);
void mbarrier_arrive(uint64_t* barrier, int bytes, const char* what, Where where);
void mbarrier_wait(uint64_t* barrier, int parity, Where where);
void fence_barrier_init(Where where);
void fence_proxy_async(Where where);

void tma_load_2d(void* to, const TensorMap& map, uint64_t* barrier, int column, int row, Where where);
void tma_store_2d(const TensorMap& map, const void* from, int column, int row, Where where);
void tma_store_commit(Where where);
void tma_store_wait(int pending, bool only_read, Where where);

void wgmma_fence(Where where);
void wgmma_commit(Where where);
void wgmma_wait(int pending, Where where);
// A's registers, or its descriptor where these are null.
void wgmma(WgmmaShape shape, float* d, const uint32_t* a_registers, uint64_t a, uint64_t b, bool accumulate,
           Where where);

void check_descriptor(const void* start, uint32_t leading_bytes, uint32_t stride_bytes);

void named_barrier(int id, int threads, bool wait, const char* what, Where where);

template <class T, int N>
constexpr void check_wgmma_shape() {
  static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>);
  static_assert(N == 8 || N == 16 || N == 32 || N == 64 || N == 96 || N == 128 || N == 192 || N == 256);
}

}  // namespace emulator

EMULATOR_INLINE void mbarrier_init(uint64_t* barrier, int arrivals, EMULATOR_HERE) {
  emulator::mbarrier_init(barrier, arrivals, where);
}
EMULATOR_INLINE void mbarrier_inval(uint64_t* barrier, EMULATOR_HERE) { emulator::mbarrier_inval(barrier, where); }
EMULATOR_INLINE void mbarrier_arrive(uint64_t* barrier, EMULATOR_HERE) {
  emulator::mbarrier_arrive(barrier, 0, "mbarrier_arrive", where);
}
EMULATOR_INLINE void mbarrier_arrive_expect_tx(uint64_t* barrier, int bytes, EMULATOR_HERE) {
  emulator::mbarrier_arrive(barrier, bytes, "mbarrier_arrive_expect_tx", where);
}
EMULATOR_INLINE void mbarrier_wait(uint64_t* barrier, int parity, EMULATOR_HERE) {
  emulator::mbarrier_wait(barrier, parity, where);
}
EMULATOR_INLINE void fence_barrier_init(EMULATOR_HERE) { emulator::fence_barrier_init(where); }
EMULATOR_INLINE void fence_proxy_async(EMULATOR_HERE) { emulator::fence_proxy_async(where); }

EMULATOR_INLINE void tma_load_2d(void* to, const TensorMap* map, uint64_t* barrier, int column, int row,
                                 EMULATOR_HERE) {
  emulator::tma_load_2d(to, *map, barrier, column, row, where);
}
EMULATOR_INLINE void tma_store_2d(const TensorMap* map, const void* from, int column, int row, EMULATOR_HERE) {
  emulator::tma_store_2d(*map, from, column, row, where);
}
EMULATOR_INLINE void tma_store_commit(EMULATOR_HERE) { emulator::tma_store_commit(where); }
template <int Pending>
EMULATOR_INLINE void tma_store_wait(EMULATOR_HERE) {
  emulator::tma_store_wait(Pending, false, where);
}
template <int Pending>
EMULATOR_INLINE void tma_store_wait_read(EMULATOR_HERE) {
  emulator::tma_store_wait(Pending, true, where);
}

EMULATOR_INLINE void wgmma_fence(EMULATOR_HERE) { emulator::wgmma_fence(where); }
template <class Register, int Count>
EMULATOR_INLINE void wgmma_fence(Register (&)[Count], EMULATOR_HERE) {
  emulator::wgmma_fence(where);
}
EMULATOR_INLINE void wgmma_commit(EMULATOR_HERE) { emulator::wgmma_commit(where); }
template <int Pending>
EMULATOR_INLINE void wgmma_wait(EMULATOR_HERE) {
  emulator::wgmma_wait(Pending, where);
}
template <int Pending, class Register, int Count>
EMULATOR_INLINE void wgmma_wait(Register (&)[Count], EMULATOR_HERE) {
  emulator::wgmma_wait(Pending, where);
}
template <class T, int N, Major MajorA = Major::k, Major MajorB = Major::k>
EMULATOR_INLINE void wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate = true, EMULATOR_HERE) {
  emulator::check_wgmma_shape<T, N>();
  emulator::wgmma({emulator::mma_type<T>, N, MajorA, MajorB}, d, nullptr, a, b, accumulate, where);
}
template <class T, int N, Major MajorB = Major::k>
EMULATOR_INLINE void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate = true,
                              EMULATOR_HERE) {
  emulator::check_wgmma_shape<T, N>();
  emulator::wgmma({emulator::mma_type<T>, N, Major::k, MajorB}, d, a, 0, b, accumulate, where);
}

EMULATOR_INLINE void named_barrier_sync(int id, int threads, EMULATOR_HERE) {
  emulator::named_barrier(id, threads, true, "named_barrier_sync", where);
}
EMULATOR_INLINE void named_barrier_arrive(int id, int threads, EMULATOR_HERE) {
  emulator::named_barrier(id, threads, false, "named_barrier_arrive", where);
}

// Registers are not counted here; that a warp comes together is checked.
template <int Registers>
EMULATOR_INLINE void setmaxnreg_inc(EMULATOR_HERE) {
  static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0);
  char nothing;
  emulator::meet_warp(~0u, "setmaxnreg_inc", emulator::only_meet, &nothing, false, where);
}
template <int Registers>
EMULATOR_INLINE void setmaxnreg_dec(EMULATOR_HERE) {
  static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0);
  char nothing;
  emulator::meet_warp(~0u, "setmaxnreg_dec", emulator::only_meet, &nothing, false, where);
}

}  // namespace minigpt
