// The ops once more, with the emulated CUDA kernels behind them, in a library of their own: torch.ops.minigpt_emulated, or
// minigpt_emulated_checked for the checking build.
#include <torch/csrc/stable/library.h>

#include "../ops.h"

#define LIBRARY_OF(name) \
  STABLE_TORCH_LIBRARY(name, m) { minigpt::define_ops(m); }
LIBRARY_OF(MINIGPT_EMULATOR_NAMESPACE)
