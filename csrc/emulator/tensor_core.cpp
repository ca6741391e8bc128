// Ampere's asynchronous copies, ldmatrix and mma.
#include "../common/tensor_core.cuh"

#include "bits.h"
#include "observer.h"

namespace minigpt::emulator {
namespace {

void check_aligned(const void* p, size_t bytes, const char* what, const char* which, Where where) {
  if (const size_t past = reinterpret_cast<uintptr_t>(p) % bytes)
    fail(std::string(what) + ": the " + which + " lies " + std::to_string(past) + " bytes past a multiple of " +
             std::to_string(bytes),
         where);
}

void land(const AsyncCopy& copy) {
  std::memcpy(copy.to, copy.from, size_t(copy.given));
  std::memset(copy.to + copy.given, 0, size_t(copy.bytes - copy.given));
  observer::accessed({copy.to, size_t(copy.bytes), true, false, false, copy.issued_at});
}

}  // namespace

uint32_t offset_in_shared(const void* p) {
  const auto offset = static_cast<const char*>(p) - self->block->shared.memory;
  if (offset < 0 || offset >= ptrdiff_t(SharedMemory::kCapacity)) fail("an address that is not in shared memory");
  return uint32_t(offset);
}

// ---- asynchronous copies: land when their group is waited for, as late as may be -----------------------------------

void cp_async(void* to, const void* from, int bytes, bool valid, Where where) {
  const void* const code = __builtin_return_address(0);
  check_aligned(to, size_t(bytes), "cp.async", "destination", where);
  check_aligned(from, size_t(bytes), "cp.async", "source", where);
  offset_in_shared(to);
  if (valid) {
    observer::accessed({from, size_t(bytes), false, false, false, code});
    (void)*static_cast<const volatile char*>(from);  // an address that does not exist is told here
  }
  observer::accessed({to, size_t(bytes), true, false, true, code});
  poison(to, size_t(bytes));
  self->open_copies.push_back({static_cast<char*>(to), static_cast<const char*>(from), bytes, valid ? bytes : 0, code});
}

void cp_async_commit(Where where) {
  if (removed(where)) return;
  self->copy_groups.push_back(std::exchange(self->open_copies, {}));
}

void cp_async_wait(int pending, Where where) {
  if (removed(where)) return;
  auto& groups = self->copy_groups;
  const auto landed = groups.begin() + std::max<ptrdiff_t>(ptrdiff_t(groups.size()) - pending, 0);
  for (auto group = groups.begin(); group != landed; ++group)
    for (const AsyncCopy& copy : *group) land(copy);
  groups.erase(groups.begin(), landed);
}

// ---- ldmatrix -----------------------------------------------------------------------------------------------------

namespace {

struct LdmatrixFrame {
  const char* row;
  uint32_t* r;
  int matrices;
  bool transposed;
};

uint16_t half_word(const void* p) {
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  return bits;
}

void run_ldmatrix(void* const* frames, unsigned) {
  uint32_t loaded[32][4];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& frame = *static_cast<const LdmatrixFrame*>(frames[lane]);
    for (int m = 0; m < frame.matrices; ++m) {
      const auto element = [&](int row, int column) {
        if (frame.transposed) std::swap(row, column);
        return half_word(static_cast<const LdmatrixFrame*>(frames[8 * m + row])->row + 2 * column);
      };
      const int row = lane / 4, column = lane % 4 * 2;
      loaded[lane][m] = element(row, column) | uint32_t(element(row, column + 1)) << 16;
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& frame = *static_cast<const LdmatrixFrame*>(frames[lane]);
    std::copy_n(loaded[lane], frame.matrices, frame.r);
  }
}

}  // namespace

void ldmatrix(uint32_t* r, int matrices, bool transposed, const void* row, const char* what, Where where) {
  if (self->lane < 8 * matrices) {
    check_aligned(row, 16, what, "row", where);
    offset_in_shared(row);
    observer::accessed({row, 16, false, false, false, __builtin_return_address(0)});
  }
  LdmatrixFrame frame{static_cast<const char*>(row), r, matrices, transposed};
  meet_warp(~0u, what, run_ldmatrix, &frame, false, where);
}

// ---- mma ----------------------------------------------------------------------------------------------------------

namespace {

struct MmaFrame {
  float* d;
  const uint32_t *a, *b;
};

// D [16, 8] += A [16, K] B [K, 8], added up in the order of k.
template <int K>
void multiply(void* const* frames, const float (&a)[16][K], const float (&b)[K][8]) {
  observer::multiplied(2 * 16 * 8 * K);
  for (int lane = 0; lane < 32; ++lane) {
    float* const d = static_cast<MmaFrame*>(frames[lane])->d;
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      for (int k = 0; k < K; ++k) d[i] += a[row][k] * b[k][column];
    }
  }
}

template <float (*Value)(uint16_t)>
void run_mma_16(void* const* frames, unsigned) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& frame = *static_cast<const MmaFrame*>(frames[lane]);
    const int g = lane / 4, t = lane % 4 * 2;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][t + i / 2 * 8 + half] = Value(uint16_t(frame.a[i] >> 16 * half));
      for (int i = 0; i < 2; ++i) b[t + i * 8 + half][g] = Value(uint16_t(frame.b[i] >> 16 * half));
    }
  }
  multiply(frames, a, b);
}

void run_mma_tf32(void* const* frames, unsigned) {
  const auto value = [](uint32_t bits) { return __builtin_bit_cast(float, bits & 0xffffe000); };  // the rest is ignored
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& frame = *static_cast<const MmaFrame*>(frames[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][t + i / 2 * 4] = value(frame.a[i]);
    for (int i = 0; i < 2; ++i) b[t + i * 4][g] = value(frame.b[i]);
  }
  multiply(frames, a, b);
}

}  // namespace

void mma(MmaType type, float* d, const uint32_t* a, const uint32_t* b, const char* what, Where where) {
  MmaFrame frame{d, a, b};
  const WarpFunction run = type == MmaType::bf16  ? run_mma_16<float_of_bfloat16>
                           : type == MmaType::f16 ? run_mma_16<float_of_half>
                                                  : run_mma_tf32;
  meet_warp(~0u, what, run, &frame, false, where);
}

}  // namespace minigpt::emulator
