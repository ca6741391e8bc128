// The emulated bodies of what common/tensor_core.cuh declares for kernels; the work is done in tensor_core.cpp.
#pragma once
#include <type_traits>

#include "cuda.h"

namespace minigpt {

namespace emulator {

enum class MmaType { bf16, f16, tf32 };

void cp_async(void* to, const void* from, int bytes, bool valid, Where where);
void cp_async_commit(Where where);
void cp_async_wait(int pending, Where where);
void ldmatrix(uint32_t* r, int matrices, bool transposed, const void* row, const char* what, Where where);
void mma(MmaType type, float* d, const uint32_t* a, const uint32_t* b, const char* what, Where where);
uint32_t offset_in_shared(const void* p);  // fails where p lies elsewhere

template <class T>
constexpr MmaType mma_type = std::is_same_v<T, __half> ? MmaType::f16 : MmaType::bf16;

}  // namespace emulator

inline uint32_t shared_address(const void* p) { return emulator::offset_in_shared(p); }

EMULATOR_INLINE void cp_async_16(void* to, const void* from, bool valid = true, EMULATOR_HERE) {
  emulator::cp_async(to, from, 16, valid, where);
}
EMULATOR_INLINE void cp_async_8(void* to, const void* from, bool valid = true, EMULATOR_HERE) {
  emulator::cp_async(to, from, 8, valid, where);
}
EMULATOR_INLINE void cp_async_4(void* to, const void* from, bool valid = true, EMULATOR_HERE) {
  emulator::cp_async(to, from, 4, valid, where);
}
EMULATOR_INLINE void cp_async_commit(EMULATOR_HERE) { emulator::cp_async_commit(where); }
template <int Pending>
EMULATOR_INLINE void cp_async_wait(EMULATOR_HERE) {
  emulator::cp_async_wait(Pending, where);
}

EMULATOR_INLINE void ldmatrix_x2(uint32_t (&r)[2], const void* row, EMULATOR_HERE) {
  emulator::ldmatrix(r, 2, false, row, "ldmatrix_x2", where);
}
EMULATOR_INLINE void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, EMULATOR_HERE) {
  emulator::ldmatrix(r, 2, true, row, "ldmatrix_x2_trans", where);
}
EMULATOR_INLINE void ldmatrix_x4(uint32_t (&r)[4], const void* row, EMULATOR_HERE) {
  emulator::ldmatrix(r, 4, false, row, "ldmatrix_x4", where);
}
EMULATOR_INLINE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, EMULATOR_HERE) {
  emulator::ldmatrix(r, 4, true, row, "ldmatrix_x4_trans", where);
}

template <class T>
EMULATOR_INLINE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATOR_HERE) {
  static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>);
  emulator::mma(emulator::mma_type<T>, d, a, b, "mma_m16n8k16", where);
}
EMULATOR_INLINE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMULATOR_HERE) {
  emulator::mma(emulator::MmaType::tf32, d, a, b, "mma_m16n8k8_tf32", where);
}

// NaN and infinity have nothing to round.
inline uint32_t round_to_tf32(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  return (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & 0xffffe000;
}

}  // namespace minigpt
