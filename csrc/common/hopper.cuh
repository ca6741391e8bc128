// Hopper's asynchronous units (sm_90a): TMA, mbarriers, warpgroups' matrix products (wgmma), named barriers, register
// budgets. PTX under nvcc; compiled for the emulator, the bodies are in emulator/hopper.h. Descriptions follow the PTX ISA.
#pragma once
#include <cstdint>
#include <type_traits>

#include "tensor_core.cuh"
#include "tensor_map.cuh"

namespace minigpt {

// Which index of a matrix in shared memory runs fastest: k, along which products are summed up, or the other.
enum class Major { k, mn };

}  // namespace minigpt

#ifdef MINIGPT_CUDA_EMULATOR
#include "../emulator/hopper.h"
#else

namespace minigpt {

// ---- mbarriers: 8 bytes of shared memory. A phase ends when all `arrivals` and all announced bytes have come ------------

DEVICE void mbarrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Before its memory serves another purpose.
DEVICE void mbarrier_inval(uint64_t* barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// After mbarrier_init, by the same thread: TMA too sees the barriers. Other threads need a barrier of the block besides.
DEVICE void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

DEVICE void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Arrives, and announces bytes that TMA will bring in this phase.
DEVICE void mbarrier_arrive_expect_tx(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Until the phase of this parity (0, 1, 0, ...) has ended. Of a new barrier, that of parity 1 has.
DEVICE void mbarrier_wait(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "TRY: mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
      "@ended bra DONE;\n"
      "bra TRY;\n"
      "DONE:\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// What the thread knows to be written to shared memory is seen by TMA and wgmma from here on.
DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- TMA: boxes of 2-D tensors ----------------------------------------------------------------------------------------

// The box at `column`, `row` to shared memory, its rows one behind the other; zeros where it leaves the tensor. The barrier
// counts its bytes, those of the zeros too. Called by one thread.
DEVICE void tma_load_2d(void* to, const TensorMap* map, uint64_t* barrier, int column, int row) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::
          "r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row)
      : "memory");
}

// A box of shared memory to the tensor; what leaves the tensor is dropped. Written by other means than TMA, it needs
// fence_proxy_async first.
DEVICE void tma_store_2d(const TensorMap* map, const void* from, int column, int row) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(shared_address(from)), "r"(column), "r"(row)
               : "memory");
}
// The thread's stores since the last commit become a group.
DEVICE void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until all of the thread's groups but the newest `Pending` are done; with _read: have read their shared memory.
template <int Pending>
DEVICE void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(Pending) : "memory");
}
template <int Pending>
DEVICE void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
}

// ---- wgmma: D [64, N] += A [64, 16] B [16, N] by the four warps of a warpgroup ----------------------------------------
//
// With g = lane / 4, t = lane % 4, a lane of warp w (of 4) holds
//   d[4 j + i]: row 16 w + g + 8 (i / 2), column 8 j + 2 t + i % 2
//   a[i]:       row 16 w + g + 8 (i % 2), columns 2 t + 8 (i / 2) and the next

// Before the first wgmma, and wherever registers that the next one takes have been written since. With an argument: the
// compiler too keeps what happens to these registers before it.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// The warp's wgmmas since the last commit become a group.
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all groups but the newest `Pending` are done. Their accumulators, and the registers and the shared memory that they
// read, must not be touched before. With an argument: the compiler too keeps what happens to it behind.
template <int Pending>
DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

template <class Register, int Count>
DEVICE void keep_in_order(Register (&registers)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    if constexpr (std::is_array_v<Register>)
      keep_in_order(registers[i]);
    else if constexpr (std::is_same_v<Register, float>)
      asm volatile("" : "+f"(registers[i])::"memory");
    else
      asm volatile("" : "+r"(registers[i])::"memory");
  }
}
template <class Register, int Count>
DEVICE void wgmma_fence(Register (&registers)[Count]) {
  keep_in_order(registers);
  wgmma_fence();
}
template <int Pending, class Register, int Count>
DEVICE void wgmma_wait(Register (&registers)[Count]) {
  wgmma_wait<Pending>();
  keep_in_order(registers);
}

namespace wgmma {

template <int N>
struct Shape;

// An asm statement has its accumulators first, D<count> in C++ and T<count> in its text, so that the numbers of the operands
// behind them follow from N.
#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(i) D4(i), D4(i + 4), D4(i + 8), D4(i + 12)
#define D_4 D4(0)
#define D_8 D_4, D4(4)
#define D_16 D16(0)
#define D_32 D_16, D16(16)
#define D_48 D_32, D16(32)
#define D_64 D_48, D16(48)
#define D_96 D_64, D16(64), D16(80)
#define D_128 D_96, D16(96), D16(112)
#define T_4 "%0, %1, %2, %3"
#define T_8 T_4 ", %4, %5, %6, %7"
#define T_16 T_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define T_32 T_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define T_48 T_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define T_64 T_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define T_80 T_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define T_96 T_80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define T_112 T_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define T_128 T_112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define SS(N, types, count, i0, i1, i2, i3, i4)                                       \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " i2                             \
               ", 0;\n"                                                               \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." types " {" T_##count \
               "}, " i0 ", " i1 ", add, 1, 1, " i3 ", " i4 ";\n}"                     \
               : D_##count                                                            \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(A), "n"(B))
