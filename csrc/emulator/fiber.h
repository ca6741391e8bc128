// Fibers: stacks of their own that run in turns on one thread of the machine. A CUDA thread is one of them.
#pragma once
#include <cstddef>

#if defined(__ELF__) && (defined(__x86_64__) || defined(__aarch64__))
#define EMULATOR_OWN_SWITCH 1
#else
#define EMULATOR_OWN_SWITCH 0
#include <ucontext.h>
#endif

namespace minigpt::emulator {

// Room for the arrays that a GPU keeps in registers: the largest kernels (double, D = 256) take over 100 KiB.
constexpr size_t kStackBytes = 256 * 1024;
// Below it nothing may be touched: more than one array too many can jump over.
constexpr size_t kStackGuardBytes = 1024 * 1024;

struct Fiber {
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // The next switch to this fiber calls `entry`, which must never return.
  void prepare(void (*entry)());

  bool overflowed_at(const void* address) const {
    const char* p = static_cast<const char*>(address);
    return stack && p < stack && p >= stack - kStackGuardBytes;
  }

  bool owns(const void* address) const {
    const char* p = static_cast<const char*>(address);
    return stack && p >= stack && p < stack + kStackBytes;
  }

  char* stack = nullptr;  // null for the fiber of the caller, who has a stack already
#if EMULATOR_OWN_SWITCH
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
};

// Goes on where `to` stopped; returns when something switches to `from`.
void switch_fiber(Fiber& from, Fiber& to);

}  // namespace minigpt::emulator
