// From an address in the compiled kernels to lines of their source.
#pragma once
#include <string>

#include "emulator.h"

namespace minigpt::emulator {

// Where the instruction before `code` stands: the innermost line that is not the emulator's or a wrapper's own. Line 0 where
// it cannot be told. Lives as long as the process.
Where where_is(const void* code);

// "reduce.cuh:38, called from layer_norm_forward.cuh:31"
std::string place_of(const void* code);

}  // namespace minigpt::emulator
