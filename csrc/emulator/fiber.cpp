#include "fiber.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

namespace minigpt::emulator {
namespace {

char* new_stack() {
  void* memory = mmap(nullptr, kStackGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("CUDA emulator: no memory for the stack of another CUDA thread");
  mprotect(memory, kStackGuardBytes, PROT_NONE);
  return static_cast<char*>(memory) + kStackGuardBytes;
}

}  // namespace

Fiber::~Fiber() {
  if (stack) munmap(stack - kStackGuardBytes, kStackGuardBytes + kStackBytes);
}

// The switch itself: the registers that a function must preserve go onto the stack, the stack pointers change places.
// A system call's worth of signal masks, which swapcontext would add, is not needed: 5 ns instead of over 200.
#if EMULATOR_OWN_SWITCH && defined(__x86_64__)

extern "C" void minigpt_switch_stacks(void** save, void* load);
asm(R"(
.text
.type minigpt_switch_stacks, @function
.hidden minigpt_switch_stacks
.globl minigpt_switch_stacks
minigpt_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size minigpt_switch_stacks, .-minigpt_switch_stacks
)");

void Fiber::prepare(void (*entry)()) {
  if (!stack) stack = new_stack();
  void** top = reinterpret_cast<void**>(stack + kStackBytes - 64);
  *--top = nullptr;  // where entry would return to: a debugger's backtrace ends here
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack_pointer = top;
}

void switch_fiber(Fiber& from, Fiber& to) { minigpt_switch_stacks(&from.stack_pointer, to.stack_pointer); }

#elif EMULATOR_OWN_SWITCH

extern "C" void minigpt_switch_stacks(void** save, void* load);
asm(R"(
.text
.type minigpt_switch_stacks, %function
.hidden minigpt_switch_stacks
.globl minigpt_switch_stacks
minigpt_switch_stacks:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size minigpt_switch_stacks, .-minigpt_switch_stacks
)");

void Fiber::prepare(void (*entry)()) {
  if (!stack) stack = new_stack();
  void** frame = reinterpret_cast<void**>(stack + kStackBytes - 64) - 20;
  std::memset(frame, 0, 160);
  frame[11] = reinterpret_cast<void*>(entry);  // x30, the return address
  stack_pointer = frame;
}

void switch_fiber(Fiber& from, Fiber& to) { minigpt_switch_stacks(&from.stack_pointer, to.stack_pointer); }

#else

void Fiber::prepare(void (*entry)()) {
  if (!stack) stack = new_stack();
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#endif

}  // namespace minigpt::emulator
