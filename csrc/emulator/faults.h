// Accesses that the machine refuses (a segmentation fault in a kernel) as failures of the launch, with thread and block.
#pragma once
#include <csignal>

namespace minigpt::emulator {

// While one lives, SIGSEGV, SIGBUS and SIGFPE that arise in a kernel end the launch; elsewhere they do what they did.
// Ctrl-C (SIGINT) is kept until a thread gives way, ends the launch there, and is passed on when the handler goes.
class FaultHandler {
 public:
  FaultHandler();
  ~FaultHandler();
  FaultHandler(const FaultHandler&) = delete;

 private:
  static constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGINT};
  struct sigaction before_[4];
  stack_t before_stack_;
};

extern volatile std::sig_atomic_t interrupted;

}  // namespace minigpt::emulator
