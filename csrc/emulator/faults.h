// Accesses that the machine refuses (a segmentation fault in a kernel) as failures of the launch, with thread and block.
#pragma once
#include <csignal>

namespace minigpt::emulator {

// While one lives, SIGSEGV and SIGBUS on this thread that arise in a kernel end the launch; others go where they went.
class FaultHandler {
 public:
  FaultHandler();
  ~FaultHandler();
  FaultHandler(const FaultHandler&) = delete;

 private:
  struct sigaction before_segv_, before_bus_;
  stack_t before_stack_;
};

}  // namespace minigpt::emulator
