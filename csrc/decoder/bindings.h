// The decode engine's face to Python: minigpt_ext._C.Decoder.
#pragma once
#include <pybind11/pybind11.h>

namespace minigpt {

void bind_decoder(pybind11::module_& m);

}  // namespace minigpt
