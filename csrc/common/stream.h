// Long arrays: loads asked for ahead of their use, and stores past the caches, for results that are too large to be found
// there when they are read next. A plain store first reads the line that it writes to: a third of the traffic of an op that
// reads and writes as much.
#pragma once
#include <cstdint>
#include <type_traits>

#include "simd.h"

namespace minigpt {

constexpr int64_t kLeastStreamed = 1 << 22;  // bytes

// Whether `bytes` at `to` are stored past the caches: they are many, and each row of row_bytes begins at a whole line.
inline bool is_streamed(const void* to, int64_t bytes, int64_t row_bytes = 64) {
  return bytes >= kLeastStreamed && row_bytes % 64 == 0 && reinterpret_cast<uintptr_t>(to) % 64 == 0;
}

namespace simd {

// Of an array that is read in order: the memory is asked for what comes 2 KB on, since a CPU's own prefetching ends with each
// page of 4 KB.
ALWAYS_INLINE void fetch_ahead(const void* p) { __builtin_prefetch(static_cast<const char*>(p) + 2048); }

// By their instruction, since clang and gcc spell it differently.
template <int Bytes, class T>
ALWAYS_INLINE void stream(T* p, Vector<accumulate_t<T>, Bytes> v) {
#ifdef __x86_64__
  using Stored = std::conditional_t<sizeof(T) == 2, Halves<Bytes>, Vector<accumulate_t<T>, Bytes>>;
  if constexpr (sizeof(Stored) >= 16) {
    Stored stored;
    store<Bytes>((T*)&stored, v);
    if constexpr (Bytes == 16) {
      asm volatile("movntps %1, %0" : "=m"(*(Stored*)p) : "x"(stored));
    } else {
      asm volatile("vmovntps %1, %0" : "=m"(*(Stored*)p) : "v"(stored));
    }
    return;
  }
#endif
  store<Bytes>(p, v);
}

// store_part, past the caches where `streamed`: rows that is_streamed allows.
template <int Bytes, class T>
ALWAYS_INLINE void store_part(T* p, Vector<accumulate_t<T>, Bytes> v, Whole, bool streamed) {
  streamed ? stream<Bytes>(p, v) : store<Bytes>(p, v);
}

template <int Bytes, class T>
ALWAYS_INLINE void store_part(T* p, Vector<accumulate_t<T>, Bytes> v, int64_t n, bool) {
  store_part<Bytes>(p, v, n);
}

// Behind such stores, before others are told that they are done: they are not kept in order.
ALWAYS_INLINE void end_stream() {
#ifdef __x86_64__
  asm volatile("sfence" ::: "memory");
#endif
}

}  // namespace simd
}  // namespace minigpt
