// Ampere's asynchronous copies and tensor cores (sm_80 and later). PTX under nvcc; compiled for the emulator, the bodies are in
// emulator/tensor_core.h. Fragments are laid out as in the PTX ISA's tables for mma.m16n8k16 and mma.m16n8k8; with
// g = lane / 4 and t = lane % 4, and the lower half of a register first:
//   m16n8k16  A [16, 16]: a[i] holds row g + 8 (i % 2), columns 2t + 8 (i / 2) and the next
//             B [16, 8]:  b[i] holds rows 2t + 8 i and the next, column g
//   m16n8k8   A [16, 8]:  a[i] holds row g + 8 (i % 2), column t + 4 (i / 2);  B [8, 8]: b[i] holds row t + 4 i, column g
//   both      D [16, 8]:  d[i] holds row g + 8 (i / 2), column 2t + i % 2
#pragma once
#include <type_traits>

#include "device.cuh"

#ifdef MINIGPT_CUDA_EMULATOR
#include "../emulator/tensor_core.h"
#else

namespace minigpt {

// Where p lies in shared memory, as instructions take it.
DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// ---- asynchronous copies ------------------------------------------------------------------------------------------

// 16 (8, 4) bytes from global to shared memory, both aligned to that; where !valid zeros, and nothing is read. They are there
// for the thread after cp_async_commit and cp_async_wait, for the others after a barrier behind that.
DEVICE void cp_async_16(void* to, const void* from, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
DEVICE void cp_async_8(void* to, const void* from, bool valid = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 8 : 0)
               : "memory");
}
DEVICE void cp_async_4(void* to, const void* from, bool valid = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 4 : 0)
               : "memory");
}

// The thread's copies since the last commit become a group.
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all of the thread's groups but the newest `Pending` have landed.
template <int Pending>
DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// ---- matrices between shared memory and fragments -----------------------------------------------------------------

// 2 or 4 matrices of 8 rows of 16 bytes. Lanes 8m ... 8m + 7 give the rows of matrix m (x2: lanes 16 ... 31 give nothing),
// aligned to 16 bytes. r[m] receives row lane / 4, elements 2 (lane % 4) and the next; trans: of the transposed matrix.
DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// ---- tensor cores -------------------------------------------------------------------------------------------------

#define MINIGPT_MMA(shape_and_types)                                                                                  \
  asm volatile("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// D += A B of a warp; T is __nv_bfloat16 or __half, sums are kept in float.
template <class T>
DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>);
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    MINIGPT_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  else
    MINIGPT_MMA("m16n8k16.row.col.f32.f16.f16.f32");
}

// The same for float rounded to tf32 (10 bits of mantissa), one element a register.
DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MINIGPT_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}

#undef MINIGPT_MMA

// The nearest tf32, halves away from zero.
DEVICE uint32_t round_to_tf32(float x) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return rounded;
}

}  // namespace minigpt
#endif