#define RS(N, types, count, i0, i1, i2, i3, i4, i5, i6)                               \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " i5                             \
               ", 0;\n"                                                               \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." types " {" T_##count \
               "}, {" i0 ", " i1 ", " i2 ", " i3 "}, " i4 ", add, 1, 1, " i6 ";\n}"   \
               : D_##count                                                            \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)), "n"(B))
#define SHAPE(N, count, i0, i1, i2, i3, i4, i5, i6)                                                 \
  template <>                                                                                       \
  struct Shape<N> {                                                                                 \
    template <class T, int A, int B>                                                                \
    DEVICE static void ss(float (&d)[count], uint64_t a, uint64_t b, bool accumulate) {             \
      if constexpr (std::is_same_v<T, __nv_bfloat16>)                                               \
        SS(N, "bf16.bf16", count, i0, i1, i2, i3, i4);                                              \
      else                                                                                          \
        SS(N, "f16.f16", count, i0, i1, i2, i3, i4);                                                \
    }                                                                                               \
    template <class T, int B>                                                                       \
    DEVICE static void rs(float (&d)[count], const uint32_t (&a)[4], uint64_t b, bool accumulate) { \
      if constexpr (std::is_same_v<T, __nv_bfloat16>)                                               \
        RS(N, "bf16.bf16", count, i0, i1, i2, i3, i4, i5, i6);                                      \
      else                                                                                          \
        RS(N, "f16.f16", count, i0, i1, i2, i3, i4, i5, i6);                                        \
    }                                                                                               \
  };

SHAPE(8, 4, "%4", "%5", "%6", "%7", "%8", "%9", "%10")
SHAPE(16, 8, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
SHAPE(32, 16, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
SHAPE(64, 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
SHAPE(96, 48, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
SHAPE(128, 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
SHAPE(192, 96, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
SHAPE(256, 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

#undef SHAPE
#undef RS
#undef SS
#undef T_128
#undef T_112
#undef T_96
#undef T_80
#undef T_64
#undef T_48
#undef T_32
#undef T_16
#undef T_8
#undef T_4
#undef D_128
#undef D_96
#undef D_64
#undef D_48
#undef D_32
#undef D_16
#undef D_8
#undef D_4
#undef D16
#undef D4

}  // namespace wgmma

// d += A B, or d = A B where !accumulate. a, b: matrices in shared memory, from wgmma_descriptor. T: __nv_bfloat16 or __half;
// N: 8, 16, 32, 64, 96, 128, 192 or 256. All 128 threads of a warpgroup call it with the same descriptors.
template <class T, int N, Major MajorA = Major::k, Major MajorB = Major::k>
DEVICE void wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate = true) {
  static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>);
  wgmma::Shape<N>::template ss<T, MajorA == Major::mn, MajorB == Major::mn>(d, a, b, accumulate);
}
// The same with A in registers.
template <class T, int N, Major MajorB = Major::k>
DEVICE void wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate = true) {
  static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>);
  wgmma::Shape<N>::template rs<T, MajorB == Major::mn>(d, a, b, accumulate);
}

// ---- the warps of a block ---------------------------------------------------------------------------------------------

// Barrier `id` (1 ... 15) for `threads` threads, a multiple of 32, counted over both functions: sync waits for all of them,
// arrive only counts.
DEVICE void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEVICE void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Gives registers of each thread of the warpgroup back, or waits for some that others gave: `Registers` it has afterwards,
// a multiple of 8 from 24 to 256.
template <int Registers>
DEVICE void setmaxnreg_inc() {
  static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0);
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
DEVICE void setmaxnreg_dec() {
  static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0);
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}

}  // namespace minigpt
#endif

namespace minigpt {

// A matrix in shared memory for wgmma, as 8 x 16-byte pieces at `start` (aligned to 16 bytes; swizzled tiles begin at a
// multiple of 8 rows of swizzle_bytes). K runs over 16 elements of 2 bytes, mn over 64 or N. Offset of element (mn, k), with
// R = swizzle_bytes:
//   Major::k,  swizzled: mn % 8 R + mn / 8 stride + 2 k                      (leading unused)
//              none:     mn % 8 16 + mn / 8 stride + k / 8 leading + 2 (k % 8)
//   Major::mn, swizzled: 2 (mn % (R / 2)) + mn / (R / 2) leading + k % 8 R + k / 8 stride
//              none:     2 (mn % 8) + mn / 8 stride + k % 8 16 + k / 8 leading
// and the address that is the sum is swizzled. Along k of a swizzled K-major tile, one goes on by adding 32 bytes to `start`.
DEVICE uint64_t wgmma_descriptor(const void* start, uint32_t leading_bytes, uint32_t stride_bytes, Swizzle swizzle) {
#ifdef MINIGPT_CUDA_EMULATOR
  emulator::check_descriptor(start, leading_bytes, stride_bytes);
#endif
  const uint64_t code = (4 - static_cast<uint64_t>(swizzle)) % 4;  // none, 128, 64, 32 bytes
  const auto field = [](uint32_t bytes) { return static_cast<uint64_t>(bytes >> 4 & 0x3fff); };
  return field(shared_address(start)) | field(leading_bytes) << 16 | field(stride_bytes) << 32 | code << 62;
}

}  // namespace minigpt
