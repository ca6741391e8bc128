#pragma once
#include <pybind11/pybind11.h>

namespace minigpt {

// The decode engine's parts, for tests and measurements: PackedMatrix and ThreadPool in the submodule decoder_kernels.
void bind_decoder_kernels(pybind11::module_& m);

}  // namespace minigpt
