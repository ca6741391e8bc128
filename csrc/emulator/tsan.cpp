// The calls that -fsanitize=thread puts before every access to memory, answered by the race checker instead of by the
// compiler's own library, which knows nothing of CUDA's threads.
#include <cstring>

#include "observer.h"
#include "places.h"

namespace minigpt::emulator {
namespace {

void plain(const void* address, size_t bytes, bool write, const void* code) {
  observer::accessed({address, bytes, write, false, false, code});
}

// A whole word. A GPU refuses one that is not aligned to its size.
void word(const void* address, size_t bytes, bool write, const void* code) {
  plain(address, bytes, write, code);
  if (self && bytes <= 8 && reinterpret_cast<uintptr_t>(address) % bytes)
    fail(std::string("misaligned ") + (write ? "store" : "load") + " of " + std::to_string(bytes) + " bytes, at " +
             place_of(code),
         where_is(code));
}

}  // namespace
}  // namespace minigpt::emulator

#define CODE __builtin_return_address(0)
#define WORD(n)                                                                           \
  void __tsan_read##n(void* p) { minigpt::emulator::word(p, n, false, CODE); }            \
  void __tsan_write##n(void* p) { minigpt::emulator::word(p, n, true, CODE); }            \
  void __tsan_unaligned_read##n(void* p) { minigpt::emulator::plain(p, n, false, CODE); } \
  void __tsan_unaligned_write##n(void* p) { minigpt::emulator::plain(p, n, true, CODE); }

extern "C" {
WORD(1)
WORD(2)
WORD(4)
WORD(8)
WORD(16)

void __tsan_read_range(void* p, size_t n) { minigpt::emulator::plain(p, n, false, CODE); }
void __tsan_write_range(void* p, size_t n) { minigpt::emulator::plain(p, n, true, CODE); }

void* __tsan_memcpy(void* to, const void* from, size_t n) {
  minigpt::emulator::plain(from, n, false, CODE);
  minigpt::emulator::plain(to, n, true, CODE);
  return std::memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
  minigpt::emulator::plain(from, n, false, CODE);
  minigpt::emulator::plain(to, n, true, CODE);
  return std::memmove(to, from, n);
}
void* __tsan_memset(void* to, int value, size_t n) {
  minigpt::emulator::plain(to, n, true, CODE);
  return std::memset(to, value, n);
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}

// The guards of static variables in host code.
char __tsan_atomic8_load(const volatile char* p, int) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
}
