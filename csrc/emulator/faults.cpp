#include "faults.h"

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <iterator>

#if defined(__linux__)
#include <ucontext.h>
#endif

#include "emulator.h"
#include "memory.h"
#include "places.h"

namespace minigpt::emulator {

volatile std::sig_atomic_t interrupted = 0;

namespace {

alignas(64) char handler_stack[64 * 1024];
alignas(64) char failing_stack[256 * 1024];  // the thread's own may be what ran out
const void *fault_address = nullptr, *fault_code = nullptr;
bool address_known = false, arithmetic = false;

[[noreturn]] void fail_at_fault() {
  const Where where = where_is(fault_code);
  if (arithmetic) fail("division of integers by 0, at " + place_of(fault_code), where);
  if (self->fiber.overflowed_at(fault_address))
    fail("stack overflow: a CUDA thread has " + std::to_string(kStackBytes / 1024) + " KiB for its arrays", where);
  if (!address_known)  // x86-64 faults so for a vector that is not aligned, and for no address at all
    fail("misaligned access to a vector, or an address that cannot be, at " + place_of(fault_code), where);
  fail("invalid memory access: " + memory::describe(fault_address) + ", at " + place_of(fault_code), where);
}

// The kernel cannot go on where it stopped, and a signal handler cannot switch fibers: so the handler returns into
// fail_at_fault, on a stack of its own.
void on_fault(int signal, siginfo_t* info, void* context) {
#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
  if (self) {
    fault_address = info->si_addr;
    address_known = info->si_code != SI_KERNEL;
    arithmetic = signal == SIGFPE;
    auto* const machine = static_cast<ucontext_t*>(context);
    char* const top = failing_stack + sizeof failing_stack - 64;
    // One byte on, as a return address: where_is looks before it.
#if defined(__x86_64__)
    fault_code = reinterpret_cast<const char*>(machine->uc_mcontext.gregs[REG_RIP]) + 1;
    machine->uc_mcontext.gregs[REG_RSP] = reinterpret_cast<greg_t>(top) - 8;  // as after a call
    machine->uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(&fail_at_fault);
#else
    fault_code = reinterpret_cast<const char*>(machine->uc_mcontext.pc) + 1;
    machine->uc_mcontext.sp = reinterpret_cast<uintptr_t>(top);
    machine->uc_mcontext.pc = reinterpret_cast<uintptr_t>(&fail_at_fault);
#endif
    return;
  }
#endif
  (void)info, (void)context;
  ::signal(signal, SIG_DFL);  // not ours: it happens again, without us
}

}  // namespace

FaultHandler::FaultHandler() {
  stack_t stack{};
  stack.ss_sp = handler_stack;
  stack.ss_size = sizeof handler_stack;
  sigaltstack(&stack, &before_stack_);
  interrupted = 0;
  for (size_t i = 0; i < std::size(kSignals); ++i) {
    struct sigaction action{};
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    action.sa_sigaction = on_fault;
    if (kSignals[i] == SIGINT) action.sa_sigaction = [](int, siginfo_t*, void*) { interrupted = 1; };
    sigemptyset(&action.sa_mask);
    sigaction(kSignals[i], nullptr, &before_[i]);
    const bool ignored = before_[i].sa_handler == SIG_IGN && !(before_[i].sa_flags & SA_SIGINFO);
    if (!ignored) sigaction(kSignals[i], &action, nullptr);
  }
}

FaultHandler::~FaultHandler() {
  for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &before_[i], nullptr);
  sigaltstack(&before_stack_, nullptr);
  if (interrupted) std::raise(SIGINT);
}

}  // namespace minigpt::emulator
